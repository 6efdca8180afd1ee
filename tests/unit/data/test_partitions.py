"""The same samples in the same batch for some epochs, the batches in another order each time."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

loader = import_module("tests.unit.data.test_image_loader").loader
same = import_module("tests.unit.data.test_image_loader").same


def by_key(made: Any, number: int) -> dict[int, Any]:
    return dict(zip(made.keys(number), made.epoch(number), strict=True))


@pytest.mark.parametrize(
    ("every", "again", "other"), [(3, [0, 1, 2], [3, 4, 5]), (0, [0, 1, 50], [])]
)
def test_batches_of_a_key_are_the_same_as_long_as_a_partition_holds(
    every: int, again: list[int], other: list[int]
) -> None:
    made = loader(partition_epochs=every, locked=True)
    first = by_key(made, 0)
    assert sorted(first) == [0, 1, 2, 3]
    for number in again:
        assert all(same(batch, first[key]) for key, batch in by_key(made, number).items())
    for number in other:
        found = by_key(made, number)
        assert not any(
            torch.equal(found[k].index.sort()[0], first[k].index.sort()[0]) for k in range(3)
        )


def test_the_order_of_batches_is_shuffled_and_every_sample_comes_once() -> None:
    made = loader(partition_epochs=0)
    orders = {made.keys(number) for number in range(20)}
    assert len(orders) > 10
    for number in range(3):
        rows = torch.cat([batch.index for batch in made.epoch(number)])
        assert sorted(rows.tolist()) == list(range(50))


def test_a_start_in_mid_epoch_continues_the_order() -> None:
    made = loader(partition_epochs=2)
    whole = list(made.epoch(1))
    assert all(map(same, made.epoch(1, start=2), whole[2:]))


def test_without_a_partition_nothing_has_changed() -> None:
    plain, locked = loader(), loader(partition_epochs=None, locked=True)
    assert plain.keys(7) == (0, 1, 2, 3)
    assert torch.equal(next(plain.epoch(2)).index, next(locked.epoch(2)).index)


def test_the_augmentation_changes_with_the_partition_where_it_is_locked() -> None:
    made = loader(partition_epochs=2, locked=True)
    rows = torch.cat([b.x[b.index.argsort()] for b in made.epoch(0)]).sum()
    again = torch.cat([b.x[b.index.argsort()] for b in made.epoch(1)]).sum()
    later = torch.cat([b.x[b.index.argsort()] for b in made.epoch(2)]).sum()
    torch.testing.assert_close(rows, again)
    assert abs(float(rows - later)) > 1e-3
