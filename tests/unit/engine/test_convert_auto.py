"""Whether the engine is used: it must pay, and what was found is remembered."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise import Topology, to_engine
from equipoise.engine import convert, timing
from equipoise.engine.checks import tensors_in
from equipoise.engine.choice import Memory, Timed, machine_memory
from equipoise.engine.convolution import Way
from equipoise.engine.library import unavailable_because
from equipoise.engine.network import ways_of

kit: Any = import_module("tests.unit.engine.convert_kit")
toy: Any = import_module("tests.unit.training.toy")

missing = unavailable_because()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(autouse=True)
def settled(tmp_path: Path) -> Iterator[None]:
    with kit.settled(tmp_path):
        yield


class Clock:
    """Stands in for `step_seconds`: so long for a masked step, so long for a converted one."""

    def __init__(self, masked: float, engine: float) -> None:
        self.masked, self.engine = masked, engine
        self.calls: list[str] = []

    def __call__(self, model: nn.Module, inputs: Any) -> float:
        kind = "engine" if kit.sparse_layers(model) else "masked"
        self.calls.append(kind)
        return self.engine if kind == "engine" else self.masked


def decide(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, memory: Path | None = None
) -> tuple[bool, str]:
    """Whether a network is converted, and what is said if it is not."""
    monkeypatch.setattr(timing, "step_seconds", clock)
    if memory is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(memory))
    model, x = kit.mlp(), torch.randn(6, 12)
    topology = Topology(model, sparsity=0.7)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        network = to_engine(model, topology, x)
    converted = network is not model
    assert converted == bool(kit.sparse_layers(network))
    assert len(told) == (0 if converted else 1)
    held = {id(p) for p in network.parameters()}
    assert all(id(p) in held for p in topology.parameters.values())
    return converted, "" if converted else str(told[0].message)


@pytest.mark.parametrize(
    ("masked", "engine", "said"),
    [
        (0.0049, 0.0001, "a step takes 4.9 ms, too little to gain from"),
        (0.1, 0.101, "a step would take 1.01 times as long as with masks"),
        (0.1, 0.4, "a step would take 4.00 times as long as with masks"),
        (0.1, 0.0986, "a step would be only 1.4 % faster than with masks"),
        (0.1, 0.097, None),
        (0.0051, 0.001, None),
    ],
)
def test_it_is_used_where_it_pays(
    masked: float, engine: float, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted, told = decide(Clock(masked, engine), monkeypatch)
    assert converted == (said is None)
    if said is not None:
        assert told == f"the engine is not used: {said}; training goes on with masks."


def test_timing_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_WORTH_SECONDS", 0.0)
    monkeypatch.setattr(convert, "_LEAST_GAIN", float("inf"))
    model, x = nn.Sequential(kit.cnn(), nn.Dropout(0.5)), torch.randn(kit.IMAGES)
    topology = Topology(model, sparsity=0.7)
    model.eval()
    model.get_submodule("0.4").train()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    with pytest.warns(UserWarning, match="the engine is not used"):
        assert to_engine(model, topology, x) is model
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert toy.differences(dict(state), dict(model.state_dict())) == []
    assert all(p.grad is None for p in model.parameters())


def test_a_decision_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock(0.1, 0.05)
    assert decide(clock, monkeypatch)[0]
    assert clock.calls.count("engine") == 3
    changed = Clock(0.1, 0.5)
    assert decide(changed, monkeypatch)[0]
    assert changed.calls == []
    # With another number of threads it is another decision.
    torch.set_num_threads(2)
    assert not decide(changed, monkeypatch)[0]
    torch.set_num_threads(1)
    assert decide(changed, monkeypatch)[0]
    (tmp_path / "empty").mkdir()
    assert not decide(changed, monkeypatch, tmp_path / "empty")[0]
    small = Clock(0.001, 0.0001)
    assert not decide(small, monkeypatch, tmp_path / "small")[0]
    assert not decide(Clock(0.1, 0.05), monkeypatch, tmp_path / "small")[0]


def test_what_an_engine_made_in_any_case_gains_decides_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There, layers are sparse that torch would run faster."""
    model, x = kit.mlp(), (torch.randn(6, 12),)
    topology = Topology(model, sparsity=0.7)
    monkeypatch.setattr(timing, "step_seconds", Clock(0.1, 0.01))
    memory = Memory(None)
    with toy.untimed(slow=lambda geometry: geometry.in_channels == 12):
        gains = []
        for always in (True, False):
            conversion = convert.prepare(model, topology, x, memory, always=always)
            assert len(kit.sparse_layers(conversion.network)) == (3 if always else 2)
            gains.append(timing.speed_up(model, conversion, x, memory))
            monkeypatch.setattr(timing, "step_seconds", Clock(0.1, 0.2))
    assert gains == pytest.approx([10.0, 0.5])


def cache_files(folder: Path) -> list[Path]:
    return sorted((folder / "equipoise").glob("*"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b"{",
        b'{"a": 3}',
        lambda known: dict.fromkeys(known, 0.0),
        lambda known: dict.fromkeys(known, -1.0),
        lambda known: dict.fromkeys(known, float("nan")),
        lambda known: dict.fromkeys(known, float("inf")),
        lambda known: dict.fromkeys(known, "much"),
        lambda known: dict.fromkeys(known),
        lambda known: {key: {"way": 3, "seconds": [], "torch_seconds": {}} for key in known},
    ],
)
def test_a_damaged_memory_is_none(
    content: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert decide(Clock(0.1, 0.05), monkeypatch)[0]
    (path,) = cache_files(tmp_path)
    known = json.loads(path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content(known)).encode())
    clock = Clock(0.1, 0.5)
    assert not decide(clock, monkeypatch)[0]
    assert "engine" in clock.calls
    assert cache_files(tmp_path) == [path]
    assert json.loads(path.read_text())


def test_a_memory_that_cannot_be_written_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file stands where the folder should be, which not even an administrator can write to."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/nowhere")):
        assert decide(Clock(0.1, 0.05), monkeypatch, folder)[0]
        assert not decide(Clock(0.1, 0.5), monkeypatch, folder)[0]
    locked = tmp_path / "locked"
    (locked / "equipoise").mkdir(parents=True)
    (locked / "equipoise").chmod(0o500)
    assert decide(Clock(0.1, 0.05), monkeypatch, locked)[0]
    (locked / "equipoise").chmod(0o700)


@pytest.mark.parametrize("tiling", [{"rows": 0}, {"columns": -1}, {"group": 3}, {"block": -1}])
def test_a_remembered_way_that_no_kernel_can_run_is_none(tiling: dict[str, int]) -> None:
    memory = machine_memory()
    usual = {"block": 0, "rows": 1, "columns": 8, "group": 1}
    way = {"forward": usual, "input": usual, "weight": usual, "wide": False}
    memory._known["good"] = {"way": way, "seconds": 1.0, "torch_seconds": 2.0}
    memory._known["bad"] = {"way": way | {"input": usual | tiling}, **memory._known["good"]}
    memory._known["bad"]["way"] = way | {"input": usual | tiling}
    assert isinstance(memory.find("good"), Timed)
    assert memory.find("bad") is None


def test_layers_are_timed_once_and_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the true timings, on a layer of which some ways take a moment."""
    from equipoise.engine import choice, trials

    monkeypatch.setattr(convert, "choose_way", choice.choose_way)
    monkeypatch.setattr(trials, "_REPEATS", 1)
    x, built = torch.randn(6, 12), []
    for _ in range(2):
        model = kit.mlp()
        network, _ = kit.convert_it(model, x)
        built.append(ways_of(network))
        monkeypatch.setattr(choice, "fastest_tilings", None)  # the second time nothing is timed
    assert built[0] == built[1]
    assert built[0].keys() == {"0", "2", "4"}
    (path,) = cache_files(tmp_path)
    assert len(json.loads(path.read_text())) == 3


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, None),
        lambda y: {"logits": y, "labels": y.argmax(dim=1), "more": [y, 3]},
        lambda y: torch.distributions.Categorical(logits=y),
    ],
    ids=["tuple", "dictionary", "object"],
)
def test_results_of_any_kind_are_timed_and_checked(
    wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = kit.mlp()

        def forward(self, x: Tensor) -> Any:
            return wrap(self.body(x))

    model, x = Wrapped(), torch.randn(6, 12)
    monkeypatch.setattr(timing, "_WORTH_SECONDS", 0.0)
    topology = Topology(model, sparsity=0.7)
    gain: list[float] = []
    convert.choose_network(model, topology, (x,), on_gain=lambda found, by: gain.append(by))
    assert gain[0] > 0.0
    assert len(list(tensors_in(wrap(torch.randn(6, 3))))) >= 1


def test_results_without_numbers() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = kit.mlp()

        def forward(self, x: Tensor) -> Any:
            return str(self.body(x).sum())

    model = Silent()
    with pytest.raises(ValueError, match=r"^the network returns a str without numbers [^\n]*\.$"):
        to_engine(model, Topology(model, sparsity=0.5), torch.randn(6, 12))


def test_torch_is_timed_by_what_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from equipoise.engine import trials
    from equipoise.engine.convolution import Geometry

    timed: list[tuple[int, int, int] | str] = []

    def dense(samples: int, inputs: int, outputs: int) -> Callable[[], object]:
        timed.append((samples, inputs, outputs))
        return lambda: None

    def convolution(*given: Any) -> float:
        timed.append("convolution")
        return 1.0

    monkeypatch.setattr(trials, "dense_linear", dense)
    monkeypatch.setattr(trials, "_convolution_seconds", convolution)
    assert trials.torch_seconds(Geometry(7, 5), 1, 1, 100) < 0.01
    trials.torch_seconds(Geometry(7, 5), 1, 1, 500)
    assert timed == [(100, 5, 7), (128, 5, 7)], "a linear layer, of a whole batch"
    for geometry, rows in (
        (Geometry(7, 5), 2),
        (Geometry(8, 4, groups=2), 1),
        (Geometry(8, 4, (3, 3), padding=(1, 1)), 1),
    ):
        timed.clear()
        trials.torch_seconds(geometry, rows, rows, 100)
        assert timed == ["convolution"]


def test_processes_side_by_side_share_their_ways(tmp_path: Path) -> None:
    """What one found is not lost by what the other writes; the first to find a way decides."""
    path = tmp_path / "ways.json"
    one, other = Memory(path), Memory(path)
    mine, its = Timed(Way(), 1.0, 2.0), Timed(Way(wide=True), 0.5, 2.0)
    one.keep("a", mine)
    other.keep("b", its)
    other.keep("a", its)
    assert one.find("b") == its
    assert other.find("a") == mine
    assert Memory(path).find("a") == mine


def test_a_way_that_makes_no_sense_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ways.json"
    path.write_text('{"a": {"way": 1}, "n": "two"}')
    memory = Memory(path)
    assert memory.find("a") is None
    memory.keep("a", Timed(Way(), 1.0, 2.0))
    memory.keep("n", 3.0)
    assert Memory(path).find("a") == Timed(Way(), 1.0, 2.0)
    assert Memory(path).number("n") == 3.0
