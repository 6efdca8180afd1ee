"""Batches of an `ImageSet` that lies on the device; and what every loader offers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from equipoise.data.augmentation import Augmentation, augment, normalise
from equipoise.data.batch import Batch
from equipoise.data.images import ImageSet
from equipoise.data.keyed import keyed_words


class Loader(Protocol):
    """What the training loop asks of a loader; epochs are pure functions of their arguments."""

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        ...  # pragma: no cover

    @property
    def batch_size(self) -> int:
        """Samples in a batch, but perhaps the last."""
        ...  # pragma: no cover

    @property
    def locked(self) -> bool:
        """Whether epochs repeat an augmentation."""
        ...  # pragma: no cover

    def __len__(self) -> int: ...  # pragma: no cover

    def keys(self, number: int) -> tuple[int, ...]:
        """Which batch of the partition each batch of an epoch is; see `EpochOrder.keys`."""
        ...  # pragma: no cover

    def epoch(
        self, number: int, *, start: int = 0, stream: str = "train", draw: int | None = None
    ) -> Iterator[Batch]:
        """The batches of one epoch; see `ImageLoader.epoch`."""
        ...  # pragma: no cover


class ImageLoader:
    """Batches of images that stay on one device as bytes.

    Nothing is drawn from a global generator: the order is a pure function of
    (`seed`, epoch number, stream), and the augmentation of a sample one of
    (`seed`, draw, row number). Any batch of any epoch can be made again.

    Args:
        images: The samples; moved to `device` once.
        batch_size: Samples in a batch.
        seed: Of the run.
        augmentation: None for the images as they are.
        shuffle: Whether each epoch has its own order; otherwise that of the files.
        drop_last: Whether a short last batch is left out.
        device: Where the batches lie.
        channels_last: Whether `x` is laid out channels last in memory (its shape is the same).
        locked: Whether every epoch repeats the augmentation of draw 0; with a partition, of one
            draw as long as a partition holds.
        partition_epochs: The samples are divided into batches anew only after so many epochs, and
            the order of the batches is shuffled in every epoch; None for new batches every epoch,
            0 for one partition for all.

    Raises:
        ValueError: The batch size is below 1, or no batch is left.

    Example:
        >>> from equipoise.data import synthetic
        >>> loader = ImageLoader(synthetic(num_train=100, num_test=10).train, batch_size=32)
        >>> [batch.size for batch in loader.epoch(0)]
        [32, 32, 32, 4]
        >>> first, again = next(loader.epoch(7, start=3)), next(loader.epoch(7, start=3))
        >>> torch.equal(first.index, again.index)
        True
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        locked: bool = False,
        partition_epochs: int | None = None,
    ) -> None:
        self._order = EpochOrder(
            len(images),
            batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            partition_epochs=partition_epochs,
        )
        self.images = replace(
            images, images=images.images.to(device), labels=images.labels.to(device)
        )
        self.seed = seed
        self.augmentation = augmentation
        self.channels_last = channels_last
        self.locked = locked

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
        """The batches of epoch `number`, from batch `start` on.

        Contract: a pure function of its arguments and the loader's settings; no generator is
        read, and epochs may be open side by side.

        Args:
            number: Of the epoch, from 0.
            start: Batches to skip, to go on in mid-epoch; skipped batches cost nothing.
            stream: Name of the order; another name gives independent batches.
            draw: Key of the augmentation; None for `number`, or if the loader is locked for the
                number of the partition.

        Returns:
            An iterator over ``len(self) - start`` batches.

        Raises:
            ValueError: `number` is negative or `start` is out of range.
        """
        device = self.images.images.device
        batches = self._order.batches(number, start=start, stream=stream, device=device)
        key = draw if draw is not None else self._order.draw(number, locked=self.locked)
        return (self._batch(index, key) for index in batches)

    def _batch(self, index: Tensor, key: int) -> Batch:
        """The samples in rows `index` with the augmentation of `key`."""
        pixels = self.images.images[index]
        if self.augmentation is not None:
            pixels = augment(pixels, index, seed=self.seed, key=key, augmentation=self.augmentation)
        x = normalise(pixels, self.images.mean, self.images.std)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return Batch(x, self.images.labels[index], index)


class EpochOrder:
    """Which row numbers make which batch of which epoch.

    Args:
        num_rows: Samples to choose from.
        batch_size: Samples in a batch.
        seed: Of the run.
        shuffle: Whether each epoch has its own order.
        drop_last: Whether a short last batch is left out.
        partition_epochs: As for `ImageLoader`.

    Raises:
        ValueError: The batch size is below 1, or no batch is left.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        partition_epochs: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is a number of samples, 1 or more; got {batch_size}.")
        self.num_samples = num_rows - num_rows % batch_size if drop_last else num_rows
        if self.num_samples == 0:
            raise ValueError(
                f"{num_rows} samples make no batch of {batch_size} with drop_last={drop_last}; "
                "pass more samples, a smaller batch_size or drop_last=False."
            )
        self.batch_size = batch_size
        self._num_rows = num_rows
        self._seed = seed
        self._shuffle = shuffle
        self._partition_epochs = partition_epochs

    def partition(self, number: int) -> int:
        """Number of the partition that an epoch uses, from 0; the epoch's own without any."""
        if self._partition_epochs is None:
            return number
        return number // self._partition_epochs if self._partition_epochs else 0

    def draw(self, number: int, *, locked: bool) -> int:
        """Key of the augmentation in an epoch."""
        if not locked:
            return number
        return 0 if self._partition_epochs is None else self.partition(number)

    def keys(self, number: int, *, stream: str) -> tuple[int, ...]:
        """Which batch of the partition each batch of an epoch is, in order.

        Batches of the same key hold the same samples, in the same order, in all epochs of a
        partition. Without a partition they are 0, 1, 2 and so on.
        """
        places = torch.arange(len(self))
        if self._partition_epochs is not None and self._shuffle:
            words = keyed_words(places, seed=self._seed, key=number, stream=f"batches {stream}")
            places = words.argsort(stable=True)
        return tuple(places.tolist())

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)

    def batches(
        self, number: int, *, start: int, stream: str, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Row numbers of the batches of epoch `number` from batch `start` on, each int64."""
        if number < 0 or not 0 <= start <= len(self):
            raise ValueError(
                f"Epoch {number} from batch {start} does not exist; pass an epoch number of 0 or "
                f"more and a start in [0, {len(self)}]."
            )
        rows = torch.arange(self._num_rows, device=device)
        if self._shuffle:
            key = self.partition(number)
            words = keyed_words(rows, seed=self._seed, key=key, stream=f"order {stream}")
            rows = words.argsort(stable=True)
        batches: tuple[Tensor, ...] = rows[: self.num_samples].split(self.batch_size)
        if self._partition_epochs is None:
            return batches[start:]
        return tuple(batches[key] for key in self.keys(number, stream=stream)[start:])
