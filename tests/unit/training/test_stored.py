"""A stored network scores what its last record says."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.records import MANIFEST, RECORDS, read_records
from equipoise.training.loop import CHECKPOINT, MODEL, train
from equipoise.training.stored import evaluate_stored

toy = import_module("tests.unit.training.toy")

SMALL = {"train_samples": 64, "test_samples": 48, "dataset": "digits", "epochs": 2}


def stored(folder: Path, steps: int = 99, **changes: Any) -> Path:
    left = iter(range(steps - 1))
    train(toy.make_run(**SMALL | changes), folder, should_stop=lambda: next(left, None) is None)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("stored"), validation=0.25)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def test_agrees_with_the_last_record(folder: Path) -> None:
    result, record = evaluate_stored(folder), read_records(folder / RECORDS)[-1]
    assert (result.score.loss, result.score.accuracy) == (record.test_loss, record.test_accuracy)
    assert result.samples == 48
    assert result.active_weights == record.active_weights
    assert 1 - result.active_weights / result.maskable_weights == pytest.approx(record.sparsity)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"model": "small_cnn", "width": 0.5, "channels_last": True},
        {"model": "small_cnn", "width": 0.5, "image_size": 4, "test_samples": 300},
        {"topology": "dense"},
    ],
    ids=str,
)
def test_agrees_in_other_settings(changes: dict[str, Any], tmp_path: Path) -> None:
    stored(tmp_path, **changes, learning_rate=0.01)
    result, record = evaluate_stored(tmp_path), read_records(tmp_path / RECORDS)[-1]
    assert (result.score.loss, result.score.accuracy) == (record.test_loss, record.test_accuracy)


def test_an_unfinished_run_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    stored(tmp_path, steps=4)  # four batches are the first epoch, before its evaluation
    assert not (tmp_path / MODEL).exists()
    result = evaluate_stored(tmp_path)
    train(toy.make_run(**SMALL), tmp_path)
    assert result.score.loss == read_records(tmp_path / RECORDS)[0].test_loss


def test_leaves_the_folder_as_it_was(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    evaluate_stored(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def said(folder: Path, kind: type[Exception] = ValueError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        evaluate_stored(folder, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_a_damaged_model(folder: Path, content: bytes) -> None:
    (folder / MODEL).write_bytes(content)
    assert f"{folder / MODEL} is damaged" in said(folder)


def test_the_model_of_another_network(folder: Path) -> None:
    torch.save(toy.session(width=0.3).model.state_dict(), folder / MODEL)
    assert str(folder / MODEL) in said(folder)


def test_a_damaged_checkpoint_of_an_unfinished_run(folder: Path) -> None:
    (folder / MODEL).unlink()
    (folder / CHECKPOINT).write_bytes(b"garbage")
    assert f"{folder / CHECKPOINT} is damaged" in said(folder)


def test_a_checkpoint_of_another_network(folder: Path) -> None:
    (folder / MODEL).unlink()
    torch.save({"format": 1, **toy.session(width=0.3).state_dict()}, folder / CHECKPOINT)
    assert str(folder / CHECKPOINT) in said(folder)
    torch.save({"format": 1}, folder / CHECKPOINT)
    assert str(folder / CHECKPOINT) in said(folder)


def test_no_network_yet(folder: Path) -> None:
    for name in (MODEL, CHECKPOINT):
        (folder / name).unlink()
    assert "holds no trained network yet" in said(folder, FileNotFoundError)


def test_no_run(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no {MANIFEST}" in said(tmp_path)


@pytest.mark.parametrize("change", ["missing group", "unknown setting", "no settings"])
def test_a_run_of_another_version(folder: Path, change: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    if change == "missing group":
        del manifest["run"]["loop"]
    elif change == "unknown setting":
        manifest["run"]["loop"]["colour"] = 1
    else:
        manifest["run"] = 7
    manifest["versions"]["equipoise"] = "0.0.7"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    text = said(folder)
    assert "another version of equipoise" in text
    assert "0.0.7" in text


def test_a_device_that_is_not_there(folder: Path) -> None:
    assert "--device takes auto" in said(folder, device="abacus")
