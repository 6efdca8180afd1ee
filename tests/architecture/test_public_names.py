"""The public surface: small, documented, and lazily loaded."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import equipoise

SOURCE = Path(equipoise.__file__).parent
NAMES = [name for name in equipoise.__all__ if not name.startswith("__")]
ROOMS = ("attacks", "correction", "data", "models", "objectives", "reports", "topology", "training")


def test_the_surface_is_small() -> None:
    assert len(NAMES) <= 25


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_documented_with_an_example(name: str) -> None:
    thing = getattr(equipoise, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()) > 3, f"{name} needs a docstring"
    protocol = getattr(thing, "_is_protocol", False)
    assert protocol or "Example" in text, f"{name} needs an example that runs"


def test_type_checkers_see_the_same_names_as_users() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(NAMES)


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, equipoise; assert 'torch' not in sys.modules; equipoise.Constant"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Agent'"):
        _ = equipoise.Agent


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_class_and_public_function_has_a_docstring(room: str) -> None:
    importlib.import_module(f"equipoise.{room}")
    missing = []
    for path in (SOURCE / room).rglob("*.py"):
        tree = ast.parse(path.read_text())
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        public = [n for n in nodes if not n.name.startswith("_")]
        owners = {id(child): n for n in nodes for child in ast.walk(n) if child is not n}
        for node in public:
            hidden = id(node) in owners and owners[id(node)].name.startswith("_")
            inner = id(node) in owners and isinstance(owners[id(node)], ast.FunctionDef)
            if not hidden and not inner and ast.get_docstring(node) is None:
                missing.append(f"{path.name}:{node.name}")
    assert not missing


def test_files_stay_readable() -> None:
    """A file much longer than 300 lines needs a reason; the ceiling only falls."""
    ceiling = 500
    longest = {path: len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert max(longest.values()) <= ceiling, max(longest, key=lambda path: longest[path])
