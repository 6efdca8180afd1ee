"""What the README and the documents show is run."""

import re
import shlex
from pathlib import Path

import pytest

from equipoise import cli

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "results").rglob("*.md")),
]


def blocks(path: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(path.read_text()) if found == language]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run_one_after_another(path: Path) -> None:
    scope: dict[str, object] = {}
    for code in blocks(path, "python"):
        exec(compile(code, str(path), "exec"), scope)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_shell_blocks_have_valid_words(path: Path) -> None:
    for code in blocks(path, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "equipoise":
                cli._check(cli._named(words[1:]))


def test_the_readme_has_something_to_run() -> None:
    assert len(blocks(ROOT / "README.md", "python")) >= 2
    assert len(blocks(ROOT / "README.md", "sh")) >= 2


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_target_that_the_readme_names_is_in_the_makefile() -> None:
    targets = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_relative_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"
