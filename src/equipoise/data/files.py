"""What the readers of file formats share: checksums, extras, and the set made in the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.data.catalogue import DatasetInfo
from equipoise.data.images import ImageSet

Progress = Callable[[int, int], None]
Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be read, and how.

    Args:
        info: The dataset.
        cache_dir: Where decoded images are kept.
        on_progress: Called with (done, total) images while they are decoded.
        image_size: Height and width for sources that have no size of their own.
    """

    info: DatasetInfo
    cache_dir: Path
    on_progress: Progress | None = None
    image_size: int | None = None

    def report(self, done: int, total: int) -> None:
        """Passes progress on, if anyone wants it."""
        if self.on_progress is not None:
            self.on_progress(done, total)


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm)).hexdigest()


def require_md5(found: str, published: str, path: Path) -> None:
    """Raises ValueError where a file is not bit for bit the published one."""
    if found != published:
        raise ValueError(
            f"{path} has MD5 {found}, where {published} is published; it is damaged or incomplete, "
            "so delete it and fetch it again."
        )


def require_files(paths: Iterable[Path], info: DatasetInfo) -> None:
    """Raises FileNotFoundError for the first file that is not there."""
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.name} is missing in {path.parent}, where other files of {info.title} lie; "
                "copy it there too."
            )


def require_count(count: int, expected: int | None, source: object) -> None:
    """Raises ValueError where a split does not have its published size."""
    if expected is not None and count != expected:
        raise ValueError(
            f"{source} has {count} images, where {expected} were expected; a file is incomplete, "
            "missing or of another dataset."
        )


def import_extra(module: str, purpose: str) -> ModuleType:
    """Imports a package of the extra `data`.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {module.partition('.')[0]}, which is not installed; "
            'run: pip install "equipoise[data]".',
            name=error.name,
        ) from error


def image_set(
    info: DatasetInfo, images: Bytes, labels: Labels, checksums: Mapping[str, str]
) -> ImageSet:
    """Wraps arrays that were read from the files of a dataset."""
    return ImageSet(
        info.name,
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels)),
        info.classes,
        mean=info.mean,
        std=info.std,
        checksums=dict(checksums),
    )
