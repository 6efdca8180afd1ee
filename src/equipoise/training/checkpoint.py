"""Checkpoints: written whole or not at all, read back without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` to `path` in one step: a reader, or a kill, sees the old file or the new.

    Args:
        path: Its folder is made if needed.
        state: Plain dictionaries, lists, tensors, numbers and strings.
    """
    save_whole(path, {"format": FORMAT, **state})


def save_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as torch does, but in one step: the old file stays until the new is whole.

    Args:
        path: Its folder is made if needed.
        content: Plain dictionaries, lists, tensors, numbers and strings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; never executes anything that is in the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or of another format.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no checkpoint at {path}; pass the folder that a training wrote."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for many kinds of damage
        raise ValueError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}); "
            "delete it and run the same command to start again."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        got = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{path} has checkpoint format {got}, expected {FORMAT}; "
            "use the version of equipoise that wrote it."
        )
    del state["format"]
    return state
