"""Gradients under noise against answers that are known, and on a run that has ended."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.analyses.perturbation import Spread, perturbed_rows
from equipoise.analyses.stored import perturb_stored
from equipoise.points import trainable
from equipoise.records import read_rows
from equipoise.training.loop import train
from equipoise.training.stored import load_stored, stored_masks

toy: Any = import_module("tests.unit.training.toy")
SIZE = 4000


class Point(nn.Module):
    """Half the squared distance to each sample: its gradient is the distance itself."""

    def __init__(self, at: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(at.clone())

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.weight - x).square().sum(dim=1).mean()


def quadratic(signal: float, active: float = 1.0) -> tuple[Point, list[Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(77)
    mask = torch.rand(SIZE, generator=generator) < active
    at = signal * torch.randn(SIZE, generator=generator) * mask
    noise = torch.randn(10, SIZE, generator=generator)
    batches = list((noise - noise.mean(dim=0))[:, None, :])  # around 0, so the full gradient is at
    return Point(at), batches, {"weight": mask}


def rows_by(rows: list[dict[str, Any]], perturb: str, coordinates: str) -> list[dict[str, Any]]:
    return [r for r in rows if (r["perturb"], r["coordinates"]) == (perturb, coordinates)]


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=2, max_size=9))
def test_mean_and_variance_are_those_of_all_at_once(vectors: list[list[float]]) -> None:
    spread = Spread(3, torch.device("cpu"))
    for vector in vectors:
        spread.add(torch.tensor(vector, dtype=torch.float64))
    assert spread.mean.numpy() == pytest.approx(np.mean(vectors, axis=0), abs=1e-9)
    assert spread.variance.numpy() == pytest.approx(np.var(vectors, axis=0, ddof=1), abs=1e-6)


def test_one_vector_has_no_variance() -> None:
    spread = Spread(1, torch.device("cpu"))
    spread.add(torch.ones(1))
    assert spread.variance.isnan().all()


@pytest.mark.parametrize("deviation", [0.0, 0.5, 2.0])
def test_a_quadratic_has_the_correlation_of_signal_and_noise(deviation: float) -> None:
    model, batches, masks = quadratic(signal=1.0)
    rows = perturbed_rows(model, model, lambda: batches, masks, deviation=deviation)
    assert len(rows) == 3 * 4
    expected = 1.0 / math.sqrt(1.0 + deviation**2)
    variance = float(torch.stack(batches).var(dim=0).mean())
    for row in rows:
        assert row["correlation"] == pytest.approx(expected, abs=0.03)
        assert row["variance"] == pytest.approx(variance, rel=1e-5)  # noise on weights moves it not
        assert row["batches"] == 10


def test_noise_on_weights_that_are_not_there_changes_their_gradient_alone() -> None:
    model, batches, masks = quadratic(signal=1.0, active=0.1)
    rows = perturbed_rows(model, model, lambda: batches, masks, deviation=1.0, replicates=2)

    def mean(perturb: str, coordinates: str) -> float:
        found = [row["correlation"] for row in rows_by(rows, perturb, coordinates)]
        return float(np.mean(found))

    half = 1.0 / math.sqrt(2.0)
    assert mean("active", "active") == pytest.approx(half, abs=0.06)
    assert mean("all", "active") == pytest.approx(half, abs=0.06)
    assert mean("active", "all") == pytest.approx(half, abs=0.06)
    # A tenth of the coordinates has a signal, all have noise: 0.1 / sqrt(0.1 * (0.1 + 1)).
    assert mean("all", "all") == pytest.approx(0.1 / math.sqrt(0.1 * 1.1), abs=0.06)


def test_replicates_differ_and_a_seed_repeats_them() -> None:
    model, batches, masks = quadratic(signal=1.0)
    one, two, other = (
        perturbed_rows(model, model, lambda: batches, masks, deviation=1.0, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == two != other
    assert len({row["correlation"] for row in rows_by(one, "all", "all")}) == 3


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_the_model_and_the_random_numbers_are_left_as_they_were(batchnorm: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model[2].eval()
    batches = list(torch.randn(3, 16, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    rows = perturbed_rows(
        model, lambda x: model(x).square().mean(), lambda: batches, {}, batchnorm=batchnorm
    )
    assert not toy.differences(before, dict(model.state_dict()))
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert all(row["variance"] > 0.0 for row in rows)


@pytest.mark.parametrize(
    ("changes", "words"), [({"replicates": 0}, "got 0 and"), ({"deviation": -1.0}, "and -1")]
)
def test_settings_are_checked(changes: dict[str, Any], words: str) -> None:
    model, batches, masks = quadratic(signal=1.0)
    with pytest.raises(ValueError, match=words):
        perturbed_rows(model, model, lambda: batches, masks, **changes)


def test_one_batch_is_too_few() -> None:
    model, batches, masks = quadratic(signal=1.0)
    with pytest.raises(ValueError, match="at least 2 of them; got 1"):
        perturbed_rows(model, model, lambda: batches[:1], masks)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = toy.images()
    monkeypatch.setattr("equipoise.training.build.load_images", lambda *_: data)
    train(toy.make_run(topology="set", interval=2, epochs=1), tmp_path / "run", dataset=data)
    return tmp_path / "run"


def test_a_run_is_measured_in_its_folder(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    rows = perturb_stored(
        folder, device="cpu", batch_size=16, replicates=2, on_progress=lambda *at: told.append(at)
    )
    assert rows == read_rows(folder / "perturbed_gradients.jsonl")
    assert len(rows) == 2 * 4
    # 72 images are 4 batches of 16, and 8 that are left out.
    assert {(row["batches"], row["samples"]) for row in rows} == {(4, 64)}
    assert told == [(n, 20) for n in range(1, 21)]  # no noise, and 2 draws at 2 places
    assert all(0.9 < row["correlation"] <= 1.0 for row in rows_by(rows, "active", "active"))
    few = perturb_stored(folder, device="cpu", batch_size=16, replicates=1, batches=2)
    assert {row["batches"] for row in few} == {2}
    with pytest.raises(ValueError, match="--batches is at least 2"):
        perturb_stored(folder, device="cpu", batches=1)
    with pytest.raises(ValueError, match="--batch-size is at least 1"):
        perturb_stored(folder, device="cpu", batch_size=0)


def test_masks_of_a_run_are_those_of_its_checkpoint_or_of_its_weights(folder: Path) -> None:
    model = load_stored(folder, device="cpu").model
    kept = stored_masks(folder, model)
    (folder / "checkpoint.pt").unlink()
    seen = stored_masks(folder, model)
    assert kept.keys() == seen.keys() <= trainable(model).keys()
    # A weight that was grown in the last step may still be zero.
    assert all(not (seen[name] & ~kept[name]).any() for name in kept)
    assert sum(int(mask.sum()) for mask in seen.values()) > 0
