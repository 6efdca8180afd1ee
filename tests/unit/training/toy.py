"""Runs that take a tenth of a second, and an exact comparison of what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.data import Batch, Dataset, synthetic
from equipoise.engine import convert
from equipoise.engine.choice import Timed
from equipoise.engine.convolution import Way
from equipoise.engine.layers import default_way
from equipoise.records import EpochRecord
from equipoise.settings import Run, with_setting
from equipoise.training.session import Session

PLAIN: dict[str, Any] = {
    "model": "mlp",
    "width": 0.05,
    "sparsity": 0.5,
    "topology": "static",
    "epochs": 3,
    "batch_size": 16,
    "device": "cpu",
    "engine": "dense",  # what is faster differs from run to run, and rounds in another way
}


@cache
def images(num_train: int = 72, num_test: int = 40, image_size: int = 8) -> Dataset:
    """Small pictures of four classes; with 16 in a batch the last batch has 8."""
    return synthetic(num_train=num_train, num_test=num_test, image_size=image_size)


def make_run(**changes: Any) -> Run:
    """A run of `PLAIN` with some settings changed, each found by its name."""
    run = Run()
    for name, value in (PLAIN | changes).items():
        run = with_setting(run, name, value)
    return run


def session(data: Dataset | None = None, **changes: Any) -> Session:
    """A session of `make_run` on `images()`."""
    return Session(make_run(**changes), images() if data is None else data)


@contextmanager
def untimed(
    way: Callable[..., Way] = default_way, *, slow: Callable[[Any], bool] = lambda geometry: False
) -> Iterator[None]:
    """Engines are made without a timing, and without the machine's memory of others.

    Args:
        way: Of a layer, from its geometry, density and rows.
        slow: Whether torch is faster for a layer of this geometry.
    """

    def choose(
        geometry: Any, positions: Tensor, rows: int, columns: int, batch: int, memory: Any
    ) -> Timed:
        del columns, batch, memory
        chosen = way(geometry, positions.numel() / geometry.num_weights, rows)
        return Timed(chosen, 2.0 if slow(geometry) else 0.5, 1.0)

    with patch.object(convert, "choose_way", choose):
        yield


def begin_epoch(current: Session) -> None:
    """The refresh, where one is due at this step."""
    if current.refresh_is_due:
        current.refresh(current.refresh_batches())


def one_epoch(current: Session) -> EpochRecord:
    """What the loop does in an epoch, without files."""
    for group in current.batches():
        begin_epoch(current)
        current.train_step(group)
    return current.finish_epoch()


def all_epochs(current: Session) -> list[EpochRecord]:
    """What the loop does in a training."""
    return [one_epoch(current) for _ in range(current.run.loop.epochs)]


class Watcher:
    """An observer that does nothing; tests replace single methods."""

    def start(self, session: Session) -> None:
        pass

    def refreshed(self, session: Session, batch: Batch) -> None:
        pass

    def stepped(self, session: Session, samples: int) -> None:
        pass

    def recorded(self, session: Session, record: EpochRecord) -> None:
        pass

    def stop(self) -> None:
        pass


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Paths at which two nested states differ in any bit."""
    return list(_differences(left, right, path))


def _differences(left: Any, right: Any, path: str) -> Iterator[str]:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        if not same or not torch.equal(left, right):
            yield path
    elif isinstance(left, Mapping) and isinstance(right, Mapping):
        if list(left) != list(right):
            yield f"{path}: keys"
        for key in left.keys() & right.keys():
            yield from _differences(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            yield f"{path}: length"
        for place, (a, b) in enumerate(zip(left, right, strict=False)):
            yield from _differences(a, b, f"{path}[{place}]")
    elif type(left) is not type(right) or left != right:
        yield path


def without_time(record: EpochRecord) -> dict[str, Any]:
    """What of a record depends on the settings alone."""
    return {
        name: value
        for name, value in asdict(record).items()
        if not name.endswith(("_seconds", "_bytes"))
    }


def stored_state(folder: Path) -> dict[str, Any]:
    """What of a checkpoint depends on the settings alone."""
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    meter = state["meter"]
    del meter["seconds"], meter["peak_memory_bytes"]
    for counts in meter.values():  # parts that were entered but counted nothing do not matter
        for part in [part for part, count in counts.items() if not count]:
            del counts[part]
    return state


def flat(tensors: Any) -> Tensor:
    """All numbers of some tensors."""
    return torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors])


def weights(session: Session) -> Tensor:
    """All parameters of a session."""
    return flat(session.model.parameters())


def gradient(session: Session, batch: Any, **options: Any) -> Tensor:
    """Gradient of the mean cross-entropy at the session's weights; buffers stay."""
    kept = {name: buffer.clone() for name, buffer in session.model.named_buffers()}
    loss = F.cross_entropy(session.model.train()(batch.x), batch.y, **options)
    found = flat(torch.autograd.grad(loss, list(session.model.parameters())))
    for name, buffer in session.model.named_buffers():
        buffer.copy_(kept[name])
    return found


def first_steps(session: Session, count: int) -> list[tuple[Tensor, list[Any]]]:
    """What the weights moved by in each of the first steps, over the rate, and the batches."""
    begin_epoch(session)
    moved = []
    for group, _ in zip(session.batches(), range(count), strict=False):
        before = weights(session).clone()
        session.train_step(group)
        rate = session.optimizer.param_groups[0]["lr"]
        moved.append(((before - weights(session)) / rate, group))
    return moved
