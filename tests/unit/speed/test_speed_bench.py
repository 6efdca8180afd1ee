"""What is measured, what is kept of it and how it is shown; nothing asserts a time."""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from equipoise import to_dense
from equipoise.engine import convert
from equipoise.engine.choice import Memory, Timed
from equipoise.engine.layers import default_way
from equipoise.speed import bench as benching
from equipoise.speed import memory as measuring
from equipoise.speed.bench import MemoryRow, ScalingRow, StepRow, measure_case, run_bench, scaling
from equipoise.speed.laps import Lap, Ratio
from equipoise.speed.machine import describe_machine, version_of
from equipoise.speed.memory import Footprint, measure_footprint, peak_of
from equipoise.speed.results import markdown
from equipoise.speed.showing import print_head, print_row
from equipoise.speed.steps import (
    KINDS,
    LINEAR,
    Case,
    build_training,
    num_sparse_layers,
    optimizer_bytes,
    weight_bytes,
)

kit: Any = import_module("tests.unit.engine.engine_kit")

LAYER = Case(model=LINEAR, sparsity=0.9, width=0.0625, batch_size=16)
NETWORK = Case(model="small_cnn", sparsity=0.8, width=0.5, batch_size=4)
linux_only = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer is timed, and nothing is remembered on this machine."""

    def choose(geometry: Any, positions: Any, rows: int, *rest: Any) -> Timed:
        return Timed(default_way(geometry, len(positions) / geometry.num_weights, rows), 0.1, 1.0)

    monkeypatch.setattr(convert, "choose_way", choose)
    monkeypatch.setattr(convert, "machine_memory", lambda: Memory(None))


class Clock:
    """A second passes with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> Lap:
        self.now += 1.0
        return Lap(self.now, 3 * self.now)


@kit.needs_kernels
@pytest.mark.parametrize("case", [LAYER, NETWORK], ids=["layer", "network"])
def test_all_arms_do_the_same_work(case: Case) -> None:
    kinds = KINDS if case is NETWORK else ("masks", "engine")
    states = []
    for kind in kinds:
        training = build_training(case, kind)
        for _ in range(3):
            training.step()
        assert training.topology.verify() == []
        assert training.topology.num_steps == 3
        assert (num_sparse_layers(training.network) > 0) == (kind == "engine")
        states.append(to_dense(training.network).state_dict())
    first = build_training(case, "masks").network.state_dict()
    assert any(not torch.equal(first[name], states[0][name]) for name in first)
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for name, tensor in state.items():
            assert kit.difference(tensor, states[0][name]) < 1e-4, name


def test_channels_last_is_the_format_of_weights_and_images() -> None:
    training = build_training(NETWORK, "masks, channels last")
    weights = [p for p in training.network.parameters() if p.ndim == 4]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    images = training.step.args[2]  # type: ignore[attr-defined]
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_single_layer_is_as_large_as_it_is_called() -> None:
    training = build_training(Case(model=LINEAR, sparsity=0.5, batch_size=2), "masks")
    (weight,) = training.network.parameters()
    assert weight.shape == (4096, 1024)
    training.step()
    x = training.step.args[2]  # type: ignore[attr-defined]
    assert x.grad is not None
    assert x.grad.shape == (2, 1024)


@kit.needs_kernels
def test_left_to_itself_the_engine_says_why_it_is_not_used(monkeypatch: Any) -> None:
    monkeypatch.setattr("equipoise.engine.timing.step_seconds", lambda *_: 1e-4)
    case = Case(model=LINEAR, sparsity=0.9, width=0.0625, batch_size=16, engine="auto")
    training = build_training(case, "engine")
    assert training.reason == "a step takes 0.1 ms, too little to gain from"
    assert num_sparse_layers(training.network) == 0


@kit.needs_kernels
def test_bytes_are_those_of_the_tensors() -> None:
    masked, engine = (build_training(LAYER, kind) for kind in ("masks", "engine"))
    num_weights, num_active = masked.topology.num_weights, masked.topology.num_active
    assert weight_bytes(masked.network) == 4 * num_weights
    # Values, positions of 8 bytes, and the shape in 2 numbers.
    assert weight_bytes(engine.network) == 12 * num_active + 16
    assert optimizer_bytes(masked.optimizer) == 0
    for training, entries in ((masked, num_weights), (engine, num_active)):
        training.step()
        assert optimizer_bytes(training.optimizer) == 4 * entries


@kit.needs_kernels
def test_a_case_is_measured_with_all_threads_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    tick = Clock()
    used: list[int] = []
    asked: list[int] = []
    # Not for real: several threads on busy cores would wait for each other.
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)

    def clock() -> Lap:
        used.append(asked[-1])
        return tick()

    rows = measure_case(NETWORK, (1, 2), rounds=2, warmup=1, clock=clock)
    assert asked[:2] == [1, 2]  # each has a network that was prepared for it
    assert asked[-1] == 7  # as before
    assert [row.threads for row in rows] == [1, 2]
    for row in rows:
        assert list(row.laps) == list(KINDS)
        assert all(laps == [Lap(1.0, 3.0)] * 2 for laps in row.laps.values())
        assert (row.reason, row.case) == (None, NETWORK)
        assert row.active_weights == pytest.approx(0.2 * row.weights, abs=1)
        assert row.sparse_layers > 0
    # Two looks a lap, three arms a number of threads: first 1, then 2, and the second round back.
    assert used == ([1] * 6 + [2] * 6) * 2 + [2] * 6 + [1] * 6


@kit.needs_kernels
def test_what_the_engine_cannot_run_is_not_measured() -> None:
    case = Case(model=LINEAR, sparsity=0.0, width=0.0625, batch_size=16)
    (row,) = measure_case(case, (1,), rounds=1)
    assert row.laps == {}
    assert row.summary("wall") is None
    assert row.reason is not None
    assert "the engine cannot run this network" in row.reason
    assert scaling([row, row]) == []


def row_of(masks: Any, last: Any, engine: Any, threads: int = 1, **more: Any) -> StepRow:
    """A row with given seconds on the wall; the processor took the reverse."""

    def laps(given: Any) -> list[Lap]:
        return [Lap(x, 10 - x) for x in given]

    known: dict[str, Any] = {"case": NETWORK, "active_weights": 2, "weights": 9, "sparse_layers": 1}
    return StepRow(
        **{**known, "reason": None, **more},
        threads=threads,
        laps=dict(zip(KINDS, (laps(masks), laps(last), laps(engine)), strict=True)),
    )


def test_the_engine_is_compared_with_the_better_format_by_each_clock() -> None:
    row = row_of([4.0, 6.0, 5.0], [6.0, 6.0, 6.0], [1.0, 2.0, 2.0])
    wall, cpu = row.summary("wall"), row.summary("cpu")
    assert wall is not None
    assert cpu is not None
    assert (wall.opponent, wall.masked, wall.engine) == ("masks", 5.0, 2.0)
    assert wall.times == (3.0, 2.5, 4.0)
    assert cpu.opponent == "masks, channels last"
    assert cpu.times == (0.5, 4 / 9, 0.5)


def test_threads_are_compared_round_by_round() -> None:
    one, two = row_of([1.0], [1.0], [4.0]), row_of([1.0], [1.0], [2.0], threads=2)
    (found,) = scaling([one, two])
    assert (found.threads, found.times) == ((1, 2), (2.0, 2.0, 2.0))


@kit.needs_kernels
def test_everything_is_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row_of([4.0], [6.0], [2.0]), row_of([4.0], [6.0], [1.0], threads=2)]
    other = Case(model="vgg16", sparsity=0.99)
    idle = row_of([1.0], [1.0], [1.0], reason="it is small", case=other)
    footprint = Footprint(2_000_000, 1_000_000, 500_000, 10_000_000, 45_000_000, 0)
    answers = iter([rows, [idle, idle]])
    monkeypatch.setattr(benching, "measure_case", lambda *_, **__: next(answers))
    monkeypatch.setattr(benching, "measure_footprint", lambda *_, **__: footprint)
    seen: list[Any] = []
    out = tmp_path / "new" / "bench.json"
    made = run_bench([NETWORK, other], threads=(1, 2), rounds=1, out=out, on_row=seen.append)
    assert json.loads(out.read_text()) == made
    assert [type(row) for row in seen] == [StepRow] * 2 + [ScalingRow] + [MemoryRow] * 3 + (
        [StepRow] * 2 + [ScalingRow] + [MemoryRow] * 3
    )
    first = made["steps"][0]
    assert first["case"]["model"] == "small_cnn"
    assert first["laps"] == {
        "masks": [[4.0, 6.0]],
        "masks, channels last": [[6.0, 4.0]],
        "engine": [[2.0, 8.0]],
    }
    assert first["wall"] == {
        "opponent": "masks",
        "masked": 4.0,
        "engine": 2.0,
        "times": [2.0, 2.0, 2.0],
    }
    assert made["machine"]["versions"]["torch"] == torch.__version__
    assert made["load"]["after"] is not None
    drawn = out.with_suffix(".md").read_text()
    assert drawn == markdown(made)
    assert "| small_cnn, width 0.5, batch 4 | 2 | 4.00 [4.00, 4.00] |" in drawn
    assert "| small_cnn, width 0.5, batch 4 | 1 | 4000.0 / 2000.0 |" in drawn
    assert (first["same_format"], made["steps"][1]["same_format"]) == ([2.0] * 3, [4.0] * 3)
    assert "- vgg16, batch 128, 99 %, 1 thread(s), engine not used: it is small; against" in drawn
    assert "| vgg16, batch 128 | 99 % | engine | 2.0 | 1.0 | 0.5 | 35.0 |" in drawn
    assert "2 against 1 | 2.00 [2.00, 2.00] |" in drawn


def test_results_of_another_format_are_refused() -> None:
    with pytest.raises(ValueError, match="of format 99, expected 1"):
        markdown({"format": 99})


def test_rows_in_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=200)
    print_head(console, load=[0.1, 3.0, 3.0])
    print_row(row_of([4.0], [6.0], [2.0]), console)
    print_row(row_of([4.0], [6.0], [2.0], reason="it is small"), console)
    refused = StepRow(
        case=NETWORK,
        threads=2,
        laps={},
        active_weights=1,
        weights=1,
        sparse_layers=0,
        reason="there is no mask",
    )
    print_row(refused, console)
    print_row(ScalingRow(case=NETWORK, threads=(1, 2), times=Ratio(1.9, 1.8, 2.0)), console)
    footprint = Footprint(2_000_000, 1_000, 0, 1_000_000, 6_000_000, 0)
    print_row(MemoryRow(case=NETWORK, kind="engine", threads=1, footprint=footprint), console)
    head, *lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [column in head for column in ("network", "sparsity", "masks", "engine")] == [True] * 4
    assert lines[0].split() == [
        *("small_cnn", "80", "%", "1", "4000.0", "ms", "2000.0", "ms"),
        *("2.00", "[2.00,", "2.00]", "0.50", "[0.50,", "0.50]"),
    ]
    assert lines[1].endswith("engine not used: it is small")
    assert lines[2].endswith("2 not measured: there is no mask")
    assert lines[3].endswith("2 threads against 1: 1.90 [1.80, 2.00]")
    assert lines[4].endswith("engine: weights 2.0 MB, optimizer 1.0 kB, peak of a step 5.0 MB")


@pytest.mark.parametrize(
    ("load", "warned"), [([0.3, 0, 0], False), ([1.2, 0, 0], True), (None, False)]
)
def test_a_busy_machine_is_told(load: Any, warned: bool) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_head(console, load=load)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("the load average is 1.2" in text) == warned


def test_the_machine_is_described_in_values_that_json_knows() -> None:
    found = json.loads(json.dumps(describe_machine("pytest", "no-such-package")))
    assert found["versions"]["pytest"] == pytest.__version__
    assert found["versions"]["no-such-package"] is None
    assert version_of("torch") == torch.__version__
    assert found["cores"] >= 1


def test_the_kernels_are_described_only_if_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    found = describe_machine()
    assert (found["instructions"], found["kernels_sha256"]) == (None, None)


@linux_only
def test_a_peak_is_seen_after_it_has_gone() -> None:
    def work() -> None:
        torch.ones(25_000_000).sum()

    first = peak_of(work)
    assert measuring.held_now() < first - 50_000_000
    assert peak_of(lambda: None) < first - 50_000_000


@linux_only
def test_a_footprint_is_measured_in_another_process() -> None:
    found = measure_footprint(LAYER, "masks", threads=1)
    training = build_training(LAYER, "masks")
    training.step()
    assert found.weights == weight_bytes(training.network)
    assert found.optimizer == optimizer_bytes(training.optimizer)
    assert found.masks == training.topology.num_weights
    assert 50_000_000 < found.idle <= found.peak
    assert found.idle <= found.preparing


@linux_only
def test_a_process_that_fails_is_reported() -> None:
    case = Case(model="nothing", sparsity=0.5)
    with pytest.raises(
        RuntimeError, match=r"memory of nothing \(masks\) failed: ValueError: unknown"
    ):
        measure_footprint(case, "masks", threads=1)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measuring, "_STATUS", tmp_path / "status")
    with pytest.raises(RuntimeError, match="peak memory is read from /proc"):
        measure_footprint(LAYER, "masks", threads=1)
