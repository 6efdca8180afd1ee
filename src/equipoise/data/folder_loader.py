"""Batches of pictures that are decoded while training goes on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equipoise.data.augmentation import normalise
from equipoise.data.batch import Batch
from equipoise.data.folder import FolderSet
from equipoise.data.keyed import keyed_uniform
from equipoise.data.loader import EpochOrder
from equipoise.data.pictures import Box, centre_box, cut, open_picture

_ATTEMPTS = 10
_AHEAD = 2  # batches in the making per worker


@dataclass(frozen=True, kw_only=True)
class ResizedCrop:
    """A random part of the picture, resized to a square, and mirrored half of the time.

    Args:
        smallest_area: Smallest share of the picture's area, in (0, 1].
        largest_ratio: Largest ratio of the longer to the shorter side, 1 or more.
        flip: Whether half of the pictures are mirrored left to right.

    Raises:
        ValueError: A value is out of range.

    References:
        Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6.
    """

    smallest_area: float = 0.08
    largest_ratio: float = 4 / 3
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.smallest_area <= 1 or self.largest_ratio < 1:
            raise ValueError(
                f"smallest_area={self.smallest_area} and largest_ratio={self.largest_ratio} are "
                "out of range; pass an area in (0, 1] and a ratio of 1 or more."
            )


class FolderLoader:
    """The counterpart of `ImageLoader` for collections that do not fit into memory.

    Pictures are decoded by threads (Pillow works outside of Python's global lock). Order,
    crops and flips are keyed as in `ImageLoader`, so that batches depend neither on the number
    of workers nor on a global generator.

    Args:
        images: One split, from `open_folder`.
        batch_size: Samples in a batch.
        image_size: Height and width of the samples.
        seed: Of the run.
        augmentation: None for evaluation: the square in the middle, at 224/256 of the shorter
            side.
        shuffle: Whether each epoch has its own order; otherwise that of the files.
        drop_last: Whether a short last batch is left out.
        device: Where the batches are put.
        channels_last: Whether `x` is laid out channels last in memory (its shape is the same).
        locked: As for `ImageLoader`.
        partition_epochs: As for `ImageLoader`.
        num_workers: Threads that decode; 0 to decode when a batch is asked for.

    Raises:
        ValueError: The batch size is below 1, or no batch is left.
    """

    def __init__(
        self,
        images: FolderSet,
        *,
        batch_size: int,
        image_size: int = 224,
        seed: int = 0,
        augmentation: ResizedCrop | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        locked: bool = False,
        partition_epochs: int | None = None,
        num_workers: int = 2,
    ) -> None:
        self._order = EpochOrder(
            len(images),
            batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            partition_epochs=partition_epochs,
        )
        self.images = images
        self.image_size = image_size
        self.seed = seed
        self.augmentation = augmentation
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.locked = locked
        self.num_workers = num_workers

    @property
    def num_samples(self) -> int:
        """Samples in one epoch; without those of a dropped last batch."""
        return self._order.num_samples

    @property
    def batch_size(self) -> int:
        """Samples in a batch, but perhaps the last."""
        return self._order.batch_size

    def __len__(self) -> int:
        return len(self._order)

    def keys(self, number: int) -> tuple[int, ...]:
        """Which batch of the partition each batch of an epoch is; see `EpochOrder.keys`."""
        return self._order.keys(number, stream="train")

    def epoch(
        self, number: int, *, start: int = 0, stream: str = "train", draw: int | None = None
    ) -> Iterator[Batch]:
        """The batches of epoch `number`, from batch `start` on; as `ImageLoader.epoch`.

        Args:
            number: Of the epoch, from 0.
            start: Batches to skip.
            stream: Name of the order.
            draw: Key of the augmentation; None for `number`, or if the loader is locked for the
                number of the partition.

        Returns:
            An iterator over ``len(self) - start`` batches.

        Raises:
            ValueError: `number` is negative or `start` is out of range; on iteration, a picture
                cannot be decoded.
        """
        batches = self._order.batches(
            number, start=start, stream=stream, device=torch.device("cpu")
        )
        key = draw if draw is not None else self._order.draw(number, locked=self.locked)
        return (self._finished(index, pixels) for index, pixels in self._decoded(batches, key))

    def _decoded(self, batches: Sequence[Tensor], key: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Row numbers and bytes of every batch, decoded a few batches ahead."""
        if self.num_workers == 0:
            for index in batches:
                yield index, self._decode(index, key)
            return
        pending: deque[tuple[Tensor, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(self.num_workers) as pool:
            try:
                for index in batches:
                    pending.append((index, pool.submit(self._decode, index, key)))
                    if len(pending) >= _AHEAD * self.num_workers:
                        first, pixels = pending.popleft()
                        yield first, pixels.result()
                while pending:
                    first, pixels = pending.popleft()
                    yield first, pixels.result()
            finally:
                for _, unwanted in pending:
                    unwanted.cancel()

    def _decode(self, index: Tensor, key: int) -> Tensor:
        """The pictures in rows `index`, cut to size; uint8."""
        size = self.image_size
        pixels = np.empty((len(index), 3, size, size), np.uint8)
        draws = _draws(index, self.augmentation, seed=self.seed, key=key)
        for place, row in enumerate(index.tolist()):
            path = self.images.root / self.images.paths[row]
            picture = open_picture(path, path)
            if self.augmentation is None:
                pixels[place] = cut(picture, centre_box(*picture.size, share=224 / 256), size)
            else:
                box = random_box(*picture.size, draws[place], self.augmentation)
                mirrored = self.augmentation.flip and draws[place][0][4] < 0.5
                pixels[place] = cut(picture, box, size, mirrored=mirrored)
        return torch.from_numpy(pixels)

    def _finished(self, index: Tensor, pixels: Tensor) -> Batch:
        """The batch on the device."""
        x = normalise(pixels.to(self.device), self.images.mean, self.images.std)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        labels = self.images.labels[index]
        return Batch(x, labels.to(self.device), index.to(self.device))


def random_box(width: int, height: int, draws: Sequence[Sequence[float]], crop: ResizedCrop) -> Box:
    """A box of random area, shape and place; the centred square where none of the draws fits.

    Args:
        width: Of the picture.
        height: Of the picture.
        draws: Rows of numbers in [0, 1): area, ratio, left and top of one attempt.
        crop: The ranges.

    Returns:
        (left, top, right, bottom) in whole pixels.
    """
    for area, ratio, left, top, *_ in draws:
        pixels = width * height * (crop.smallest_area + area * (1 - crop.smallest_area))
        shape = math.exp((2 * ratio - 1) * math.log(crop.largest_ratio))
        wide, high = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < wide <= width and 0 < high <= height:
            x, y = int(left * (width - wide + 1)), int(top * (height - high + 1))
            return (x, y, x + wide, y + high)
    return centre_box(width, height)


def _draws(
    index: Tensor, crop: ResizedCrop | None, *, seed: int, key: int
) -> list[list[list[float]]]:
    """For each row of `index`, for each attempt: area, ratio, left, top, and one for the flip."""
    if crop is None:
        return []
    names = ("area", "ratio", "left", "top", "flip")
    numbers = [
        keyed_uniform(index, seed=seed, key=key, stream=f"box {name} {attempt}")
        for attempt in range(_ATTEMPTS)
        for name in names
    ]
    draws: list[list[list[float]]] = (
        torch.stack(numbers, dim=1).view(len(index), _ATTEMPTS, len(names)).tolist()
    )
    return draws
