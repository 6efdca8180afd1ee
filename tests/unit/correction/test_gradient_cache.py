"""Stored batch gradients: the same numbers as a second pass, for one pass less."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import (
    Coefficient,
    Constant,
    GradientCache,
    GradientCorrector,
    LinearDecay,
    LossCovariance,
)
from equipoise.correction.cache import fingerprint
from equipoise.measure import unmeasured

STORES = pytest.mark.parametrize("store", ["memory", "disk"])


def build(*, dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1)
    )


def loss_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).square().mean()


def draw(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 4, generator=generator) for n in (6, 6, 3)]


def cache_for(store: str, folder: Path) -> GradientCache:
    return GradientCache(folder / "deep" / "gradients.bin" if store == "disk" else None)


def train(corrector: Any, model: nn.Module, epochs: int, *, scale: float = 1.0) -> Tensor:
    """All weights after some epochs with momentum; batches come in the order of the refresh."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        corrector.refresh(draw(epoch), scale=scale)
        for x in draw(epoch):
            optimizer.zero_grad()
            corrector.backward(x, scale=scale)
            for p in model.parameters():
                assert p.grad is not None
                p.grad.div_(scale)
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


COEFFICIENTS: dict[str, Callable[[], Coefficient]] = {
    "svrg": lambda: Constant(1.0),
    "agent": lambda: LossCovariance(scaling=1.0),
    "alpha_svrg": lambda: LinearDecay(0.9, 4),
}


@STORES
@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_the_trajectory_is_that_of_two_passes_to_the_bit(
    name: str, store: str, scale: float, tmp_path: Path
) -> None:
    """With BatchNorm and dropout: the refresh draws the random numbers that the epoch will."""
    ends = []
    for cache in (None, cache_for(store, tmp_path)):
        model = build()
        corrector = GradientCorrector(model, loss_of(model), COEFFICIENTS[name](), cache=cache)
        torch.manual_seed(5)
        ends.append(train(corrector, model, 4, scale=scale))
        assert corrector.cache is cache
    assert torch.equal(*ends)


@STORES
def test_a_step_makes_one_pass_and_the_cache_has_the_size_of_the_formula(
    store: str, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []

    def measure(part: str, /, **cost: Any) -> Any:
        told.append((part, cost.get("forwards", 0), cost.get("backwards", 0)))
        return unmeasured(part)

    model, cache = build(), cache_for(store, tmp_path)
    corrector = GradientCorrector(
        model, lambda x: model(x).mean(), Constant(1.0), cache=cache, measure=measure
    )
    corrector.refresh(draw())
    assert len(cache) == 3
    weights = sum(p.numel() for p in model.parameters())
    assert cache.num_bytes == 3 * weights * 4
    if store == "disk":
        assert (tmp_path / "deep" / "gradients.bin").stat().st_size == cache.num_bytes
    assert told == 3 * [("refresh", 1, 1)]
    told.clear()
    corrector.backward(draw()[0])
    assert told == [("new_gradient", 1, 1), ("old_gradient", 0, 0)]
    told.clear()
    corrector.backward(draw(99)[0])  # not a batch of the refresh: a pass, and the right numbers
    assert told == [("new_gradient", 1, 1), ("old_gradient", 1, 1)]


def test_batches_are_found_in_any_order() -> None:
    """Without random numbers in the model the order does not matter."""
    ends = []
    for cache in (None, GradientCache()):
        model = build(dropout=0.0)
        corrector = GradientCorrector(model, loss_of(model), Constant(1.0), cache=cache)
        corrector.refresh(draw())
        grads = []
        for x in reversed(draw()):
            model.zero_grad()
            corrector.backward(x)
            grads += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        ends.append(torch.cat([g.flatten() for g in grads]))
    assert torch.equal(*ends)


@STORES
@pytest.mark.parametrize("lost", [False, True])
def test_a_resumed_epoch_reads_what_was_stored_or_makes_the_pass(
    store: str, lost: bool, tmp_path: Path
) -> None:
    def started(folder: Path) -> tuple[nn.Module, Any, list[str]]:
        told: list[str] = []

        def measure(part: str, /, **cost: Any) -> Any:
            told.extend([part] * cost.get("backwards", 0))
            return unmeasured(part)

        model = build()
        corrector = GradientCorrector(
            model,
            lambda x: model(x).square().mean(),
            Constant(1.0),
            cache=cache_for(store, folder),
            measure=measure,
        )
        return model, corrector, told

    model, corrector, _ = started(tmp_path)
    corrector.refresh(draw())
    corrector.backward(draw()[0])
    file = io.BytesIO()
    torch.save([corrector.state_dict(), model.state_dict(), torch.get_rng_state()], file)
    model.zero_grad()
    corrector.backward(draw()[1])
    expected = [p.grad for p in model.parameters()]
    file.seek(0)
    saved, weights, stream = torch.load(file, weights_only=True)
    if lost and store == "disk":  # another refresh has written over it
        started(tmp_path)[1].refresh(draw(7))
    if lost and store == "memory":
        saved["cache"] = None
    other, resumed, told = started(tmp_path)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    torch.set_rng_state(stream)
    resumed.backward(draw()[1])
    assert told == ["new_gradient"] + ["old_gradient"] * lost
    for p, q in zip(other.parameters(), expected, strict=True):
        assert p.grad is not None
        assert q is not None
        assert torch.equal(p.grad, q)


def test_a_file_that_was_cut_short_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    cache = GradientCache(file)
    for number in range(3):
        cache.append({"w": torch.full((4,), float(number))}, [float(number)])
    assert torch.equal(cache.read([2.0])["w"], torch.full((4,), 2.0))  # type: ignore[index]
    file.write_bytes(file.read_bytes()[:-4])
    again = GradientCache(file)
    again.load_state_dict(cache.state_dict() | {"token": "other"})
    assert again.read([2.0]) is None


def test_gradients_of_changing_parameters_are_refused_and_missing_ones_are_0() -> None:
    cache = GradientCache()
    cache.append({"a": torch.ones(2), "b": torch.ones(1)}, [0.0])
    cache.append({"a": torch.ones(2)}, [1.0])
    assert torch.equal(cache.read([1.0])["b"], torch.zeros(1))  # type: ignore[index]
    with pytest.raises(ValueError, match="gradient of c is there for some batches only"):
        cache.append({"c": torch.ones(1)}, [2.0])


def test_fingerprints_tell_batches_apart() -> None:
    x, y = torch.rand(4, 3), torch.arange(4)
    assert fingerprint((x, y)) == fingerprint((x.clone(), y.clone()))
    assert fingerprint((x, y)) != fingerprint((x, y + 1))
    assert fingerprint((x, y)) != fingerprint((x[:3], y[:3]))
    assert fingerprint((x, y)) != fingerprint((x.t(), y))


def test_double_precision_is_kept() -> None:
    cache = GradientCache()
    third = torch.tensor([1.0], dtype=torch.float64) / 3
    cache.append({"w": third}, [0.0])
    assert torch.equal(cache.read([0.0])["w"], third)  # type: ignore[index]
    assert cache.num_bytes == 8


@STORES
def test_after_a_failed_refresh_no_gradient_of_another_snapshot_is_used(
    store: str, tmp_path: Path
) -> None:
    class Fault(Exception):
        """In the middle of a refresh."""

    def failing() -> Iterator[Tensor]:
        yield draw()[0]
        raise Fault

    grads = []
    for cache in (None, cache_for(store, tmp_path)):
        model = build(dropout=0.0)
        corrector = GradientCorrector(model, loss_of(model), Constant(1.0), cache=cache)
        corrector.refresh(draw())
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        with pytest.raises(Fault):
            corrector.refresh(failing())
        corrector.backward(draw()[0])
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
