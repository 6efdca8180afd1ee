"""The number of samples in batches of every shape that loaders produce."""

from __future__ import annotations

import enum
from collections import OrderedDict, UserDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from equipoise.correction import num_samples

X = torch.zeros(7, 3)
Y = torch.zeros(5)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Record:
    x: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True)
class Slotted:
    name: str
    x: Tensor


class Plain:
    def __init__(self, *parts: Any) -> None:
        self.name = "plain"
        self.parts = parts


class Metric:
    """A class, not a record; what it holds belongs to no batch."""

    table = torch.zeros(99)


class Task(enum.Enum):
    ANSWER = 1
    CHOOSE = 2


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X, Y),
        [X, Y],
        deque([X, Y]),
        {"x": X, "y": Y},
        OrderedDict(x=X, y=Y),
        UserDict(x=X, y=Y),
        Pair(X, Y),
        Record(X, Y),
        Slotted("name", X),
        Plain(X, Y),
        ["name", (3, {"a": None, "b": [X]}), Y],
        (b"bytes", 1.0, None, X),
        {"task": Task.CHOOSE, "x": X},
        {"kind": Metric, "x": X},
        {"ids": [], "x": X},
        Pair(Record(X, Y), Y),  # type: ignore[arg-type]
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_the_first_tensor_counts(batch: Any) -> None:
    assert num_samples(batch) == 7.0


@pytest.mark.parametrize(
    "batch", ["text", b"bytes", 3, None, [], {}, ["a", "b"], Task.ANSWER, Tensor, torch.tensor(2.0)]
)
def test_without_a_first_dimension_a_batch_is_one_sample(batch: Any) -> None:
    assert num_samples(batch) == 1.0


def test_labels_alone_are_a_batch() -> None:
    assert num_samples(Y) == num_samples([Y]) == 5.0


def test_an_empty_batch_has_no_samples() -> None:
    assert num_samples(torch.zeros(0, 3)) == 0.0


def test_the_result_is_a_float() -> None:
    assert type(num_samples(X)) is float


def test_a_batch_that_contains_itself_ends() -> None:
    inner: list[Any] = []
    inner.append(inner)
    owner = Plain()
    owner.parts = (owner, inner)
    assert num_samples(owner) == 1.0
    owner.parts = (owner, inner, X)
    assert num_samples(owner) == 7.0


def test_the_search_stops_at_the_first_tensor() -> None:
    class Lazy(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield X
            raise AssertionError("searched on")

    assert num_samples(Lazy([0, 1])) == 7.0
