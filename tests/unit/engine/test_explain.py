"""What is expected of the engine, in words: the same decision as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise import Topology, to_engine
from equipoise.engine import convert
from equipoise.engine import explain as explaining
from equipoise.engine.choice import Memory, Timed
from equipoise.engine.convert import LayerChoice
from equipoise.engine.convolution import Geometry, Tiling, Way
from equipoise.engine.explain import Explanation, explain, way_in_words
from equipoise.engine.layers import SparseLayer
from equipoise.engine.network import EngineNetwork

kit: Any = import_module("tests.unit.engine.engine_kit")

BATCH = torch.zeros(4, 16)
Speed = Callable[[Geometry], tuple[float, float]]


class Branching(nn.Module):
    """Its forward pass depends on its input, so that no one can write down its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Any:
        return self.layers(x if x.sum() >= 0 else -x)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 2))


def masked(model: nn.Module) -> Topology:
    """The last layer stays dense."""
    return Topology(
        model, sparsity=0.5, distribution="uniform", include=lambda _, p: p.ndim == 2 and len(p) > 2
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with kit.threads(1):
        yield


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces all timings by given ones."""

    def say(layer: Speed = lambda _: (1.0, 4.0), step: tuple[float, float] = (1.0, 3.0)) -> None:
        def choose(
            geometry: Geometry, positions: Tensor, rows: int, columns: int, batch: int, memory: Any
        ) -> Timed:
            return Timed(Way(Tiling(16, 1, 8)), *layer(geometry))

        def seconds(model: nn.Module, inputs: Any) -> float:
            converted = any(isinstance(m, SparseLayer) for m in model.modules())
            return step[0] if converted else step[1]

        monkeypatch.setattr(convert, "choose_way", choose)
        monkeypatch.setattr("equipoise.engine.timing.step_seconds", seconds)
        for module in (convert, explaining):
            monkeypatch.setattr(module, "machine_memory", lambda: Memory(None))

    return say


@kit.needs_kernels
def test_a_gain_is_told_layer_by_layer_and_in_one_sentence(told: Any) -> None:
    told()
    model = network()
    topology = masked(model)
    seen: list[LayerChoice] = []
    found = explain(model, topology, (BATCH,), on_layer=seen.append)
    assert isinstance(found.network, EngineNetwork)
    assert (found.reason, found.untraced, found.gain) == (None, None, 3.0)
    assert found.layers == tuple(seen)
    assert [(c.path, c.density) for c in seen] == [("0", 0.5), ("2", 0.5), ("3", 1.0)]
    words = "16 channels at a time, 1 x 8 positions"
    assert [found.way(c) for c in seen] == [
        f"sparse, {words}",
        f"sparse, {words}",
        f"dense, {words}",
    ]
    assert [found.layer_gain(c) for c in seen] == [4.0, 4.0, 4.0]
    assert found.verdict == (
        "Expected: a training step 3.0 times as fast as with masks on this machine "
        f"({found.instructions}, 1 thread)."
    )
    assert topology.parameters["0.weight"].ndim == 1


@kit.needs_kernels
def test_a_layer_that_torch_runs_faster_is_left_to_torch(told: Any) -> None:
    told(lambda g: (5.0, 4.0) if g.in_channels == 32 else (1.0, 4.0))
    model = network()
    found = explain(model, masked(model), (BATCH,))
    middle = found.layers[1]
    assert found.way(middle) == "torch: torch is faster"
    assert found.layer_gain(middle) == 1.0
    assert found.layer_gain(found.layers[0]) == 4.0


@kit.needs_kernels
@pytest.mark.parametrize(
    ("layer", "step", "gain", "reason"),
    [
        ((5.0, 4.0), (1.0, 3.0), None, "no layer gains from the kernels on this machine"),
        ((1.0, 4.0), (6.0, 3.0), 0.5, "a step would take 2.00 times as long as with masks"),
        ((1.0, 4.0), (1.0, 0.001), None, "a step takes 1.0 ms, too little to gain from"),
    ],
)
def test_nothing_to_gain_is_said_plainly(
    layer: tuple[float, float],
    step: tuple[float, float],
    gain: float | None,
    reason: str,
    told: Any,
) -> None:
    told(lambda _: layer, step)
    model = network()
    topology = masked(model)
    found = explain(model, topology, (BATCH,))
    assert (found.network, found.gain, found.reason) == (model, gain, reason)
    assert found.verdict == (
        f"Nothing to gain on this machine: {reason}; training goes on with masks."
    )
    assert topology.parameters["0.weight"] is model[0].weight
    with pytest.warns(UserWarning, match=reason):
        assert to_engine(model, topology, BATCH) is model


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    model = network()
    for engine in ("auto", "sparse"):
        found = explain(model, masked(model), (BATCH,), engine=engine)
        assert (found.network, found.gain, found.instructions) == (model, None, None)
        # Layers this small are not run by torch CSR either.
        assert all(layer.reason is not None for layer in found.layers)
        assert found.where == "1 thread"
        assert found.verdict.startswith(
            "Nothing to gain on this machine: the kernels are switched off"
        )
        assert ".;" not in found.verdict


@kit.needs_kernels
def test_sparse_in_any_case_tells_what_it_costs(told: Any) -> None:
    told(lambda _: (8.0, 4.0), (6.0, 3.0))
    model = network()
    found = explain(model, masked(model), (BATCH,), engine="sparse")
    assert (found.gain, found.reason) == (0.5, None)
    assert found.verdict.startswith(
        "Expected: a training step takes 2.0 times as long as with masks on this machine ("
    )
    assert [found.way(c).partition(",")[0] for c in found.layers] == [
        "sparse",
        "sparse",
        "torch: torch is faster",
    ]
    assert [found.layer_gain(c) for c in found.layers] == [0.5, 0.5, 1.0]


@kit.needs_kernels
def test_sparse_in_any_case_needs_a_mask(told: Any) -> None:
    told()
    model = network()
    found = explain(model, Topology(model, sparsity=0.0), (BATCH,), engine="sparse")
    assert found.network is model
    assert found.reason == "no layer has masks that the kernels can follow"


@kit.needs_kernels
def test_a_network_that_is_not_followed(told: Any) -> None:
    told()
    model = Branching()
    found = explain(model, masked(model), (BATCH,))
    assert found.reason is None
    assert found.untraced
    assert [found.way(c).partition(",")[0] for c in found.layers] == [
        "sparse",
        "sparse",
        "torch: its maps are in torch's layout",
    ]
    assert found.layer_gain(found.layers[2]) == 1.0


@kit.needs_kernels
def test_a_layer_that_the_kernels_cannot_run(told: Any) -> None:
    told()
    model = network().double()
    found = explain(model, masked(model), (BATCH.double(),))
    assert found.reason == "of the first layer, its weights are torch.float64"
    choice = LayerChoice("0", (1, 1), 1.0, None, "its weight is shared with another layer")
    assert found.way(choice) == "torch: its weight is shared with another layer"
    assert found.layer_gain(choice) == 1.0


@pytest.mark.parametrize(
    ("way", "density", "words"),
    [
        (Way(Tiling(0, 4, 4)), 0.1, "sparse, 4 x 4 positions"),
        (
            Way(Tiling(32, 2, 3, 4)),
            1.0,
            "dense, 32 channels at a time, 2 x 3 positions, rows in fours",
        ),
        (Way(Tiling(0, 1, 8, 2), wide=True), 0.3, "sparse, wide, 128 samples, rows in twos"),
    ],
)
def test_ways_in_words(way: Way, density: float, words: str) -> None:
    assert way_in_words(way, density=density) == words


def test_threads_in_words() -> None:
    found = Explanation(nn.Identity(), (), 2.0, None, None, "avx2", 4)
    assert found.where == "avx2, 4 threads"
