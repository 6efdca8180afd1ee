"""A user's mistake ends with code 2 and one sentence, whatever it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = (
    *("--model", "mlp", "--width", "0.05", "--train-samples", "64", "--test-samples", "32"),
    *("--epochs", "2", "--batch-size", "16", "--device", "cpu", "--topology", "static"),
    *("--engine", "dense"),  # else its timings are remembered, which is writing something
)

MISTAKES: list[tuple[str, str]] = [
    (
        "trian",
        "'trian' is not a command; equipoise has train, compare, hydra, evaluate, attack, export, "
        "report, diagnose, analyse, plan, bench, demo, reproduce, list; did you mean train?",
    ),
    ("train --epocs 3", "did you mean --epochs?"),
    ("evaluate --run x y", "--run takes one value; got x y"),
    ("train --model resnet19", "--model is one of mlp, small_cnn"),
    ("train --model resnet19", "did you mean resnet1"),
    ("train --sparsity 90", "in [0, 1); got 90; for 90 % write 0.9"),
    ("train --sparsity 1", "in [0, 1); got 1"),
    ("train --learning-rate 0", "--learning-rate must be above 0; got 0"),
    ("train --epochs 0", "--epochs must be at least 1; got 0"),
    ("train --milestones 0.8 0.2", "rising fractions"),
    ("train --topology dense --growth-signal corrected", "no effect on a dense network"),
    ("train --dataset svhn", "SVHN was not found: looked for train_32x32.mat"),
    ("train --dataset svhn", "EQUIPOISE_DATA"),
    ("train --dataset image_folder --data-dir nowhere", "was not found"),
    ("train --device abacus", "--device takes auto, cpu, cuda or cuda:N; got 'abacus'"),
    ("train --train-samples 1000000", "asks for 1000000 images, but digits has 1442"),
    ("train --image-size 5", "image_size=5 does not divide"),
    ("train --model mlp --dropout 0.5", "mlp has no dropout"),
    ("train --model mlp --stem imagenet", "mlp has no choice of stem"),
    ("train --topology set --interval 2.5", "interval is a whole number of steps"),
    ("train --validation 0.00001", "leaves a part empty"),
    (
        "train --corrector svrg --correction-mode cached --objective at --inputs pixels",
        "choose --snapshot adversarial, or leave the mode out",
    ),
    ("train --threads 0", "--threads is at least 1; got 0"),
    ("train --optimizer sgdw --weight-decay 3", "weight_decay in [0, 1)"),
    ("train --out file", "file"),
    ("train --out file/below", "file"),
    ("compare --arms rigl", "--arms takes two or more arms with different names; got rigl"),
    ("compare --arms rigl rigl", "different names; got rigl rigl"),
    ("compare --arms", "--arms takes two or more"),
    ("compare --arms rigl rigll", "in the arm 'rigll' the topology is one of"),
    ("compare --arms rigl x:rigl,sparsity=90", "for 90 % write 0.9"),
    ("compare --arms x/y:rigl x_y:set", "would share one folder"),
    ("compare --num-seeds 0", "--num-seeds is at least 1; got 0"),
    ("compare --workers 0", "--workers is at least 1; got 0"),
    ("compare --device abacus", "--device takes auto"),
    ("compare --dataset svhn", "SVHN was not found"),
    ("evaluate", "needs"),
    ("evaluate --run nowhere", "nowhere holds no manifest.json"),
    ("evaluate --run file", "file"),
    ("report", "needs"),
    ("report --runs nowhere", "nowhere"),
    ("report --runs file", "file"),
    ("report --runs empty", "empty holds no run"),
    ("report --paper --num-seeds 0", "--num-seeds is at least 1; got 0"),
    ("report --paper --runs empty", "takes no folder"),
    ("report --paper --out page.html", "pass a folder"),
    ("report --paper --scale huge", "huge"),
    ("list --models", "has no option --models"),
    ("compare --arms -x", "'-x' is not an option of `equipoise compare`"),
    ("compare --arms -x", "or write --arms=-x if that is its value"),
    ("train --data-dir -x", "--data-dir takes one value; got none"),
]


@pytest.fixture(autouse=True)
def things(tmp_path: Path) -> None:
    """A file where a folder is expected, and an empty folder."""
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()


def is_one_sentence(err: str) -> bool:
    lines = err.splitlines()
    return len(lines) == 1 and lines[0].startswith("equipoise: ") and "Traceback" not in err


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_one_sentence(line: str, words: str, call: Callable[..., Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    command, *rest = line.split(" ")
    tiny = TINY if command in ("train", "compare") else ()
    asked = [option for option in rest if option.startswith("--")]
    pairs = [TINY[i : i + 2] for i in range(0, len(tiny), 2)]
    kept = [word for pair in pairs if pair[0] not in asked for word in pair]
    result = call(command, *kept, *rest)
    assert result.code == 2
    assert is_one_sentence(result.err), result.err
    assert words in result.err
    assert result.out == ""
    after = [path for path in sorted(tmp_path.rglob("*")) if path.suffix != ".cache"]
    assert after == before, "something was written"


def test_nothing_at_all_is_answered_with_the_commands(call: Callable[..., Any]) -> None:
    result = call()
    assert result.code == 0
    assert "train" in result.out
    assert "compare" in result.out
    assert result.err == ""


def test_a_cuda_device_that_is_not_there(call: Callable[..., Any]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    result = call("train", *TINY, "--device", "cuda:1")
    assert result.code == 2
    assert is_one_sentence(result.err)
    assert "--device cuda:1 was asked for, but torch" in result.err


def test_a_package_that_is_not_there(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = call("train", *TINY, "--tensorboard", "--out", "run")
    assert result.code == 2
    assert is_one_sentence(result.err)
    assert 'pip install "equipoise[tensorboard]"' in result.err


def test_a_folder_of_another_run_and_damaged_files(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    assert call("train", *TINY, "--out", "run").code == 0
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def refused(*words: str) -> str:
        result = call(*words)
        assert result.code == 2
        assert is_one_sentence(result.err), result.err
        return str(result.err)

    again = ("train", *TINY, "--out", "run")
    said = refused(*again, "--learning-rate", "0.2")
    assert "run holds another run (learning-rate 0.1 instead of 0.2)" in said
    assert "--overwrite" in said
    damages: dict[str, list[tuple[str, ...]]] = {
        "manifest.json": [again, ("evaluate", "--run", "run"), ("report", "--runs", "run")],
        "records.jsonl": [again, ("evaluate", "--run", "run"), ("report", "--runs", "run")],
        "model.pt": [("evaluate", "--run", "run")],
    }
    for name, commands in damages.items():
        path = tmp_path / "run" / name
        path.write_bytes(b"\xff garbage")
        for words in commands:
            assert str(Path("run") / name) in refused(*words)
        path.write_bytes(files[path])
    (tmp_path / "run" / "model.pt").unlink()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"garbage")
    assert "checkpoint.pt is damaged" in refused(*again)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == b"garbage"
    assert call(*again, "--overwrite").code == 0
    assert (tmp_path / "run" / "model.pt").read_bytes() == files[tmp_path / "run" / "model.pt"]


def test_the_real_program_says_it_on_standard_error() -> None:
    for words in (["train", "--sparsity", "90"], ["train", "--epocs", "3"], ["evaluate"]):
        done = subprocess.run(
            [sys.executable, "-m", "equipoise", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert is_one_sentence(done.stderr)
        assert done.stdout == ""


def test_developers_may_ask_for_the_traceback(
    settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equipoise.cli import main

    monkeypatch.setenv("EQUIPOISE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="did you mean --epochs"):
        main(["train", "--epocs", "3"])
