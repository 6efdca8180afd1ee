"""A run from the command line: files, numbers, going on, and evaluating it again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.records import read_records, read_run
from equipoise.settings import Run, from_plain, with_setting

Call = Callable[..., Any]
TINY = (
    *("--model", "mlp", "--width", "0.1", "--train-samples", "128", "--test-samples", "64"),
    *("--epochs", "2", "--batch-size", "32", "--device", "cpu", "--learning-rate", "0.05"),
)


def percent(text: str) -> list[float]:
    """The numbers before per cent signs."""
    return [float(number) for number in re.findall(r"([\d.]+) %", text)]


def test_a_tiny_run(call: Call, tmp_path: Path) -> None:
    result = call("train", *TINY, "--corrector", "agent", "--out", "run")
    assert (result.code, result.err) == (0, "")
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "records.jsonl", "checkpoint.pt", "model.pt"}
    records = read_records(folder / "records.jsonl")
    assert [record.epoch for record in records] == [1, 2]
    assert records[-1].data_passes == pytest.approx(1 + 10 / 3)
    first, *lines = result.out.splitlines()
    assert first.startswith("Engine")
    assert len(lines) == 4
    assert [percent(line)[0] for line in lines[:3]] == pytest.approx(
        [100 * r.test_accuracy for r in (*records, records[-1])], abs=0.0051
    )
    assert "rigl+agent" in lines[2]
    assert f"{records[-1].training_flops:.3g} FLOPs" in lines[2]
    assert "equipoise report" in lines[3]
    run = from_plain(read_run(folder).manifest["run"])
    assert run.correction.corrector == "agent"
    assert (run.loop.batch_size, run.network.width, run.data.train_samples) == (32, 0.1, 128)


def test_all_settings_arrive(call: Call, tmp_path: Path) -> None:
    words = "--topology set --sparsity 0.8 --distribution er --mask-sampling bernoulli"
    words += " --interval 2 --stop 0.5 --prune-fraction 0.4 --prune-schedule linear"
    words += " --corrector fixed --coefficient 0.2 --refresh-every 2 --refresh-draw fresh"
    words += " --optimizer sgdw --momentum 0.8 --no-nesterov --weight-decay 0.001 --decay matrices"
    words += " --schedule cosine --warmup 0.25 --clip-norm 2 --label-smoothing 0.1"
    words += " --accumulate 2 --seed 5 --precision bf16 --no-deterministic --channels-last"
    words += " --validation 0.25 --augment yes --locked --milestones 0.3"
    assert call("train", *TINY, *words.split(), "--out", "run").code == 0
    run = Run()
    expected = {
        "model": "mlp", "width": 0.1, "train_samples": 128, "test_samples": 64, "epochs": 2,
        "batch_size": 32, "device": "cpu", "learning_rate": 0.05, "topology": "set",
        "sparsity": 0.8, "distribution": "er", "mask_sampling": "bernoulli", "interval": 2,
        "stop": 0.5, "prune_fraction": 0.4, "prune_schedule": "linear", "corrector": "fixed",
        "coefficient": 0.2, "refresh_every": 2, "refresh_draw": "fresh", "optimizer": "sgdw",
        "momentum": 0.8, "nesterov": False, "weight_decay": 0.001, "decay": "matrices",
        "schedule": "cosine", "warmup": 0.25, "clip_norm": 2.0, "label_smoothing": 0.1,
        "accumulate": 2, "seed": 5, "precision": "bf16", "deterministic": False,
        "channels_last": True, "validation": 0.25, "augment": "yes", "locked": True,
        "milestones": (0.3,),
    }  # fmt: skip
    for name, value in expected.items():
        run = with_setting(run, name, value)
    assert from_plain(read_run(tmp_path / "run").manifest["run"]) == run
    assert read_records(tmp_path / "run" / "records.jsonl")[-1].validation_accuracy is not None


def test_the_default_folder_is_named_after_the_settings(call: Call, tmp_path: Path) -> None:
    assert call("train", *TINY, "--topology", "static").code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    run = from_plain(read_run(folder).manifest["run"])
    assert folder.name == run.folder_name
    assert folder.name.startswith("digits-mlp-static-s0.9-seed0-")


def test_a_finished_run_is_told_again_and_not_trained(call: Call, tmp_path: Path) -> None:
    first = call("train", *TINY, "--out", "run")
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    again = call("train", *TINY, "--out", "run")
    assert again.code == 0
    assert again.out.splitlines() == first.out.splitlines()[-2:]
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == files


def test_overwriting_trains_again_to_the_same_weights(call: Call, tmp_path: Path) -> None:
    words = ("train", *TINY, "--engine", "dense", "--out", "run")
    call(*words)
    before = torch.load("run/model.pt")
    started = json.loads(Path("run/manifest.json").read_text())["started"]
    (tmp_path / "run" / "model.pt").write_bytes(b"to be replaced")
    result = call(*words, "--overwrite")
    assert result.code == 0
    assert len(result.out.splitlines()) == 4
    after = torch.load("run/model.pt")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads(Path("run/manifest.json").read_text())["started"] >= started


@pytest.mark.parametrize("way", [("--run", "run"), ("run",)], ids=["option", "plain"])
def test_evaluation_agrees_with_the_last_record(way: tuple[str, ...], call: Call) -> None:
    call("train", *TINY, "--out", "run")
    record = read_records(Path("run/records.jsonl"))[-1]
    result = call("evaluate", *way)
    assert (result.code, result.err) == (0, "")
    assert f"test accuracy {100 * record.test_accuracy:.2f} %" in result.out
    assert f"test loss {record.test_loss:.4f} on 64 images" in result.out
    assert f"{record.active_weights:,} of " in result.out
    assert f"(sparsity {record.sparsity:.4f})" in result.out


def test_event_files_are_written_on_request(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert call("train", *TINY, "--out", "run", "--tensorboard").code == 0
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.*"))) == 1


def test_a_report_of_one_run(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    call("train", *TINY, "--out", "run")
    records = [asdict(record) for record in read_records(Path("run/records.jsonl"))]
    result = call("report", "run", "--out", "pages/page.html")
    assert result.code == 0
    assert (tmp_path / "pages" / "page.html").read_text().lstrip().startswith("<!")
    assert f"{100 * records[-1]['test_accuracy']:.2f}" in result.out


def test_threads_are_limited(call: Call) -> None:
    assert call("train", *TINY, "--out", "run", "--threads", "1").code == 0
    assert torch.get_num_threads() == 1
    assert json.loads(Path("run/manifest.json").read_text())["device"]["threads"] == 1
