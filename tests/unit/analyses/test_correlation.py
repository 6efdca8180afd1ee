"""Correlations along a training: right numbers, no trace in the training, and going on."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.analyses.correlation import GradientCorrelation
from equipoise.analyses.gradients import batches_of, pearson
from equipoise.engine.library import unavailable_because
from equipoise.records import EpochRecord, read_rows
from equipoise.training.loop import train
from equipoise.training.session import Session

toy: Any = import_module("tests.unit.training.toy")

SETUPS: dict[str, dict[str, Any]] = {
    "set": {"topology": "set", "interval": 2},
    "agent": {"topology": "rigl", "interval": 2, "corrector": "agent"},
    "table": {"corrector": "table", "topology": "set", "interval": 2},
    "bsr": {"topology": "bsr", "corrector": "agent"},
    "batchnorm and dropout": {"model": "wrn_22_2", "dropout": 0.3, "width": 0.25},
    "at": {"objective": "at", "attack_steps": 1, "corrector": "agent"},
    "engine": {
        "engine": "sparse",
        "model": "small_cnn",
        "width": 0.25,
        "sparsity": 0.8,
        "topology": "rigl",
        "interval": 2,
        "corrector": "svrg",
    },
}


def skip_without_kernels(name: str) -> None:
    missing = unavailable_because()
    if name == "engine" and missing is not None:
        pytest.skip(str(missing))


def trained(folder: Path, changes: dict[str, Any], *observers: Any) -> list[dict[str, Any]]:
    run = toy.make_run(**changes)
    outcome = train(run, folder, dataset=toy.images(), observers=observers)
    return [toy.without_time(record) for record in outcome.records]


@pytest.mark.parametrize("name", SETUPS)
def test_a_training_ends_bit_for_bit_as_without_it(name: str, tmp_path: Path) -> None:
    skip_without_kernels(name)
    plain = trained(tmp_path / "plain", SETUPS[name])
    path = tmp_path / "watched" / "gradient_correlation.jsonl"
    assert trained(tmp_path / "watched", SETUPS[name], GradientCorrelation(path)) == plain
    states = [toy.stored_state(tmp_path / part) for part in ("plain", "watched")]
    assert not toy.differences(*states)
    rows = read_rows(path)
    assert [row["epoch"] for row in rows] == [2, 3]
    for row in rows:
        assert -1.0 <= row["full"] <= 1.0
        assert -1.0 <= row["batch"] <= 1.0
        assert (row["full_all"] is None) == (name == "engine")
        assert (row["batch_all"] is None) == (name == "engine")
    # A full gradient an epoch, and from the second on as many old ones of single batches.
    batches = 5
    assert rows[-1]["extra_passes"] == pytest.approx(3 + 2 * min(10, batches) / batches)


class Kept(toy.Watcher):
    """Networks and masks at the end of every epoch."""

    def __init__(self) -> None:
        self.models: list[torch.nn.Module] = []
        self.masks: list[dict[str, torch.Tensor]] = []
        self.session: Session

    def recorded(self, session: Session, record: EpochRecord) -> None:
        self.session = session
        self.models.append(copy.deepcopy(session.model))
        self.masks.append({n: m.clone() for n, m in session.topology.masks.items()})


def test_the_numbers_are_those_of_gradients_taken_by_hand(tmp_path: Path) -> None:
    path, kept = tmp_path / "rows.jsonl", Kept()
    watch = GradientCorrelation(path, pairs=2)
    trained(tmp_path, {"topology": "set", "interval": 2, "epochs": 2}, watch, kept)
    (row,) = read_rows(path)
    batches = list(batches_of(kept.session))
    assert sum(batch.size for batch in batches) == 72

    def gradient(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(model(batch.x), batch.y)
        return toy.flat(torch.autograd.grad(loss, list(model.parameters())))

    by_batch = [[gradient(model, b) for b in batches] for model in kept.models]
    sizes = torch.tensor([float(b.size) for b in batches])
    full = [sizes @ torch.stack(rows) for rows in by_batch]
    masks = [
        toy.flat(
            masks[name] if name in masks else torch.ones_like(p)
            for name, p in kept.models[0].named_parameters()
        ).bool()
        for masks in kept.masks
    ]
    both = masks[0] & masks[1]
    assert both.sum() < masks[0].sum()  # it was rewired meanwhile

    def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([x, y]).double())[0, 1])

    assert row["full"] == pytest.approx(correlation(full[0][both], full[1][both]), abs=1e-5)
    assert row["full_all"] == pytest.approx(correlation(full[0], full[1]), abs=1e-5)
    first = [correlation(by_batch[0][k][both], by_batch[1][k][both]) for k in range(2)]
    assert row["batch"] == pytest.approx(sum(first) / 2, abs=1e-5)
    dense = [correlation(by_batch[0][k], by_batch[1][k]) for k in range(2)]
    assert row["batch_all"] == pytest.approx(sum(dense) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "stop_at"),
    [("set", 4), ("set", 5), ("set", 7), ("set", 10), ("engine", 5), ("engine", 7)],
)
def test_a_stopped_training_goes_on_with_the_same_rows(
    name: str, stop_at: int, tmp_path: Path
) -> None:
    skip_without_kernels(name)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(whole, SETUPS[name], GradientCorrelation(whole / "rows.jsonl"))
    run, steps = toy.make_run(**SETUPS[name]), iter(range(1, 100))
    stopped = train(
        run,
        parts,
        dataset=toy.images(),
        observers=(GradientCorrelation(parts / "rows.jsonl"),),
        should_stop=lambda: next(steps) == stop_at,
    )
    assert not stopped.finished
    trained(parts, SETUPS[name], GradientCorrelation(parts / "rows.jsonl"))
    assert read_rows(parts / "rows.jsonl") == read_rows(whole / "rows.jsonl")


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("place", ["before", "between"])
def test_a_kill_after_the_checkpoint_costs_no_row(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(whole, SETUPS["set"], GradientCorrelation(whole / "rows.jsonl"))

    class Killer(GradientCorrelation):
        def recorded(self, session: Session, record: EpochRecord) -> None:
            if record.epoch == 2 and place == "before":
                raise Killed
            super().recorded(session, record)

        def _save(self, now: Any) -> None:
            if now.epoch == 2:  # the row is written already
                raise Killed
            super()._save(now)

    with pytest.raises(Killed):
        trained(parts, SETUPS["set"], Killer(parts / "rows.jsonl"))
    trained(parts, SETUPS["set"], GradientCorrelation(parts / "rows.jsonl"))
    assert read_rows(parts / "rows.jsonl") == read_rows(whole / "rows.jsonl")


def test_measuring_may_begin_in_the_middle_of_a_training(tmp_path: Path) -> None:
    run, steps = toy.make_run(epochs=4), iter(range(1, 100))
    train(run, tmp_path, dataset=toy.images(), should_stop=lambda: next(steps) == 7)
    trained(tmp_path, {"epochs": 4}, GradientCorrelation(tmp_path / "rows.jsonl"))
    # Epoch 2 was under way, so what came before is not known; epoch 3 has it.
    assert [row["epoch"] for row in read_rows(tmp_path / "rows.jsonl")] == [3, 4]


def test_a_new_training_in_the_folder_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    trained(tmp_path, {}, GradientCorrelation(path))
    first = read_rows(path)
    run = toy.make_run(seed=1)
    train(
        run,
        tmp_path,
        dataset=toy.images(),
        observers=(GradientCorrelation(path),),
        overwrite=True,
    )
    assert [row["epoch"] for row in read_rows(path)] == [2, 3]
    assert read_rows(path) != first


def test_a_sample_of_the_batches_costs_as_little_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    trained(tmp_path, {"epochs": 2}, GradientCorrelation(path, pairs=1, batches=2))
    assert read_rows(path)[-1]["extra_passes"] == pytest.approx((2 * 32 + 16) / 72)


def test_numbers_of_batches_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        GradientCorrelation(tmp_path / "rows.jsonl", pairs=0)


def test_a_correlation_needs_two_vectors_that_vary() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert pearson(x, -3 * x + 1) == pytest.approx(-1.0)
    assert pearson(x, torch.full((50,), torch.nan)) is None
    assert pearson(x[:0], x[:0]) is None
