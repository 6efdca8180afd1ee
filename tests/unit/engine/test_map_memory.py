"""Memory for feature maps: used again, zero where it must be, and not without end."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from equipoise.engine import maps, memory
from equipoise.engine.layers import compact_layer
from equipoise.engine.maps import Form, new_maps, to_maps
from equipoise.engine.memory import Pool

kit: Any = import_module("tests.unit.engine.engine_kit")

PAGE = 2 << 20


def take(pool: Pool, *key: int, size: int = 100) -> Tensor:
    return pool.take(key, (size,))


def test_first_taken_is_zero_and_of_the_asked_shape() -> None:
    tensor = Pool().take((1,), (3, 4, 16))
    assert tensor.shape == (3, 4, 16)
    assert tensor.is_contiguous()
    assert tensor.dtype == torch.float32
    assert not tensor.any()


def test_what_is_let_go_is_used_again_under_its_key() -> None:
    pool = Pool()
    first = take(pool, 1)
    address = first.data_ptr()
    first.fill_(3.0)
    del first
    second = take(pool, 1)
    assert second.data_ptr() == address
    assert (second == 3.0).all(), "what the last one held is left"
    assert pool.bytes_mapped == PAGE


def test_what_is_in_use_is_never_given_twice() -> None:
    pool = Pool()
    kept = [take(pool, 1) for _ in range(5)]
    view = kept[0][10:20]
    addresses = {t.data_ptr() for t in kept}
    assert len(addresses) == 5
    del kept
    # A view keeps all of it, and so does an array that shares its memory.
    array = take(pool, 1).numpy()
    again = [take(pool, 1) for _ in range(5)]
    taken = {t.data_ptr() for t in again} | {view.data_ptr() - 40, array.ctypes.data}
    assert len(taken) == 7


def test_another_form_gets_wiped_memory() -> None:
    pool = Pool()
    take(pool, 1).fill_(3.0)
    other = take(pool, 2, size=90)
    assert not other.any()
    assert pool.bytes_mapped == PAGE, "it was adopted"
    del other
    take(pool, 2, size=90).fill_(4.0)
    assert not take(pool, 1).any()


def test_only_the_border_of_adopted_maps_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    monkeypatch.setattr(maps, "POOL", pool)
    new_maps(Form(32, 3, 6, 7)).data.fill_(2.0)
    data = new_maps(Form(32, 3, 4, 5, border=1)).data
    assert pool.bytes_mapped == PAGE, "it was adopted"
    assert (data[:, :, 1:-1, 1:-1] == 2.0).all()
    data[:, :, 1:-1, 1:-1] = 0.0
    assert not data.any()


def test_memory_of_another_size_is_adopted_only_if_little_is_wasted() -> None:
    pool = Pool()
    floats = PAGE // 4
    take(pool, 1, size=3 * floats)
    small = take(pool, 2, size=floats)
    assert pool.bytes_mapped == 4 * PAGE, "three times as much is too much"
    middle = take(pool, 3, size=2 * floats)
    assert pool.bytes_mapped == 4 * PAGE
    assert small.numel() == floats
    assert middle.numel() == 2 * floats


def test_release_returns_what_is_not_in_use() -> None:
    pool = Pool()
    kept, gone = take(pool, 1), take(pool, 2)
    kept.fill_(5.0)
    del gone
    pool.release()
    assert pool.bytes_mapped == PAGE
    assert (kept == 5.0).all()
    del kept
    pool.release()
    assert pool.bytes_mapped == 0
    assert not take(pool, 1).any()


def test_empty_tensors() -> None:
    assert Pool().take((0,), (0, 3, 16)).shape == (0, 3, 16)


def test_threads_share_it() -> None:
    pool = Pool()
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(300):
            tensor = take(pool, number, turn % 3)
            tensor.fill_(number)
            if turn % 50 == 0:
                pool.release()
            if not (tensor == number).all():
                wrong.append(turn)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    workers = [Thread(target=work, args=(number,)) for number in range(4)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_write_into_its_parent() -> None:
    pool = Pool()
    held, free = take(pool, 1).fill_(1.0), take(pool, 2).fill_(2.0)
    address = free.data_ptr()
    del free
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        held.fill_(7.0)
        take(pool, 2).fill_(8.0)
        os.write(write, b"x")
        os._exit(0)
    os.read(read, 1)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    again = take(pool, 2)
    assert again.data_ptr() == address
    assert (held == 1.0).all()
    assert (again == 2.0).all()


def test_forms_that_differ_never_share_a_key() -> None:
    forms = [
        *(Form(16, 4, 6, 6, 0), Form(16, 4, 4, 4, 1), Form(16, 4, 2, 2, 2)),
        *(Form(16, 4, 6, 6, 0, wide=True), Form(32, 2, 6, 6, 0), Form(16, 6, 4, 6, 0)),
        *(Form(16, 6, 6, 4, 0), Form(16, 4, 6, 6, 1)),
    ]
    keys: list[tuple[int, ...]] = []

    def note(key: tuple[int, ...], shape: Sequence[int], clean: object) -> Tensor:
        keys.append(key)
        return torch.zeros(tuple(shape))

    with patch.object(memory.POOL, "take", note):
        made = [new_maps(form) for form in forms]
    assert len(set(keys)) == len(forms)
    assert [m.form for m in made] == forms


def train_step(network: nn.Module, samples: int) -> None:
    network(torch.ones(samples, 3, 8, 8)).sum().backward()


def small_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool of the test's own, with pages small enough to tell small maps apart."""
    fresh = Pool()
    monkeypatch.setattr(memory, "_PAGE", 4096)
    monkeypatch.setattr(maps, "POOL", fresh)
    return fresh


@kit.needs_kernels
def test_training_on_needs_no_more(pool: Pool) -> None:
    network = kit.twins(small_network(), torch.ones(32, 3, 8, 8), sparsity=0.5)[1].network
    used = []
    for _ in range(6):
        train_step(network, 32)
        used.append(pool.bytes_mapped)
    assert used[1:] == used[1:2] * 5
    gc.collect()
    pool.release()
    assert pool.bytes_mapped == 0, "nothing is kept by a network between its steps"


@kit.needs_kernels
@pytest.mark.parametrize(
    "sizes",
    [lambda turn: (128, 80, 256)[turn % 3], lambda turn: 1 + turn * 37 % 256],
    ids=["train, last, eval", "all sizes"],
)
def test_changing_batches_need_a_bounded_amount(pool: Pool, sizes: Callable[[int], int]) -> None:
    network = kit.twins(small_network(), torch.ones(32, 3, 8, 8), sparsity=0.5)[1].network
    train_step(network, 256)
    largest = pool.bytes_mapped
    pool.release()
    for turn in range(60):
        train_step(network, sizes(turn))
    once = pool.bytes_mapped
    for turn in range(60):
        train_step(network, sizes(turn))
    # Free blocks serve what is up to a third smaller, so sizes fall into a geometric sequence.
    assert once <= 4 * largest
    assert pool.bytes_mapped <= 1.1 * once


@kit.needs_kernels
def test_borders_stay_zero_through_training(pool: Pool) -> None:
    network = kit.twins(small_network(), torch.ones(32, 3, 8, 8), sparsity=0.5)[1].network
    for samples in (32, 17, 5, 33, 17):
        train_step(network, samples)
    gc.collect()
    looked = 0
    for key, blocks in pool._free.items():
        count, channels, rows, columns, border, wide = key
        if wide or not border:
            continue
        shape = (count, channels, rows + 2 * border, columns + 2 * border, 16)
        for block, _ in blocks:
            outside = torch.frombuffer(bytearray(block), dtype=torch.float32)
            outside = outside[: torch.Size(shape).numel()].view(shape)
            outside[:, :, border:-border, border:-border] = 0.0
            assert not outside.any(), key
            looked += 1
    assert looked > 0


@kit.needs_kernels
@pytest.mark.parametrize("samples", [17, 3])
def test_lanes_without_a_sample_do_not_matter(pool: Pool, samples: int) -> None:
    layer = compact_layer(nn.Conv2d(4, 4, 3, padding=1), torch.arange(0, 144, 2))
    x = torch.randn(samples, 4, 5, 5)
    y = layer(x)
    # The same memory, used before by more samples.
    layer(torch.full((32 if samples > 16 else 16, 4, 5, 5), 1e30))
    assert torch.equal(layer(x), y)


@kit.needs_kernels
def test_maps_are_where_they_say(pool: Pool) -> None:
    for border, wide in ((0, False), (2, False), (0, True)):
        made = to_maps(torch.ones(3, 2, 4, 5), border=border, wide=wide)
        inner = made.data[:, :, border : border + 4, border : border + 5]
        assert made.start == inner.data_ptr()
        assert inner[0, :, :, :, :3].eq(1.0).all()
        assert made.data.sum() == 3 * 2 * 4 * 5
    assert to_maps(torch.ones(3, 2, 4, 5), border=2, wide=True).form.border == 0


def test_what_has_long_been_idle_goes_when_other_memory_is_needed() -> None:
    pool, floats = Pool(), PAGE // 4
    take(pool, 1, size=8 * floats)
    for _ in range(memory._STALE + 1):
        take(pool, 2)
    assert pool.bytes_mapped == 9 * PAGE, "what is used again needs nothing new"
    kept = take(pool, 3, size=3 * floats)
    assert pool.bytes_mapped == 4 * PAGE
    assert not kept.any()
