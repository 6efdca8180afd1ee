"""When a run takes a new snapshot, and over which batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from equipoise.data import Batch, Loader
from equipoise.data.keyed import keyed_uniform, keyed_words
from equipoise.settings import CorrectionSettings


class RefreshSchedule:
    """Every so many epochs, every so many steps, or at random.

    Whether a refresh is due is a pure function of where the training stands, so there is nothing
    to resume. The first step is always due.

    Args:
        settings: Of the correction.
        steps_per_epoch: Optimizer steps in one epoch.
        epochs: Of the whole training.
        seed: For the coins of a random schedule.

    Example:
        >>> settings = CorrectionSettings(refresh_steps=3)
        >>> schedule = RefreshSchedule(settings, steps_per_epoch=4, epochs=2, seed=0)
        >>> [schedule.due(step) for step in range(8)]
        [True, False, False, True, False, False, True, False]
        >>> schedule.count
        3
    """

    def __init__(
        self, settings: CorrectionSettings, *, steps_per_epoch: int, epochs: int, seed: int
    ) -> None:
        self._settings = settings
        self._steps_per_epoch = steps_per_epoch
        self._total = steps_per_epoch * epochs
        self._seed = seed
        self._counts: list[int] | None = None

    def due(self, step: int) -> bool:
        """Whether a refresh comes before this step.

        Args:
            step: Completed optimizer steps, from 0.
        """
        settings = self._settings
        if settings.refresh_chance is not None:
            return step == 0 or self._coin(step) < settings.refresh_chance
        if settings.refresh_steps is not None:
            return step % settings.refresh_steps == 0
        epoch, within = divmod(step, self._steps_per_epoch)
        return within == 0 and epoch % settings.refresh_every == 0

    @property
    def count(self) -> int:
        """Refreshes in the whole training."""
        return self.before(self._total)

    def before(self, step: int) -> int:
        """Refreshes that are due before earlier steps than this one.

        Args:
            step: Completed optimizer steps, from 0 to those of the whole training.

        Example:
            >>> schedule = RefreshSchedule(
            ...     CorrectionSettings(refresh_every=2), steps_per_epoch=4, epochs=4, seed=0
            ... )
            >>> [schedule.before(step) for step in (0, 1, 8, 9, 16)]
            [0, 1, 1, 2, 2]
        """
        settings = self._settings
        if settings.refresh_chance is not None:
            return self._so_far()[step]
        every = settings.refresh_steps or settings.refresh_every * self._steps_per_epoch
        return -(-step // every)

    def _so_far(self) -> list[int]:
        """For every step, the coins before it that fell for a refresh."""
        if self._counts is None:
            chance = self._settings.refresh_chance or 0.0
            heads = self._coins(torch.arange(self._total)) < chance
            heads[:1] = True
            self._counts = [0, *heads.cumsum(0).tolist()]
        return self._counts

    def _coin(self, step: int) -> float:
        """A number in [0, 1) that belongs to this step."""
        return float(self._coins(torch.tensor([step])))

    def _coins(self, steps: Tensor) -> Tensor:
        """The same for many steps."""
        return keyed_uniform(steps, seed=self._seed, key=0, stream="refresh")


def replayed_batches(
    loader: Loader, epoch: int, *, samples: int | None, seed: int, step: int
) -> Iterator[Batch]:
    """The batches of an epoch, all of them or some, drawn by the step of the refresh.

    Args:
        loader: Of the training batches.
        epoch: From 0.
        samples: At least so many; None for all.
        seed: Of the data order.
        step: Completed optimizer steps at the refresh.

    Returns:
        The batches that the training pass sees, with the same augmentation, in its order.
    """
    count = _batches_for(samples, loader)
    if count == len(loader):
        yield from loader.epoch(epoch)
        return
    words = keyed_words(torch.arange(len(loader)), seed=seed, key=step, stream="sub-sample")
    for place in sorted(words.argsort(stable=True)[:count].tolist()):
        yield next(loader.epoch(epoch, start=place))


def fresh_batches(
    loader: Loader, number: int, *, samples: int | None, draw: int | None, whole: bool = False
) -> Iterator[Batch]:
    """Batches in an order of their own, all of them or the first ones.

    Args:
        loader: Of training batches, or of the same images without augmentation.
        number: Of the order.
        samples: At least so many; None for all.
        draw: Key of the augmentation; None for what the loader is locked to.
        whole: Leave a short last batch out.
    """
    batches = loader.epoch(number, stream="refresh", draw=draw)
    most = loader.num_samples // loader.batch_size if whole else len(loader)
    return itertools.islice(batches, min(most, _batches_for(samples, loader)))


def num_refresh_samples(loader: Loader, samples: int | None) -> int:
    """How many samples a refresh over so many of them sees, since batches are whole."""
    return min(loader.num_samples, _batches_for(samples, loader) * loader.batch_size)


def _batches_for(samples: int | None, loader: Loader) -> int:
    """How many batches hold so many samples."""
    if samples is None:
        return len(loader)
    return min(len(loader), -(-samples // loader.batch_size))
