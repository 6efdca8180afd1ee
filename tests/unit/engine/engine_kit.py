"""What the engine's tests share: instruction sets, watched memory, converted networks, errors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from equipoise import Topology
from equipoise.engine import convert
from equipoise.engine.choice import Memory, Timed
from equipoise.engine.convolution import Geometry, Way
from equipoise.engine.layers import SparseLayer, default_way
from equipoise.engine.library import VARIABLE, unavailable_because
from equipoise.engine.memory import POOL
from equipoise.engine.network import EngineNetwork

LANES = 16
EPSILON = 2.0**-24  # half a unit in the last place of float32

missing = unavailable_because()
needs_kernels = pytest.mark.skipif(missing is not None, reason=str(missing))


@contextmanager
def chosen(instructions: str) -> Iterator[None]:
    """Makes `kernels()` those of one instruction set; skips the test if there are none."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(VARIABLE, instructions)
        if reason := unavailable_because():
            pytest.skip(reason)
        yield


def _available() -> tuple[str, ...]:
    found = []
    with pytest.MonkeyPatch.context() as environment:
        for name in ("avx512", "avx2", "portable"):
            environment.setenv(VARIABLE, name)
            if unavailable_because() is None:
                found.append(name)
    return tuple(found)


AVAILABLE = _available() or ("portable",)
"""The instruction sets that this processor and this build have."""


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def poisoned(key: tuple[int, ...], shape: Sequence[int], clean: object = None) -> Tensor:
    """In place of the pool: exact sizes, NaN wherever a kernel has to write, zeros around.

    Memory of exact size lets a sanitizer see who reads or writes beyond it; what is read before it
    is written spoils the result.
    """
    data = torch.full(tuple(shape), float("nan"))
    border, wide = key[4], key[5]
    assert not (border and wide), "wide maps have no border"
    if border:
        data.zero_()
        data[:, :, border:-border, border:-border] = float("nan")
    return data


class WatchedMemory:
    """Poisoned memory that remembers what it gave; `check` sees what is not zero."""

    def __init__(self) -> None:
        self._given: list[tuple[Tensor, int, bool]] = []

    def take(self, key: tuple[int, ...], shape: Sequence[int], clean: object = None) -> Tensor:
        data = poisoned(key, shape)
        self._given.append((data, key[4], bool(key[5])))
        return data

    def check(self, samples: int | None) -> None:
        """Borders are zero, and so is every lane without one of so many samples."""
        for data, border, wide in self._given:
            if samples is not None and data.numel() > 0:
                last = data[..., -1, :] if wide else data[-1]
                dead = last[..., (samples - 1) % LANES + 1 :]
                assert not dead.any(), f"lanes of maps {tuple(data.shape)} have no sample"
            if border:
                outside = data.clone()
                outside[:, :, border:-border, border:-border] = 0.0
                assert not outside.any(), f"the border of maps {tuple(data.shape)} was written"


@contextmanager
def watched_memory(samples: int | None = None) -> Iterator[WatchedMemory]:
    """Takes the place of the pool; afterwards all that must be zero is."""
    memory = WatchedMemory()
    with patch.object(POOL, "take", memory.take):
        yield memory
    memory.check(samples)


def converted(
    model: nn.Module,
    topology: Topology,
    *inputs: Any,
    way: Callable[[Geometry, float, int], Way] = default_way,
) -> convert.Conversion:
    """What `to_engine` makes of a network, but untimed: every layer is converted that can be."""

    def choose(
        geometry: Geometry, positions: Tensor, rows: int, columns: int, batch: int, memory: Memory
    ) -> Timed:
        del columns, batch, memory
        return Timed(way(geometry, positions.numel() / geometry.num_weights, rows), 0.0, 1.0)

    with patch.object(convert, "choose_way", choose):
        return convert.prepare(model, topology, inputs, Memory(None))


def twins(
    model: nn.Module, *inputs: Any, sparsity: float = 0.7, **options: Any
) -> tuple[nn.Module, convert.Conversion]:
    """A masked network in double precision, and its conversion; they share nothing."""
    topology = Topology(model, sparsity=sparsity)
    reference = copy.deepcopy(model).double()
    return reference, converted(model, topology, *inputs, **options)


def steps_of(network: nn.Module, *, training: bool = True) -> list[Any]:
    """What a converted network does, one after the other."""
    assert isinstance(network, EngineNetwork)
    return list(network._engine_programs[training].steps)


def difference(got: Tensor, expected: Tensor) -> float:
    """Distance relative to what was expected; what is nearly zero counts as 0.1."""
    assert got.shape == expected.shape
    expected = expected.detach().double()
    return float((got.detach().double() - expected).norm()) / max(0.1, float(expected.norm()))


def active(gradient: Tensor, layer: SparseLayer) -> Tensor:
    """The part of a dense gradient that belongs to active weights."""
    return gradient.flatten()[layer.index]


def gradients(network: nn.Module, reference: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For every parameter of a converted network its gradient and the expected one."""
    modules = dict(network.named_modules())
    expected = dict(reference.named_parameters())
    for name, parameter in network.named_parameters():
        path, _, kind = name.rpartition(".")
        layer = modules[path]
        if isinstance(layer, SparseLayer) and kind == "values":
            whole = expected[f"{path}.weight"].grad
            wanted = None if whole is None else active(whole, layer)
        else:
            wanted = expected[name].grad
        assert (parameter.grad is None) == (wanted is None), name
        if parameter.grad is not None and wanted is not None:
            yield name, parameter.grad, wanted


def assert_same_statistics(network: nn.Module, reference: nn.Module) -> None:
    """Running statistics and counters agree."""
    expected = dict(reference.named_buffers())
    found = 0
    for name, buffer in network.named_buffers():
        if "running" in name:
            assert difference(buffer, expected[name]) < 1e-5, name
            found += 1
        elif "num_batches" in name:
            assert torch.equal(buffer, expected[name]), name
            found += 1
    assert found == sum("running" in n or "num_batches" in n for n in expected)
