import math
from typing import Any

import pytest
import torch

from equipoise.topology.masks import (
    bernoulli_mask,
    density,
    drop_and_grow,
    num_to_replace,
    random_mask,
    top_k_mask,
)


def by_sorting(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The definition: the first k of a stable sort, NaN last among equals of minus infinity."""
    values = [-math.inf if math.isnan(s) else s for s in scores.flatten().tolist()]
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[order] = True
    return mask.view(scores.shape)


@pytest.mark.parametrize("k", [0, 1, 7, 59, 60])
@pytest.mark.parametrize("kind", ["distinct", "ties", "nan", "infinite", "equal"])
def test_top_k_is_the_stable_sort(kind: Any, k: Any) -> None:
    generator = torch.Generator().manual_seed(k)
    scores = torch.rand(3, 4, 5, generator=generator)
    if kind == "ties":
        scores = (scores * 3).floor()
    if kind == "nan":
        scores[scores < 0.5] = math.nan
    if kind == "infinite":
        scores[scores < 0.3] = -math.inf
        scores[scores > 0.7] = math.inf
    if kind == "equal":
        scores.fill_(2.0)
    before = scores.clone()
    mask = top_k_mask(scores, k)
    assert torch.equal(mask, by_sorting(scores, k))
    assert int(mask.sum()) == k
    assert mask.dtype == torch.bool
    assert torch.equal(scores.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
)
def test_top_k_takes_every_real_dtype(dtype: Any) -> None:
    scores = torch.tensor([3, 1, 3, 2, 3], dtype=dtype)
    assert top_k_mask(scores, 2).tolist() == [True, False, True, False, False]


def test_ties_are_broken_in_row_major_order_whatever_the_memory_layout() -> None:
    scores = (torch.rand(4, 6, 3, 3, generator=torch.Generator().manual_seed(0)) * 4).floor()
    laid_out = scores.to(memory_format=torch.channels_last)
    assert torch.equal(top_k_mask(scores, 50), top_k_mask(laid_out, 50))


@pytest.mark.parametrize("k", [-1, 5])
def test_an_impossible_k_is_refused(k: Any) -> None:
    with pytest.raises(ValueError, match=rf"k is a number of entries in \[0, 4\]; got {k}\."):
        top_k_mask(torch.zeros(2, 2), k)


KNOWN_ANSWERS = [
    (0.0, [0, 1, 0, 1, 0, 1, 1, 0]),
    (0.25, [1, 1, 0, 1, 0, 1, 0, 0]),
    (0.5, [1, 1, 0, 0, 1, 1, 0, 0]),
    (0.75, [1, 0, 1, 0, 1, 1, 0, 0]),
    (1.0, [1, 0, 1, 0, 1, 1, 0, 0]),
]


@pytest.mark.parametrize(("fraction", "expected"), KNOWN_ANSWERS)
def test_drop_and_grow_reproduces_the_known_answers(fraction: Any, expected: Any) -> None:
    mask = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0]).bool()
    weight = torch.tensor([-9.0, 1, 4, -1, 5, 8, -2, 3])
    # These answers keep the sign of the weight when dropping, and its size when growing.
    new, grown = drop_and_grow(mask, weight, weight.abs(), num_to_replace(fraction, 4))
    assert new.int().tolist() == expected
    assert int(grown.sum()) == int(fraction * 4)
    assert bool((new[grown]).all())


def test_a_dropped_and_regrown_entry_counts_as_grown() -> None:
    mask = torch.tensor([True, True, False, False])
    drop, grow = torch.tensor([1.0, 2, 0, 0]), torch.tensor([9.0, 0, 1, 1])
    new, grown = drop_and_grow(mask, drop, grow, 1)
    assert new.tolist() == mask.tolist()
    assert grown.tolist() == [True, False, False, False]


@pytest.mark.parametrize("asked", [0, 3, 100])
def test_a_dense_mask_is_left_alone(asked: Any) -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    new, grown = drop_and_grow(mask, torch.rand(2, 5), torch.rand(2, 5), asked)
    assert bool(new.all())
    assert not bool(grown.any())


def test_no_more_is_replaced_than_is_inactive_or_active() -> None:
    mask = torch.tensor([True] * 7 + [False] * 3)
    new, grown = drop_and_grow(mask, torch.arange(10.0), torch.arange(10.0), 5)
    assert (int(new.sum()), int(grown.sum())) == (7, 3)
    new, grown = drop_and_grow(~mask, torch.arange(10.0), torch.arange(10.0), 5)
    assert (int(new.sum()), int(grown.sum())) == (3, 3)


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_scores_without_order_do_not_change_the_count(bad: Any) -> None:
    mask = torch.tensor([False, False, True, True, True, False])
    scores = torch.full((6,), bad)
    new, grown = drop_and_grow(mask, scores, scores, 2)
    assert (int(new.sum()), int(grown.sum())) == (3, 2)
    assert bool(new[2]), "the survivor is the active entry with the lowest index"
    assert not bool(grown[2])


def test_drop_and_grow_changes_no_argument() -> None:
    mask = torch.tensor([True, False, True, False])
    drop, grow = torch.rand(4), torch.rand(4)
    before = mask.clone(), drop.clone(), grow.clone()
    drop_and_grow(mask, drop, grow, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, (mask, drop, grow), strict=True))


@pytest.mark.parametrize(
    ("fraction", "active", "expected"),
    [
        (0.1, 30, 3),
        (0.29, 100, 29),
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.3, 9, 2),
        (0.0, 9, 0),
        (1, 9, 9),
    ],
)
def test_the_number_replaced_is_the_floor_without_rounding_accidents(
    fraction: Any, active: Any, expected: Any
) -> None:
    assert num_to_replace(fraction, active) == expected


def test_random_masks_are_exact_and_depend_on_the_seed_only() -> None:
    one = random_mask((7, 9), 20, torch.Generator().manual_seed(3))
    two = random_mask((7, 9), 20, torch.Generator().manual_seed(3))
    other = random_mask((7, 9), 20, torch.Generator().manual_seed(4))
    assert int(one.sum()) == 20
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_bernoulli_masks_vary_around_the_density_and_are_never_empty() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [int(bernoulli_mask((50, 20), 0.1, generator).sum()) for _ in range(50)]
    assert len(set(counts)) > 1
    assert abs(sum(counts) / 50 - 100) < 5
    assert int(bernoulli_mask((50, 20), 0.0, generator).sum()) == 1


def test_density_is_over_all_entries_together() -> None:
    masks = {"a": torch.ones(10, dtype=torch.bool), "b": torch.zeros(30, dtype=torch.bool)}
    assert density(masks) == 0.25
