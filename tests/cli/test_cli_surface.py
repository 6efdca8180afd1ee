"""The commands and options that others rely on change on purpose only."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from equipoise import cli

SURFACE = Path(__file__).with_name("surface.txt")


def shown(kind: Any) -> str:
    """A type as a user sees it."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(map(shown, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{shown(get_args(kind)[0])} ..."
    return {int: "INT", float: "FLOAT", str: "STR", bool: "switch", Path: "PATH"}.get(kind, "None")


def surface() -> str:
    """One line a command, one line an option."""
    lines = []
    for command in cli._COMMANDS:
        lines.append(command)
        lines += [f"  --{name}  {shown(k)}" for name, k in sorted(cli._options(command).items())]
    return "\n".join(lines) + "\n"


def test_commands_and_options_are_those_of_the_list() -> None:
    now = surface()
    then = SURFACE.read_text(encoding="utf-8")
    added = [line for line in now.splitlines() if line not in then.splitlines()]
    removed = [line for line in then.splitlines() if line not in now.splitlines()]
    assert now == then, (
        f"the command line has changed (new: {added}, gone: {removed}); if that is on purpose, say "
        "so in the list of changes and write the new list with: "
        f"python tests/cli/{Path(__file__).name}"
    )


if __name__ == "__main__":
    SURFACE.write_text(surface(), encoding="utf-8")
