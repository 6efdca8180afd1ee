"""Correction where layers keep their active weights only, and these change under it."""

from __future__ import annotations

import copy
import io
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.correction import Constant, GradientCorrector, LossCovariance
from equipoise.correction.overlap import Overlap
from equipoise.points import (
    position_names,
    positions_of,
    value_and_gradient_at,
    value_at,
)
from equipoise.topology.compact_weight import CompactWeight

layers: Any = import_module("tests.unit.topology.compact_layers")


def batches(num: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, generator=generator) for _ in range(num)]


def mask(shape: tuple[int, int], share: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        layers.Compact(torch.randn(8, 4), mask((8, 4), 0.5, 1), torch.randn(8)),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        layers.Compact(torch.randn(3, 8), mask((3, 8), 0.5, 2)),
    ).double()


def corrector_of(model: Any, coefficient: Any = None) -> GradientCorrector[Tensor]:
    return GradientCorrector(
        model, lambda x: model(x.double()).square().mean(), coefficient or Constant(1.0)
    )


def rewire(model: Any, share: float = 0.5, seed: int = 7) -> None:
    """Other active weights in the first layer, of another number."""
    store = CompactWeight(model[0])
    new = mask((8, 4), share, seed)
    store.replace_(new, new & ~store.mask, [])


def gradients(model: Any, batch: Any) -> dict[str, Tensor]:
    loss = model(batch.double()).square().mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def corrections(corrector: Any, model: Any, batch: Tensor) -> dict[str, Tensor]:
    """What the corrector adds to the gradient of one batch."""
    model.zero_grad()
    corrector.backward(batch)
    plain = gradients(model, batch)
    return {n: p.grad - plain[n] for n, p in model.named_parameters()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


# Points.


def test_positions_are_found_by_the_names_of_their_parameters() -> None:
    model = network()
    assert position_names(model) == {"0.values": "0.index", "3.values": "3.index"}
    assert positions_of(model)["3.values"] is model[3].index
    assert position_names(model[0]) == {"values": "index"}
    assert positions_of(nn.Linear(2, 2)) == {}


def test_other_meanings_of_the_attribute_are_passed_over() -> None:
    class Flagged(nn.Linear):
        compact = True

    class Method(nn.Linear):
        def compact(self) -> None:
            raise AssertionError

    model = nn.Sequential(Flagged(2, 2), Method(2, 2))
    assert positions_of(model) == position_names(model) == {}
    value_and_gradient_at(
        model, dict(model.named_parameters()), lambda: model(torch.ones(1, 2)).sum()
    )


def test_a_module_keeps_its_own_positions_in_a_pass_elsewhere() -> None:
    model = network()
    point = {n: p.detach().clone() for n, p in model.named_parameters()}
    x = batches(1)[0].double()
    for evaluate in (value_at, value_and_gradient_at):
        model[0].indices_seen.clear()
        evaluate(model, point, lambda: model(x).sum())
        assert model[0].indices_seen == [id(model[0].index)]


def test_a_point_may_bring_positions_of_its_own() -> None:
    model = network()
    other = copy.deepcopy(model)
    rewire(other, share=0.8)
    x = batches(1)[0].double()
    point = {n: p.detach() for n, p in other.named_parameters()}
    point |= {name: positions_of(other)[n] for n, name in position_names(other).items()}
    index = model[0].index
    value, gradient = value_and_gradient_at(model, point, lambda: model(x).square().mean())
    assert same(value_at(model, point, lambda: model(x).square().mean()), value)
    assert same(gradient, gradients(other, x))
    assert gradient["0.values"].shape == other[0].values.shape != model[0].values.shape
    assert model[0].index is index
    assert model[0].indices_seen == [id(other[0].index)] * 2


# The correction.


def test_at_the_snapshot_every_active_weight_is_corrected() -> None:
    model = network()
    corrector = corrector_of(model)
    corrector.refresh(batches())
    assert corrector.positions["0.values"] is model[0].index
    for name, tensor in corrector.full_gradient.items():
        expected = torch.stack([gradients(model, b)[name] for b in batches()]).mean(dim=0)
        torch.testing.assert_close(tensor, expected)
        assert tensor.shape == model.get_parameter(name).shape
    model.zero_grad()
    corrector.backward(batches()[0])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, corrector.full_gradient[name])


@pytest.mark.parametrize("share", [0.5, 0.2, 0.9])
def test_after_a_rewiring_the_correction_acts_on_what_was_and_is_active(share: float) -> None:
    model = network()
    corrector = corrector_of(model, Constant(0.7))
    corrector.refresh(batches())
    old = copy.deepcopy(model)
    old[0].gather_dense = None
    rewire(model, share)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    before, now = old[0].index.tolist(), model[0].index.tolist()
    both = [place for place in now if place in before]
    assert 0 < len(both) < len(now)
    here = torch.tensor([now.index(place) for place in both])
    there = torch.tensor([before.index(place) for place in both])
    total: dict[str, Any] = {}
    for batch in batches():
        added = corrections(corrector, model, batch)
        plain = gradients(old, batch)  # at the snapshot's own active weights
        for name, correction in added.items():
            expected = 0.7 * (corrector.full_gradient[name] - plain[name])
            if name == "0.values":
                whole = torch.zeros_like(correction)
                whole[here] = expected[there]
                expected = whole
                grown = torch.ones(len(now), dtype=torch.bool)
                grown[here] = False
                assert bool((correction[grown] == 0).all())
                assert bool((correction[here] != 0).any())
            torch.testing.assert_close(correction, expected, rtol=1e-9, atol=1e-12)
            total[name] = total.get(name, 0) + correction
    for name, correction in total.items():
        assert float(correction.abs().max()) < 1e-12, name
    assert "0.values" in total


def test_dense_parameters_beside_compact_ones_stay_corrected_without_bias() -> None:
    """Restricting the old weights to the new positions would change the old gradient of them."""
    model = network()
    corrector = corrector_of(model)
    corrector.refresh(batches())
    rewire(model)
    total = sum(corrections(corrector, model, batch)["0.bias"] for batch in batches())
    assert isinstance(total, Tensor)
    assert float(total.abs().max()) < 1e-12


def test_a_refresh_after_a_rewiring_takes_the_new_positions() -> None:
    model = network()
    corrector = corrector_of(model, LossCovariance())
    corrector.refresh(batches())
    rewire(model, share=0.8)
    x = batches(1)[0].double()
    old_losses: list[int] = []
    model[0].register_forward_hook(lambda m, a, o: old_losses.append(m.values.numel()))
    length = corrector.snapshot["0.values"].numel()
    corrector.refresh(batches(2))
    # The estimate compares losses at the new and at the old weights, each with its positions.
    assert old_losses == [model[0].values.numel(), length] * 2
    assert corrector.positions["0.values"] is model[0].index
    assert corrector.snapshot["0.values"].shape == model[0].values.shape
    assert corrector.full_gradient["0.values"].shape == model[0].values.shape
    assert torch.isfinite(model(x)).all()


def test_a_failed_refresh_changes_nothing() -> None:
    model = network()
    corrector = corrector_of(model)
    corrector.refresh(batches())
    before = corrector.state_dict()
    rewire(model, share=0.8)
    with pytest.raises(AttributeError):
        corrector.refresh([batches()[0], "no batch"])  # type: ignore[list-item]
    assert all(before[part] == corrector.state_dict()[part] for part in before)


def test_old_passes_do_not_touch_what_the_topology_watches() -> None:
    model = network()
    corrector = corrector_of(model)
    corrector.refresh(batches())
    seen: list[Tensor] = []
    handle = CompactWeight(model[0]).watch(lambda: True, seen.append)
    corrector.refresh(batches())
    assert seen == []
    corrector.backward(batches()[0])
    assert len(seen) == model[0].num_dense_gradients == 1
    handle.remove()


def test_positions_that_are_equal_become_one_tensor() -> None:
    """Layers know positions by identity; two equal lists would be prepared for twice."""
    model = network()
    corrector = corrector_of(model)
    corrector.refresh(batches())
    model[0].set_index_(model[0].index.clone())
    model.zero_grad()
    model[0].indices_seen.clear()
    corrector.backward(batches()[0])
    assert model[0].indices_seen == [id(model[0].index)] * 2
    assert corrector.positions["0.values"] is model[0].index


def test_an_idle_coefficient_lets_the_positions_go() -> None:
    model = network()
    corrector = corrector_of(model)
    corrector.refresh(batches())
    corrector.coefficient = Constant(0.0)
    corrector.refresh(batches())
    assert corrector.snapshot == {}
    assert corrector.positions == {}


# The state.


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_state_with_an_older_length_is_loaded_and_goes_on(share: float) -> None:
    model = network()
    corrector = corrector_of(model, Constant(0.7))
    corrector.refresh(batches())
    rewire(model, share)
    state = through_a_file(corrector.state_dict())
    other = copy.deepcopy(model)
    resumed = corrector_of(other, Constant(0.7))
    resumed.load_state_dict(state)
    assert same(resumed.state_dict(), corrector.state_dict())
    for batch in batches():
        corrector.backward(batch)
        resumed.backward(batch)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert same(a.grad, b.grad)
    state["positions"]["0.values"].zero_()
    assert not same(resumed.positions["0.values"], state["positions"]["0.values"])


def test_an_older_state_without_positions_is_loaded_into_a_dense_model() -> None:
    model = nn.Linear(4, 2)
    corrector: Any = GradientCorrector(model, lambda x: model(x).mean(), Constant(1.0))
    corrector.refresh(batches())
    state = corrector.state_dict()
    assert state.pop("positions") == {}
    corrector.load_state_dict(state)
    assert corrector.positions == {}


def test_positions_that_do_not_fit_are_refused_and_nothing_is_loaded() -> None:
    model = network()
    corrector = corrector_of(model)
    corrector.refresh(batches())
    good = corrector.state_dict()
    positions = good["positions"]
    first = positions["0.values"]
    cases: list[tuple[Any, str]] = [
        ({}, "positions does not fit this model at 0.values, 3.values;"),
        ({"0.values": first}, "positions does not fit this model at 3.values;"),
        (positions | {"1.weight": first}, "snapshot does not fit this model at 1.weight;"),
        (positions | {"7.values": first}, "positions does not fit this model at 7.values;"),
        (positions | {"0.values": first.flip(0)}, "positions does not fit this model at 0.values;"),
        (positions | {"0.values": first.int()}, "positions does not fit this model at 0.values;"),
        (positions | {"0.values": first[1:]}, "snapshot does not fit this model at 0.values;"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            corrector.load_state_dict(good | {"positions": wrong})
        assert corrector.positions == positions


# The overlap.

lists = st.sets(st.integers(0, 30)).map(lambda s: torch.tensor(sorted(s), dtype=torch.int64))


@settings(deadline=None, max_examples=100)
@given(there=lists, now=lists)
def test_numbers_are_carried_to_the_positions_that_both_have(there: Tensor, now: Tensor) -> None:
    numbers = torch.arange(1.0, there.numel() + 1)
    overlap = Overlap()
    by_position = dict(zip(there.tolist(), numbers.tolist(), strict=True))
    for _ in range(2):
        carried = overlap.carry("a", numbers, there, now)
        assert carried.tolist() == [by_position.get(place, 0.0) for place in now.tolist()]
    assert overlap.carry("a", numbers, there, there) is numbers
    assert overlap.carry("a", numbers, there, there.clone()) is numbers


def test_the_map_is_made_once_for_two_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    searchsorted = torch.searchsorted

    def counted(there: Tensor, now: Tensor) -> Tensor:
        calls.append(1)
        return searchsorted(there, now)

    monkeypatch.setattr(torch, "searchsorted", counted)
    overlap, numbers = Overlap(), torch.ones(2)
    there, now = torch.tensor([1, 4]), torch.tensor([1, 5])
    for _ in range(3):
        overlap.carry("a", numbers, there, now)
        overlap.carry("b", numbers, there, there)
    assert len(calls) == 1
    overlap.carry("a", numbers, there, torch.tensor([2, 4]))
    assert len(calls) == 2
