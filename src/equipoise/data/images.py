"""A split of a dataset that lies in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels of one split, as bytes, in the order of the files.

    Contract: methods return new sets and share the tensors where they can; nothing is changed.

    Args:
        name: Of the dataset, for example ``"cifar10"``.
        images: uint8, shape (num_samples, channels, height, width).
        labels: int64, shape (num_samples,), each in [0, number of classes).
        classes: Names in the order of the labels.
        mean: Per channel, on the scale [0, 1].
        std: Per channel, on the same scale; positive.
        checksums: File name to SHA-256 of every file that was read, for the manifest of a run.

    Raises:
        ValueError: Shapes, types, labels or statistics do not fit together.

    Example:
        >>> images = torch.zeros(10, 1, 4, 4, dtype=torch.uint8)
        >>> labels = torch.arange(10) % 2
        >>> whole = ImageSet("toy", images, labels, ("even", "odd"), mean=(0.0,), std=(1.0,))
        >>> train, validation = whole.split(0.2)
        >>> len(train), len(validation), train.resized(2).image_size
        (8, 2, 2)
    """

    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksums: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"The images of {self.name!r} are {self.images.dtype} of shape "
                f"{tuple(self.images.shape)}; pass uint8 of shape (num, channels, height, width)."
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"The labels of {self.name!r} are {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}; pass int64 of shape ({len(self)},)."
            )
        check_labels(self.labels, len(self.classes), self.name)
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(
                f"mean={self.mean} and std={self.std} do not fit {self.channels} channels; "
                "pass one mean and one positive std per channel."
            )

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        return int(self.images.shape[1])

    @property
    def image_size(self) -> int:
        """Height in pixels; the readers give square images only."""
        return int(self.images.shape[2])

    def subset(self, rows: int | Sequence[int] | Tensor) -> ImageSet:
        """Some of the samples; their row numbers start again from 0.

        Args:
            rows: Row numbers to keep, in that order; or a count, for the first so many.

        Raises:
            ValueError: A row number or the count is out of range.
        """
        if isinstance(rows, int):
            if not 0 < rows <= len(self):
                raise ValueError(
                    f"A subset of {rows} was asked of the {len(self)} samples of {self.name!r}; "
                    f"pass a count in [1, {len(self)}]."
                )
            return replace(self, images=self.images[:rows], labels=self.labels[:rows])
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.images.device)
        if index.ndim != 1 or (index.numel() and not 0 <= index.min() <= index.max() < len(self)):
            raise ValueError(
                f"The rows of a subset of {self.name!r} do not lie in [0, {len(self)}); "
                "pass a flat list of row numbers."
            )
        return replace(self, images=self.images[index], labels=self.labels[index])

    def split(self, validation_fraction: float) -> tuple[ImageSet, ImageSet]:
        """Cuts a validation set off the end: the last rows, without shuffling.

        Args:
            validation_fraction: In (0, 1); 0.1 of CIFAR-10 is the usual 45,000 and 5,000.

        Returns:
            The training part and the validation part.

        Raises:
            ValueError: The fraction is out of range or leaves one part empty.
        """
        cut = len(self) - split_count(len(self), validation_fraction)
        return (
            replace(self, images=self.images[:cut], labels=self.labels[:cut]),
            replace(self, images=self.images[cut:], labels=self.labels[cut:]),
        )

    def resized(self, image_size: int) -> ImageSet:
        """Smaller images: each pixel is the rounded mean of a square block of pixels.

        Contract: exact integer arithmetic, so the result is the same everywhere; `mean` and
        `std` stay as they are.

        Args:
            image_size: A divisor of the present height and width.

        Raises:
            ValueError: It is not a divisor.
        """
        height, width = self.images.shape[2:]
        if image_size < 1 or height % image_size or width % image_size:
            raise ValueError(
                f"image_size={image_size} does not divide the {height} x {width} pixels of "
                f"{self.name!r}; pass a divisor."
            )
        if height == width == image_size:
            return self
        images = torch.cat([_block_means(part, image_size) for part in self.images.split(4096)])
        return replace(self, images=images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The two published splits of a dataset.

    Args:
        train: For training; `ImageSet.split` cuts a validation set off it.
        test: For the final evaluation only.
    """

    train: ImageSet
    test: ImageSet


def check_labels(labels: Tensor, num_classes: int, source: object) -> None:
    """Raises ValueError where a label is outside [0, num_classes)."""
    if labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"The labels of {source} run from {low} to {high}, where [0, {num_classes}) was "
            "expected; the file is not of this dataset or is damaged."
        )


def split_count(num_samples: int, validation_fraction: float) -> int:
    """Number of validation samples; both parts get at least one."""
    count = math.floor(num_samples * validation_fraction + 0.5)
    if not 0 < validation_fraction < 1 or not 0 < count < num_samples:
        raise ValueError(
            f"validation_fraction={validation_fraction} of {num_samples} samples leaves a part "
            "empty; pass the fraction for validation, in (0, 1)."
        )
    return count


def _block_means(images: Tensor, size: int) -> Tensor:
    """Rounded means over blocks; (n, c, h, w) to (n, c, size, size)."""
    count, channels, height, width = images.shape
    rows, columns = height // size, width // size
    area = rows * columns
    sums = torch.full((count, channels, size, size), area // 2, dtype=torch.int32)
    sums = sums.to(images.device)
    for row in range(rows):
        for column in range(columns):
            sums += images[:, :, row::rows, column::columns]
    return sums.div_(area, rounding_mode="floor").to(torch.uint8)
