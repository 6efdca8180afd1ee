"""IDX files, in which the MNIST family is published."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from equipoise.data.files import Bytes, Request, image_set, require_count, require_md5
from equipoise.data.images import Dataset, ImageSet, check_labels

_UNSIGNED_BYTE = 0x08
# Of the uncompressed files: distributions compress them again.
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def read_fashion_mnist(folder: Path, request: Request) -> Dataset | None:
    """Both splits from four IDX files; None where `folder` has none of them."""
    if not any(_locate(folder, name) for name in FASHION_MNIST_MD5):
        return None
    return Dataset(_split(folder, "train", request), _split(folder, "t10k", request))


def parse_idx(content: bytes, num_dimensions: int, path: Path) -> Bytes:
    """The array in an uncompressed IDX file of unsigned bytes.

    Args:
        content: The whole file.
        num_dimensions: 1 for labels, 3 for grey images.
        path: For messages.

    Raises:
        ValueError: The magic number or the length is wrong.
    """
    magic = bytes((0, 0, _UNSIGNED_BYTE, num_dimensions))
    if content[:4] != magic:
        raise ValueError(
            f"{path} starts with the bytes {content[:4].hex()}, where {magic.hex()} marks an IDX "
            f"file of {num_dimensions} dimensions; pass the original file."
        )
    start = 4 + 4 * num_dimensions
    if len(content) < start:
        raise ValueError(f"{path} ends within its header; delete it and fetch it again.")
    shape = struct.unpack(f">{num_dimensions}I", content[4:start])
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"{path} holds {len(content) - start} bytes of data, where its header announces "
            f"{math.prod(shape)}; it is truncated or damaged, so delete it and fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _locate(folder: Path, name: str) -> Path | None:
    """The file, plain or gzipped."""
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _split(folder: Path, part: str, request: Request) -> ImageSet:
    """One split."""
    checksums: dict[str, str] = {}
    images, path = _read(folder, f"{part}-images-idx3-ubyte", 3, request, checksums)
    plain, label_path = _read(folder, f"{part}-labels-idx1-ubyte", 1, request, checksums)
    labels = plain.astype(np.int64)
    check_labels(torch.from_numpy(labels), len(request.info.classes), label_path)
    require_count(len(labels), len(images), label_path)
    expected = request.info.num_train if part == "train" else request.info.num_test
    require_count(len(images), expected, path)
    return image_set(request.info, images[:, None], labels, checksums)


def _read(
    folder: Path, name: str, num_dimensions: int, request: Request, checksums: dict[str, str]
) -> tuple[Bytes, Path]:
    """One verified file and its path; its SHA-256 is added to `checksums`."""
    path = _locate(folder, name)
    if path is None:
        raise FileNotFoundError(
            f"{name} (plain or .gz) is missing in {folder}, where other files of "
            f"{request.info.title} lie; copy it there too."
        )
    content = path.read_bytes()
    checksums[path.name] = hashlib.sha256(content).hexdigest()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is not a complete gzip file ({error}); delete it and fetch it again."
            ) from error
    array = parse_idx(content, num_dimensions, path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    require_md5(found, FASHION_MNIST_MD5[name], path)
    return array, path
