"""CIFAR-10 and CIFAR-100 as Parquet files with encoded pictures (the Hugging Face layout)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.data.cache import cached_arrays
from equipoise.data.files import (
    Bytes,
    Labels,
    Request,
    checksum,
    image_set,
    import_extra,
    require_count,
)
from equipoise.data.images import Dataset, ImageSet, check_labels
from equipoise.data.pictures import open_picture, pixels

LABEL_COLUMN = {"cifar10": "label", "cifar100": "fine_label"}
_ROWS_AT_ONCE = 1000


def read_cifar_parquet(folder: Path, request: Request) -> Dataset | None:
    """Both splits from ``train*.parquet`` and ``test*.parquet``; None where there are none."""
    for place in (folder, folder / "plain_text", folder / "data"):
        train, test = (sorted(place.glob(f"{split}*.parquet")) for split in ("train", "test"))
        if train or test:
            _require_shards(place, "train", train)
            _require_shards(place, "test", test)
            return Dataset(
                _split("train", train, request.info.num_train, request),
                _split("test", test, request.info.num_test, request),
            )
    return None


def _require_shards(place: Path, split: str, shards: list[Path]) -> None:
    """Raises FileNotFoundError where a file of the split is missing, going by its numbering."""
    announced = [re.search(r"-of-(\d+)\.parquet$", path.name) for path in shards]
    expected = max((int(match[1]) for match in announced if match), default=1)
    if len(shards) < expected:
        raise FileNotFoundError(
            f"{place} has {len(shards)} of the {expected} files {split}*.parquet; copy the others "
            "there too."
        )


def _split(split: str, shards: list[Path], count: int | None, request: Request) -> ImageSet:
    """One split, from the cache where that has it."""
    info = request.info
    checksums = {path.name: checksum(path) for path in shards}
    images, labels = cached_arrays(
        request.cache_dir,
        f"{info.name}-{split}",
        {**checksums, "dataset": info.name},
        lambda: _decode(shards, count, request),
    )
    return image_set(info, images, labels, checksums)


def _decode(shards: list[Path], count: int | None, request: Request) -> tuple[Bytes, Labels]:
    """All images and labels of the shards, in order."""
    info = request.info
    column = LABEL_COLUMN[info.name]
    files = [_open(path, column, info.title) for path in shards]
    total = sum(file.metadata.num_rows for file in files)
    require_count(total, count, f"{shards[0].parent}/{shards[0].name.partition('-')[0]}*.parquet")
    assert info.image_size is not None
    images = np.empty((total, 3, info.image_size, info.image_size), np.uint8)
    labels = np.empty(total, np.int64)
    done = 0
    for path, file in zip(shards, files, strict=True):
        for encoded, numbers in _tables(file, column, path):
            for offset, source in enumerate(encoded, start=done):
                images[offset] = _image(source, f"Image {offset} of {path}", info.image_size)
            labels[done : done + len(numbers)] = numbers
            done += len(numbers)
            request.report(done, total)
        check_labels(torch.from_numpy(labels[:done]), len(info.classes), path)
    return images, labels


def _open(path: Path, column: str, title: str) -> Any:
    """The open file, once it is known to have the columns."""
    parquet = import_extra("pyarrow.parquet", "Reading Parquet files")
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a complete Parquet file ({error}); delete it and fetch it again."
        ) from error
    names = file.schema_arrow.names
    if "img" not in names or column not in names:
        raise ValueError(
            f"{path} has the columns {', '.join(names)}, where img and {column} were expected; "
            f"it is not a file of {title}, so keep each dataset in a folder of its own."
        )
    return file


def _tables(file: Any, column: str, path: Path) -> Iterator[tuple[list[bytes], Labels]]:
    """Encoded pictures and labels, some rows at a time."""
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["img", column]):
            yield batch.column("img").field("bytes").to_pylist(), np.asarray(batch.column(column))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read to its end ({error}); delete it and fetch it again."
        ) from error


def _image(source: bytes, name: str, size: int) -> Bytes:
    """One decoded picture of the expected size."""
    image = pixels(open_picture(source, name))
    if image.shape != (3, size, size):
        raise ValueError(
            f"{name} has {image.shape[1]} x {image.shape[2]} pixels, where {size} x {size} were "
            "expected; the file is of another dataset."
        )
    return image
