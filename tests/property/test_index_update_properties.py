"""Lists that follow a rewiring: number by number those that are made afresh."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.test_engine_properties import Case, cases, layer_of
from torch import Tensor

from equipoise.engine.convolution import Plan
from equipoise.engine.lists import Changes, Former, SparseList, change_between

kit: Any = import_module("tests.unit.engine.engine_kit")

pytestmark = kit.needs_kernels

# Shares of the active weights that are dropped, and of those that are free that are grown.
shares = st.tuples(*[st.sampled_from([0.0, 0.02, 0.3, 1.0])] * 2)


def plan_of(case: Case, positions: Tensor, former: Former | None = None) -> Plan:
    g, wide = case.geometry, case.way.wide
    border = 0 if wide else g.gradient_border(case.rows, case.columns)
    return Plan(
        *(g, positions, case.way, case.rows, case.columns, 0 if wide else g.border, border),
        former=former,
    )


def lists_of(plan: Plan) -> dict[str, SparseList]:
    """All lists of a plan by name."""
    assert plan.forward_list is not None
    assert plan.weight_list is not None
    assert plan.phases
    return plan.made


def rewired(active: Tensor, size: int, dropped: float, grown: float, seed: int) -> Tensor:
    """Other positions: some are dropped, some that were free are grown."""
    generator = torch.Generator().manual_seed(seed)
    flags = torch.zeros(size, dtype=torch.bool)
    flags[active] = True
    chance = torch.where(flags, dropped, grown)
    return (flags ^ (torch.rand(size, generator=generator) < chance)).nonzero().squeeze(1)


def assert_same(got: SparseList, expected: SparseList) -> None:
    for part in fields(SparseList):
        a, b = getattr(got, part.name), getattr(expected, part.name)
        if isinstance(b, Tensor):
            assert torch.equal(a, b), part.name
        else:
            assert a == b, part.name


@settings(max_examples=100, deadline=None)
@given(cases(), st.lists(shares, min_size=1, max_size=4), st.integers(0, 2**20))
def test_updated_lists_are_those_made_afresh(
    case: Case, changes: list[tuple[float, float]], seed: int
) -> None:
    positions = case.index()
    plan = plan_of(case, positions)
    for number, (dropped, grown) in enumerate(changes):
        lists = dict(lists_of(plan))
        positions = rewired(positions, case.geometry.num_weights, dropped, grown, seed + number)
        former = Former(lists, Changes())
        former.worth_following = lambda change, active: True  # type: ignore[method-assign]
        plan = plan_of(case, positions, former)
        fresh = lists_of(plan_of(case, positions))
        updated = lists_of(plan)
        assert not former.lists, "every list is made from the one before it"
        assert updated.keys() == fresh.keys()
        for name, made in fresh.items():
            assert_same(updated[name], made)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_a_change_says_what_stays_and_what_comes(before: set[int], now: set[int]) -> None:
    old, new = sorted(before), sorted(now)
    change = change_between(torch.tensor(old, dtype=torch.int64), torch.tensor(new).long())
    assert change.places.tolist() == [new.index(p) if p in now else -1 for p in old]
    assert change.added.tolist() == sorted(now - before)
    assert change.added_places.tolist() == [new.index(p) for p in sorted(now - before)]


@settings(max_examples=25, deadline=None)
@given(cases(), st.lists(shares, min_size=1, max_size=3), st.integers(0, 2**20))
def test_a_rewired_layer_computes_what_a_new_one_does(
    case: Case, changes: list[tuple[float, float]], seed: int
) -> None:
    _, layer = layer_of(case)

    def run(of: Any) -> list[Tensor]:
        x = case.input().requires_grad_()
        y = of(x)
        y.backward(case.tensor(*y.shape, salt=4))
        assert x.grad is not None
        return [y.detach(), x.grad, of.values.grad]

    with kit.chosen(case.instructions):
        for number, (dropped, grown) in enumerate(changes):
            run(layer)
            index = rewired(layer.index, case.geometry.num_weights, dropped, grown, seed + number)
            layer.set_index_(index)
            layer.values = torch.nn.Parameter(case.tensor(len(index), salt=7))
            _, twin = layer_of(case)
            twin.set_index_(index)
            twin.values = torch.nn.Parameter(case.tensor(len(index), salt=7))
            assert all(map(torch.equal, run(layer), run(twin)))
