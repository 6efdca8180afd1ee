"""Folders of pictures: listing them, and decoding a small collection into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equipoise.data.cache import cached_arrays
from equipoise.data.catalogue import describe
from equipoise.data.files import Bytes, Labels, Request, image_set
from equipoise.data.images import Dataset, ImageSet, split_count
from equipoise.data.keyed import keyed_words
from equipoise.data.pictures import SUFFIXES, centre_box, cut, open_picture

_LARGEST_IN_MEMORY = 8 * 2**30
_INFO = describe("image_folder")


@dataclass(frozen=True, eq=False)
class FolderSet:
    """The pictures of one split, still encoded.

    Their order is fixed but mixed: if it followed the folders, the last rows would be one class.

    Args:
        name: Of the dataset.
        root: Folder of the split.
        paths: Of the pictures, relative to `root`.
        labels: int64, shape (num_samples,).
        classes: Names in the order of the labels.
        mean: Per channel, on the scale [0, 1].
        std: Per channel, on the same scale.
        checksums: One entry: SHA-256 over names, sizes and times of change, since reading
            every picture would take too long.
    """

    name: str
    root: Path
    paths: tuple[str, ...] = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksums: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, rows: int | Sequence[int]) -> FolderSet:
        """Some of the pictures; their row numbers start again from 0.

        Args:
            rows: Row numbers to keep, in that order; or a count, for the first so many.

        Raises:
            ValueError: A row number or the count is out of range.
        """
        chosen = range(rows) if isinstance(rows, int) else rows
        if not chosen or not 0 <= min(chosen) <= max(chosen) < len(self):
            raise ValueError(
                f"A subset of {self.root} was asked for {rows}, which does not lie within its "
                f"{len(self)} pictures; pass a count or row numbers."
            )
        index = torch.tensor(list(chosen))
        paths = tuple(self.paths[row] for row in chosen)
        return replace(self, paths=paths, labels=self.labels[index])

    def split(self, validation_fraction: float) -> tuple[FolderSet, FolderSet]:
        """Cuts a validation set off the end: the last rows of the mixed order.

        Args:
            validation_fraction: In (0, 1).

        Returns:
            The training part and the validation part.

        Raises:
            ValueError: The fraction is out of range or leaves one part empty.
        """
        cut_at = len(self) - split_count(len(self), validation_fraction)
        return self.subset(range(cut_at)), self.subset(range(cut_at, len(self)))


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """Both splits of a folder of pictures.

    Args:
        train: For training.
        test: For evaluation.
    """

    train: FolderSet
    test: FolderSet


def open_folder(root: Path | str) -> FolderDataset:
    """Lists ``root/train/CLASS/*`` and ``root/val/CLASS/*`` (or ``root/test/CLASS/*``).

    Nothing is decoded. Where both exist, ``val`` is taken: ImageNet's ``test`` has no labels.

    Args:
        root: Folder with the two splits.

    Returns:
        Both splits, normalised by the statistics of ImageNet.

    Raises:
        FileNotFoundError: A split or all of its pictures are missing.
        ValueError: The test split has a class that the training split lacks.
    """
    root = Path(root).expanduser()
    folders = [root / name for name in ("train", "val", "test") if (root / name).is_dir()]
    if len(folders) < 2 or folders[0].name != "train":
        raise FileNotFoundError(
            f"{root} lacks the folder train, or both val and test; expected {_INFO.files}."
        )
    classes = _class_names(folders[0])
    unknown = sorted(set(_class_names(folders[1])) - set(classes))
    if unknown:
        raise ValueError(
            f"{folders[1]} has the class {unknown[0]!r}, which {folders[0]} lacks; name the "
            "folders of both splits alike."
        )
    return FolderDataset(_listed(folders[0], classes), _listed(folders[1], classes))


def read_image_folder(folder: Path, request: Request) -> Dataset | None:
    """Both splits decoded into memory as centred squares; None where there is no ``train``.

    Raises:
        ValueError: No size was asked for, or the images do not fit into memory.
    """
    if not (folder / "train").is_dir() or not _class_names(folder / "train"):
        return None
    size = request.image_size
    if size is None:
        raise ValueError(
            f"The pictures in {folder} have no common size; pass image_size, or stream them with "
            "FolderLoader(open_folder(...).train)."
        )
    listed = open_folder(folder)
    needed = 3 * size * size * (len(listed.train) + len(listed.test))
    if needed > _LARGEST_IN_MEMORY:
        raise ValueError(
            f"The pictures in {folder} need {needed / 2**30:.0f} GiB in memory at image_size="
            f"{size}; pass a smaller one, or stream them with FolderLoader(open_folder(...).train)."
        )
    return Dataset(_decoded(listed.train, size, request), _decoded(listed.test, size, request))


def _class_names(folder: Path) -> tuple[str, ...]:
    """Names of the subfolders, sorted."""
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def _listed(folder: Path, classes: tuple[str, ...]) -> FolderSet:
    """The pictures of one split."""
    digest = hashlib.sha256()
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                status = path.stat()
                relative = path.relative_to(folder).as_posix()
                digest.update(f"{relative} {status.st_size} {status.st_mtime_ns}\n".encode())
                paths.append(relative)
                labels.append(label)
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no pictures in its class folders; expected {_INFO.files}."
        )
    words = keyed_words(torch.arange(len(paths)), seed=0, key=0, stream="folder order")
    order = words.argsort(stable=True)
    return FolderSet(
        _INFO.name,
        folder,
        tuple(paths[row] for row in order.tolist()),
        torch.tensor(labels)[order],
        classes,
        mean=_INFO.mean,
        std=_INFO.std,
        checksums={f"listing of {folder.name}": digest.hexdigest()},
    )


def _decoded(listed: FolderSet, size: int, request: Request) -> ImageSet:
    """One split in memory, from the cache where that has it."""

    def build() -> tuple[Bytes, Labels]:
        images = np.empty((len(listed), 3, size, size), np.uint8)
        for row, relative in enumerate(listed.paths):
            picture = open_picture(listed.root / relative, listed.root / relative)
            images[row] = cut(picture, centre_box(*picture.size), size)
            request.report(row + 1, len(listed))
        return images, listed.labels.numpy()

    fingerprint = {**listed.checksums, "root": str(listed.root.resolve()), "size": str(size)}
    name = f"{listed.name}-{listed.root.name}-{size}"
    images, labels = cached_arrays(request.cache_dir, name, fingerprint, build)
    info = replace(request.info, classes=listed.classes)
    return image_set(info, images, labels, listed.checksums)
