"""Imports go one way between the rooms of the house; the table below is the whole rule."""

import ast
from pathlib import Path

import pytest

import equipoise

SOURCE = Path(equipoise.__file__).parent

# Room -> the parts of the house that it may import. Nothing else of equipoise is allowed.
ALLOWED = {
    "measure": set(),
    "notes": set(),
    "records": set(),
    "published": set(),
    "settings": set(),
    "validation": {"published", "settings"},
    "points": set(),
    "recipes": set(),
    "options": {"experiments", "recipes"},
    "arguments": {"settings"},
    "data": {"data"},
    "models": {"models"},
    "correction": {"correction", "points", "measure"},
    "topology": {"topology", "measure"},
    "engine": {"engine", "topology", "measure", "points"},
    "attacks": {"attacks", "points"},
    "objectives": {"objectives", "attacks", "data", "measure"},
    "reports": {"reports", "records"},
    "shipping": {"shipping", "records"},
    "speed": {
        "speed",
        "data",
        "engine",
        "models",
        "points",
        "records",
        "settings",
        "shipping",
        "topology",
        "training",
        "validation",
        "__init__",
    },
    "training": {
        "training",
        "arguments",
        "attacks",
        "correction",
        "topology",
        "objectives",
        "data",
        "engine",
        "models",
        "measure",
        "notes",
        "points",
        "published",
        "records",
        "settings",
        "shipping",
        "validation",
        "__init__",
    },
    "demos": {
        "demos",
        "arguments",
        "records",
        "reports",
        "settings",
        "showing",
        "speed",
        "training",
        "validation",
    },
    "experiments": {"experiments", "records", "settings"},
    "analyses": {
        "analyses",
        "correction",
        "data",
        "measure",
        "points",
        "records",
        "training",
    },
    "comparing": {"arguments", "options", "settings", "validation"},
    "pruning": {"pruning", "settings", "training", "validation"},
    "reproducing": {
        "reproducing",
        "analyses",
        "arguments",
        "attacks",
        "data",
        "engine",
        "experiments",
        "paper",
        "records",
        "reports",
        "settings",
        "showing",
        "training",
    },
    # Of the analyses the theory alone, which is without torch.
    "paper": {"paper", "analyses", "experiments", "records", "reports", "settings"},
    "listing": {"data", "models", "settings"},
    "showing": {"records", "reports"},
    "diagnosing": {"reports", "settings", "training"},
    "analysing": {"analyses", "options", "records", "reports", "showing"},
    "cli": {
        "analyses",
        "analysing",
        "arguments",
        "attacks",
        "comparing",
        "demos",
        "diagnosing",
        "listing",
        "notes",
        "options",
        "paper",
        "pruning",
        "recipes",
        "reports",
        "reproducing",
        "settings",
        "showing",
        "speed",
        "training",
        "validation",
        "__init__",
    },
    "__init__": {"correction", "engine", "shipping", "topology"},
    "__main__": {"cli"},
}

# What must answer without loading torch: help, lists, mistakes, reports.
WITHOUT_TORCH = (
    "experiments",
    "paper",
    "recipes",
    "records",
    "published",
    "settings",
    "validation",
    "options",
    "arguments",
    "comparing",
    "listing",
    "showing",
    "cli",
    "reports",
)


def room_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(tree: ast.AST) -> set[str]:
    rooms = set()
    for name in imported_modules(tree):
        parts = name.split(".")
        if parts[0] != "equipoise":
            continue
        known = len(parts) > 1 and parts[1] in ALLOWED
        if known:
            rooms.add(parts[1])
        elif len(parts) > 1:
            rooms.add("__init__")
    return rooms


def top_level(tree: ast.Module) -> ast.Module:
    """The module without function bodies and without what only type checkers read."""
    kept = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.Module(body=kept, type_ignores=[])


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_what_the_table_allows(path: Path) -> None:
    room = room_of(path)
    assert room in ALLOWED, f"{path} is a new room: decide what it may import"
    extra = rooms_imported(ast.parse(path.read_text())) - ALLOWED[room]
    assert not extra, f"{path} imports {sorted(extra)}, which {room} must not know"


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if room_of(p) in WITHOUT_TORCH],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_rooms_that_answer_at_once_do_not_load_torch(path: Path) -> None:
    names = imported_modules(top_level(ast.parse(path.read_text())))
    assert not {n for n in names if n.split(".")[0] in ("torch", "sklearn", "scipy", "matplotlib")}


def test_the_table_names_no_room_that_is_gone() -> None:
    assert set(ALLOWED) == {room_of(path) for path in FILES}


def test_the_rule_sees_a_violation() -> None:
    tree = ast.parse("from equipoise.training.loop import train\nimport equipoise.models")
    assert rooms_imported(tree) == {"training", "models"}
    assert rooms_imported(ast.parse("from equipoise import __version__")) == {"__init__"}
