"""A refresh sees the batches that it should, when it should."""

from __future__ import annotations

import itertools
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise.data import synthetic

toy = import_module("tests.unit.training.toy")


def mean_gradient(session: Any, batches: Any) -> Tensor:
    parts = [(batch.size, toy.gradient(session, batch)) for batch in batches]
    return sum(size * part for size, part in parts) / sum(size for size, _ in parts)


def full_gradient(session: Any) -> Tensor:
    return toy.flat(session.corrector.full_gradient[n] for n, _ in session.model.named_parameters())


def colourful() -> Any:
    """Large enough to be augmented, so that draws differ."""
    return synthetic(num_train=40, num_test=8, channels=3, image_size=8)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("draw", ["replay", "fresh"])
def test_the_full_gradient_is_the_mean_over_the_announced_batches(draw: str, locked: bool) -> None:
    changes = {"refresh_draw": draw, "locked": locked, "augment": "yes", "corrector": "svrg"}
    session = toy.session(colourful(), epochs=4, keep="all", **changes)
    toy.one_epoch(session)
    assert session.epoch == 1
    replay = list(session.loader.epoch(1))
    key = 0 if locked else 4 + 1
    fresh = list(session.loader.epoch(1, stream="refresh", draw=key))
    expected, other = mean_gradient(session, replay), mean_gradient(session, fresh)
    if draw == "fresh":
        expected, other = other, expected
    toy.begin_epoch(session)
    torch.testing.assert_close(full_gradient(session), expected, rtol=1e-4, atol=1e-6)
    assert float((full_gradient(session) - other).norm()) > 1e-3 * float(expected.norm())


def test_replayed_batches_are_those_of_the_epoch_to_the_bit() -> None:
    session = toy.session(colourful(), augment="yes", corrector="agent", accumulate=2)
    for _ in range(2):
        refresh = [tuple(batch) for batch in session.refresh_batches()]
        epoch = [tuple(batch) for group in session.batches() for batch in group]
        assert toy.differences(refresh, epoch) == []
        toy.one_epoch(session)


def test_fresh_batches_have_an_order_and_pictures_of_their_own() -> None:
    session = toy.session(colourful(), augment="yes", corrector="agent", refresh_draw="fresh")

    def pictures(batches: Any) -> dict[int, Tensor]:
        rows = ((batch.index.tolist(), batch.x) for batch in batches)
        return {r: x for index, xs in rows for r, x in zip(index, xs, strict=True)}

    trained = [pictures(session.loader.epoch(number)) for number in range(3)]
    refreshed = []
    for epoch in range(3):
        fresh = pictures(session.refresh_batches())
        assert sorted(fresh) == list(range(40))
        assert list(fresh) != list(trained[epoch])
        refreshed.append(fresh)
        toy.one_epoch(session)
    # Crops of so few pixels are alike now and then, but not often.
    for one, two in [*itertools.product(trained, refreshed), refreshed[:2], refreshed[1:]]:
        assert sum(torch.equal(one[row], two[row]) for row in range(40)) < 12


@pytest.mark.parametrize(("every", "expected"), [(1, 6), (2, 3), (4, 2), (6, 1), (99, 1)])
def test_snapshots_are_refreshed_every_so_many_epochs(every: int, expected: int) -> None:
    session = toy.session(corrector="svrg", refresh_every=every, epochs=6)
    due = []
    for _ in range(6):
        due.append(session.refresh_is_due)
        toy.one_epoch(session)
    assert due == [number % every == 0 for number in range(6)]
    assert session.corrector.num_refreshes == expected
    assert toy.session(corrector="svrg").refresh_is_due


def test_a_refresh_is_not_due_in_the_middle_of_an_epoch() -> None:
    session = toy.session(corrector="svrg")
    toy.first_steps(session, 1)
    assert not session.refresh_is_due
