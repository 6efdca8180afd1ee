"""The list of properties in the documents names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "correction.md"


def rows() -> list[tuple[int, list[str]]]:
    found = re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|$", PAGE.read_text(encoding="utf-8"), re.M)
    return [(int(number), re.findall(r"`([^`]+)`", names)) for number, names in found]


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not in an installed package")
def test_every_property_has_a_test_that_is_there() -> None:
    assert [number for number, _ in rows()] == list(range(1, 31))
    for number, names in rows():
        assert names, number
        for name in names:
            path = name if "/" in name else f"unit/correction/{name}"
            text = (ROOT / "tests" / f"{path}.py").read_text(encoding="utf-8")
            assert "def test_" in text, name
