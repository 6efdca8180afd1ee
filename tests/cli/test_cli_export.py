"""From a run to one small file, and the same score from both."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.settings import from_plain
from equipoise.shipping import load_sparse, save_sparse
from equipoise.training import loop, stored
from equipoise.validation import validate

Call = Callable[..., Any]
TINY = (
    *("--model", "mlp", "--width", "0.5", "--train-samples", "128", "--test-samples", "64"),
    *("--epochs", "2", "--batch-size", "32", "--device", "cpu", "--learning-rate", "0.05"),
)
FILE = Path("run/model.safetensors")


def said(result: Any) -> str:
    """The sentence of a mistake."""
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    return str(result.err)


def after_colon(out: str) -> str:
    """What evaluate says, without the name of what it evaluated."""
    return out.partition(": ")[2]


@pytest.mark.parametrize("way", [("--run", "run"), ("run",)], ids=["option", "plain"])
def test_a_run_and_its_file_score_the_same(way: tuple[str, ...], call: Call) -> None:
    call("train", *TINY, "--out", "run", "--sparsity", "0.95")
    files = {path: path.read_bytes() for path in Path("run").iterdir()}
    result = call("export", *way)
    assert (result.code, result.err) == (0, "")
    (line,) = result.out.splitlines()
    dense = sum(t.numel() * t.element_size() for t in torch.load("run/model.pt").values())
    share = FILE.stat().st_size / dense
    assert line.startswith(f"Wrote {FILE}: {FILE.stat().st_size / 1e3:.1f} kB, {100 * share:.1f} %")
    assert line.endswith(f" of the {dense / 1e3:.1f} kB of the dense file.")
    assert share < 0.2
    scores = [call("evaluate", source) for source in ("run", FILE)]
    assert [score.code for score in scores] == [0, 0]
    assert after_colon(scores[0].out) == after_colon(scores[1].out) != ""
    exact = [stored.evaluate_stored(Path(source)) for source in ("run", FILE)]
    assert exact[0] == exact[1]
    files[FILE] = FILE.read_bytes()
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == files


def test_what_is_in_the_file(call: Call) -> None:
    call("train", *TINY, "--out", "run", "--corrector", "agent")
    assert call("export", "run", "--out", "new/folder/x").code == 0
    assert not FILE.exists()
    loaded = load_sparse(Path("new/folder/x"))
    state, checkpoint = torch.load("run/model.pt"), torch.load("run/checkpoint.pt")
    assert list(loaded.tensors) == list(state)
    assert all(torch.equal(loaded.dense()[name], state[name]) for name in state)
    masks = checkpoint["topology"]["masks"]
    assert loaded.masks().keys() == masks.keys()
    assert all(torch.equal(loaded.masks()[name], masks[name]) for name in masks)
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert loaded.metadata["run"] == manifest["run"]
    assert loaded.metadata["label"] == "rigl+agent"
    assert loaded.metadata["versions"] == manifest["versions"]
    validate(from_plain(loaded.metadata["run"]))


def test_active_zeros_are_exported(call: Call) -> None:
    """What was grown by the last rewiring is zero and yet there."""
    call("train", *TINY, "--out", "run")
    state, checkpoint = torch.load("run/model.pt"), torch.load("run/checkpoint.pt")
    name, mask = next(iter(checkpoint["topology"]["masks"].items()))
    state[name].zero_()
    torch.save(state, "run/model.pt")
    call("export", "run")
    assert torch.equal(load_sparse(FILE).masks()[name], mask)


def test_without_a_checkpoint_what_is_not_zero_is_active(call: Call) -> None:
    call("train", *TINY, "--out", "run")
    Path("run/checkpoint.pt").unlink()
    assert call("export", "run").code == 0
    state = torch.load("run/model.pt")
    loaded = load_sparse(FILE)
    assert loaded.masks()
    assert all(torch.equal(mask, state[name] != 0) for name, mask in loaded.masks().items())
    assert after_colon(call("evaluate", "run").out) == after_colon(call("evaluate", FILE).out)


def test_an_unfinished_run_and_a_dense_one(call: Call) -> None:
    call("train", *TINY, "--out", "run", "--topology", "dense")
    Path("run/model.pt").unlink()
    result = call("export", "run")
    assert result.code == 0
    assert re.search(r", 10\d\.\d % of the ", result.out)
    assert after_colon(call("evaluate", "run").out) == after_colon(call("evaluate", FILE).out)


def test_half_precision_and_pictures(call: Call) -> None:
    words = ("--model", "small_cnn", "--precision", "bf16", "--channels-last")
    call("train", *TINY, *words, "--out", "run")
    assert call("export", "run").code == 0
    exact = [stored.evaluate_stored(Path(source)) for source in ("run", FILE)]
    assert exact[0] == exact[1]


def test_an_older_file_is_replaced_on_request_only(call: Call) -> None:
    call("train", *TINY, "--out", "run")
    FILE.write_bytes(b"precious")
    assert f"{FILE} is there already; pass --overwrite" in said(call("export", "run"))
    assert FILE.read_bytes() == b"precious"
    assert call("export", "run", "--overwrite").code == 0
    assert load_sparse(FILE).masks()
    assert "run is a folder; add a name" in said(call("export", "run", "--out", "run"))


def test_nothing_to_export(call: Call) -> None:
    assert "needs --run" in said(call("export"))
    assert "nowhere holds no manifest.json" in said(call("export", "nowhere"))
    call("train", *TINY, "--out", "run")
    shutil.copytree("run", "early")
    for name in (loop.MODEL, loop.CHECKPOINT):
        (Path("early") / name).unlink()
    assert "early holds no trained network yet" in said(call("export", "early"))
    assert not Path("early/model.safetensors").exists()
    call("export", "run")
    assert "model.safetensors holds no manifest.json" in said(call("export", FILE))


@pytest.mark.parametrize("name", [loop.MODEL, loop.CHECKPOINT])
@pytest.mark.parametrize("content", ["garbage", "list", "empty"])
def test_damaged_files_of_a_run(name: str, content: str, call: Call) -> None:
    call("train", *TINY, "--out", "run")
    path = Path("run") / name
    if content == "garbage":
        path.write_bytes(b"garbage")
    else:
        torch.save([1, 2] if content == "list" else {"format": 1}, path)
    assert str(path) in said(call("export", "run"))
    assert not FILE.exists()


def test_masks_of_another_network(call: Call) -> None:
    call("train", *TINY, "--out", "run")
    state = torch.load("run/model.pt")
    torch.save({name: torch.ones_like(value) for name, value in state.items()}, "run/model.pt")
    text = said(call("export", "run"))
    assert "run/model.pt does not fit the masks in run/checkpoint.pt" in text
    assert "outside the mask are not zero" in text


def test_files_that_are_not_of_a_run(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("not a network")
    assert "file is damaged or not a safetensors file" in said(call("evaluate", "file"))
    save_sparse(path, {"w": torch.ones(3)})
    assert "file holds a network but no settings of a run" in said(call("evaluate", "file"))
    save_sparse(path, {"w": torch.ones(3)}, metadata={"run": {}, "versions": {"equipoise": "9"}})
    text = said(call("evaluate", "file"))
    assert "file was written by another version of equipoise" in text
    assert "version 9" in text


def test_a_file_with_another_network_than_its_settings(call: Call) -> None:
    call("train", *TINY, "--out", "run")
    call("export", "run")
    loaded = load_sparse(FILE)
    name = next(iter(loaded.tensors))
    less = {key: value for key, value in loaded.tensors.items() if key != name}
    more = {**loaded.tensors, "more": torch.ones(1)}
    wrong = {**loaded.tensors, name: torch.ones(1)}
    for state, words in ((less, "of shape None"), (more, "with None"), (wrong, r"of shape (1,)")):
        save_sparse(FILE, state, masks={}, metadata=loaded.metadata)
        text = said(call("evaluate", FILE))
        assert words in text
        assert f"{FILE} holds {'more' if state is more else name} " in text
