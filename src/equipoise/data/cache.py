"""Images that took long to decode, kept as plain arrays."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from equipoise.data.files import Bytes, Labels

_FORMAT = "1"


def cached_arrays(
    folder: Path,
    name: str,
    fingerprint: Mapping[str, str],
    build: Callable[[], tuple[Bytes, Labels]],
) -> tuple[Bytes, Labels]:
    """Images and labels from the cache, or built and put there.

    Contract: a cache file that cannot be read in full (its CRC-32 is checked) is built again;
    it is replaced in one step, so another process never sees half of it.

    Args:
        folder: Of the cache; made when it is needed.
        name: Start of the file name, for people.
        fingerprint: Everything the arrays depend on, such as checksums of the sources.
        build: Makes the arrays.

    Returns:
        Images uint8 (num, channels, height, width) and labels int64 (num,).
    """
    lines = "\n".join(f"{key}={value}" for key, value in sorted(fingerprint.items()))
    digest = hashlib.sha256(f"{_FORMAT}\n{lines}".encode()).hexdigest()[:20]
    path = folder / f"{name}-{digest}.npz"
    stored = _load(path)
    if stored is not None:
        return stored
    images, labels = build()
    _store(path, images, labels)
    return images, labels


def _load(path: Path) -> tuple[Bytes, Labels] | None:
    """The arrays, or None where the file is absent or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except Exception:  # whatever is wrong with it, it can be built again
        return None


def _store(path: Path, images: Bytes, labels: Labels) -> None:
    """Writes the arrays next to their place and moves them there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                np.savez(file, images=images, labels=labels)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"The decoded images could not be kept in {path.parent} ({error}); set "
            "EQUIPOISE_CACHE to a folder that can be written, or they are decoded every time.",
            stacklevel=2,
        )
