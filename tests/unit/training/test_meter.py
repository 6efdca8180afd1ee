"""The meter counts what was done, to whom it belongs, and forgets nothing over a stop."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.measure import Measure, unmeasured
from equipoise.training import meter as module
from equipoise.training.meter import OUTSIDE_TRAINING, Meter

CPU = torch.device("cpu")
PARTS = ("new_gradient", "refresh", "data", "evaluation", "checkpoint", "other")


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", made)
    return made


def test_time_belongs_to_the_innermost_part(clock: Clock) -> None:
    meter = Meter(CPU)
    with meter("other"):
        clock.now += 1.0
        with meter("refresh"):
            clock.now += 2.0
            with meter("data"):
                clock.now += 4.0
            clock.now += 8.0
        clock.now += 16.0
    clock.now += 1000.0  # nothing is open
    with meter("data"):
        clock.now += 32.0
    seconds = {part: meter.seconds(part) for part in PARTS}
    assert seconds == {
        "other": 17.0,
        "refresh": 10.0,
        "data": 36.0,
        "new_gradient": 0.0,
        "evaluation": 0.0,
        "checkpoint": 0.0,
    }
    assert meter.training_seconds == 63.0


def test_the_same_part_may_be_open_twice(clock: Clock) -> None:
    meter = Meter(CPU)
    with meter("refresh"):
        clock.now += 1.0
        with meter("refresh", samples=2, forwards=1):
            clock.now += 2.0
        clock.now += 4.0
    assert meter.seconds("refresh") == meter.training_seconds == 7.0


def test_evaluation_and_checkpoints_are_not_training(clock: Clock) -> None:
    meter = Meter(CPU)
    with meter("other"):
        clock.now += 1.0
        for part in sorted(OUTSIDE_TRAINING):
            with meter(part, samples=10, forwards=1, backwards=1):
                clock.now += 10.0
    assert {"evaluation", "checkpoint", "analysis"} == OUTSIDE_TRAINING
    assert meter.training_seconds == 1.0
    assert meter.seconds("evaluation") == meter.seconds("checkpoint") == 10.0
    assert (meter.forward_samples, meter.backward_samples) == (0, 0)


def test_who_listens_is_told_in_time_that_is_no_training(clock: Clock) -> None:
    meter, told = Meter(CPU), []

    def hear() -> None:
        told.append(meter.seconds("refresh"))
        clock.now += 5.0

    with meter("other"):
        with meter.listening("entered", "refresh", hear), meter.listening("left", "refresh", hear):
            clock.now += 1.0
            with meter("refresh"):
                clock.now += 2.0
            with meter("data"):
                clock.now += 4.0
        with meter("refresh"):
            clock.now += 8.0
    assert told == [0.0, 2.0]
    assert meter.seconds("analysis") == 10.0
    assert meter.training_seconds == 15.0


def test_a_part_that_failed_was_not_left() -> None:
    meter, told = Meter(CPU), []
    with meter.listening("left", "refresh", lambda: told.append(1)):
        with pytest.raises(ZeroDivisionError), meter("refresh"):
            raise ZeroDivisionError
        assert not told
        with meter("refresh"):
            pass
    assert told == [1]


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.integers(0, 3)), max_size=30))
def test_parts_add_up_to_the_whole_however_they_nest(plan: list[tuple[str, int]]) -> None:
    """Opens a part, waits, and closes some, on a clock of whole seconds."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr("time.perf_counter", clock)
        meter, inside, opened = Meter(CPU), 0.0, []
        for wait, (part, closing) in enumerate(plan):
            context = meter(part)
            context.__enter__()
            opened.append(context)
            clock.now += wait
            inside += wait
            for _ in range(min(closing, len(opened))):
                opened.pop().__exit__(None, None, None)
                if opened:
                    clock.now += 1.0
                    inside += 1.0
        while opened:
            opened.pop().__exit__(None, None, None)
        assert sum(meter.seconds(part) for part in PARTS) == inside
        outside = sum(meter.seconds(part) for part in OUTSIDE_TRAINING)
        assert meter.training_seconds == inside - outside


def test_real_time_is_measured() -> None:
    meter, begin = Meter(CPU), time.perf_counter()
    with meter("other"):
        time.sleep(0.02)
        with meter("data"):
            time.sleep(0.04)
    whole = time.perf_counter() - begin
    assert meter.seconds("other") >= 0.02
    assert meter.seconds("data") >= 0.04
    assert 0.06 <= meter.training_seconds <= whole


def test_samples_are_counted_forward_and_backward() -> None:
    meter = Meter(CPU)
    for part, forwards, backwards in (("new_gradient", 1, 1), ("refresh", 1, 1), ("refresh", 1, 0)):
        with meter(part, samples=60, forwards=forwards, backwards=backwards):
            pass
    assert (meter.forward_samples, meter.backward_samples) == (180, 120)
    # Forward is a third of a pass, backward two thirds: 180 / 3 + 2 * 120 / 3 samples.
    assert meter.data_passes(60) == pytest.approx(1.0 + 4.0 / 3.0)
    assert meter.data_passes(140) == pytest.approx(1.0)


def test_only_what_succeeded_is_counted_but_all_time_is(clock: Clock) -> None:
    meter = Meter(CPU)

    def fails() -> None:
        with meter("new_gradient", samples=5, forwards=1, backwards=1):
            clock.now += 3.0
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fails()
    assert (meter.forward_samples, meter.backward_samples) == (0, 0)
    assert meter.seconds("new_gradient") == 3.0
    clock.now += 50.0
    with meter("data"):
        clock.now += 1.0
    assert meter.training_seconds == 4.0


def test_state_round_trip_accumulates(clock: Clock, tmp_path: Path) -> None:
    first = Meter(CPU)
    with first("other"):
        clock.now += 1.0
        with first("refresh", samples=8, forwards=2, backwards=1):
            clock.now += 2.0
        with first("evaluation", samples=99, forwards=1):
            clock.now += 5.0
    torch.save(first.state_dict(), tmp_path / "meter.pt")
    clock.now += 1000.0

    second = Meter(CPU)
    second.load_state_dict(torch.load(tmp_path / "meter.pt", weights_only=True))
    assert second.state_dict() == first.state_dict()
    with second("refresh", samples=8, forwards=2, backwards=1):
        clock.now += 4.0
    assert second.seconds("refresh") == 6.0
    assert second.training_seconds == 7.0
    assert second.seconds("evaluation") == 5.0
    assert (second.forward_samples, second.backward_samples) == (32, 16)
    assert first.seconds("refresh") == 2.0, "the meters share their state"


def test_a_state_taken_inside_a_part_holds_what_is_over(clock: Clock) -> None:
    meter = Meter(CPU)
    with meter("other"):
        clock.now += 1.0
        with meter("checkpoint"):
            clock.now += 2.0
            state = meter.state_dict()
        clock.now += 4.0
    assert state["seconds"] == {"other": 1.0}
    assert meter.seconds("other") == 5.0


def resident_peaks(sizes: list[int]) -> Iterator[int]:
    """Peak of a new meter after touching so many bytes."""
    for size in sizes:
        meter = Meter(CPU)
        block = np.ones(size, dtype=np.uint8)
        del block
        yield meter.peak_memory_bytes()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_sees_a_large_block_and_starts_anew() -> None:
    ctypes.CDLL(None).malloc_trim(0)
    small, large, again = resident_peaks([1, 2**27, 1])
    assert large - small > 0.9 * 2**27
    assert large - again > 0.8 * 2**27


def test_peak_memory_is_carried_over_a_stop() -> None:
    meter = Meter(CPU)
    state = meter.state_dict() | {"peak_memory_bytes": 2**50}
    meter.load_state_dict(state)
    assert meter.peak_memory_bytes() == 2**50
    assert meter.state_dict()["peak_memory_bytes"] == 2**50
    meter.load_state_dict(state | {"peak_memory_bytes": 1})
    assert 2**20 < meter.peak_memory_bytes() < 2**45


def test_there_is_no_device_memory_on_a_processor() -> None:
    assert Meter(CPU).peak_device_memory_bytes() is None


def test_without_the_system_interface_the_peak_of_the_process_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_CLEAR_REFS", tmp_path / "no" / "clear_refs")
    monkeypatch.setattr(module, "_STATUS", tmp_path / "no" / "status")
    peaks = [Meter(CPU).peak_memory_bytes() for _ in range(3)]
    assert peaks[0] > 2**20
    assert all(one <= two for one, two in pairwise(peaks))


def test_both_are_measures() -> None:
    measures: list[Measure] = [Meter(CPU), unmeasured]
    for measure in measures:
        with measure("data", samples=1.5, forwards=2, backwards=2):
            pass
    meter = Meter(CPU)
    with meter("refresh", samples=2.5, forwards=2):
        pass
    assert meter.forward_samples == 5
