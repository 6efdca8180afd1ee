"""The examples run, learn, and differ from the plain loop by a few lines."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))

# Lines that adoption adds or replaces: the import with its blank line, what is built, the loop,
# and the printed line of the sparse ones; titles are not counted.
CHANGED_LINES = {"corrector_only.py": 7, "topology_only.py": 5, "corrector_and_topology.py": 10}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_and_learns(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy (\d+\.\d) %", done.stdout)
    assert found
    assert float(found[1]) > 85.0


@pytest.mark.parametrize(("name", "most"), CHANGED_LINES.items())
def test_adoption_changes_a_few_lines(name: str, most: int) -> None:
    plain = (EXAMPLES / "plain.py").read_text().splitlines()[1:]
    other = (EXAMPLES / name).read_text().splitlines()[1:]
    changes = [line for line in difflib.ndiff(plain, other) if line.startswith("+ ")]
    assert 0 < len(changes) <= most, "\n".join(changes)


def test_every_example_but_the_plain_one_is_compared_with_it() -> None:
    assert {"plain.py", *CHANGED_LINES} == set(NAMES)
