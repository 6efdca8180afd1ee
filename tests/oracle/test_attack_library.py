"""Our PGD is that of torchattacks, sample by sample, where that package is installed.

From the same starting points both take the same steps. They differ by rounding, which the sign
of a gradient near zero can make a whole step in single pixels.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("torchattacks", reason="compares with the package torchattacks")
agreement: Any = import_module("benchmarks.pgd_agreement")


@cache
def network() -> Any:
    x, y = agreement.digits()
    return agreement.trained_network(x, y, epochs=3), x[:64], y[:64]


@pytest.mark.parametrize("case", agreement.CASES, ids=str)
def test_the_same_images_and_the_same_answers(case: Any) -> None:
    model, x, y = network()
    found = agreement.compare(case, model, x, y)
    assert found.same_answers == len(y)
    assert found.pixels > 0.995
    assert found.largest[1] < 0.05
