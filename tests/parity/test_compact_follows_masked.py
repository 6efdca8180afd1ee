"""A training on compact weights is, bit for bit, the training on masked dense ones."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.correction import Constant, GradientCorrector, LossCovariance
from equipoise.topology import Rewiring, Topology, rigl, rigl_itop, set_itop, set_rewiring

layers: Any = import_module("tests.unit.topology.compact_layers")

STEPS = 100
REWIRINGS: dict[str, Any] = {
    "set": lambda: set_rewiring(STEPS, interval=10),
    "rigl": lambda: rigl(STEPS, interval=10),
    "set_itop": lambda: set_itop(STEPS, interval=10),
    "rigl_itop": lambda: rigl_itop(STEPS, interval=10),
    "rigl by sign": lambda: Rewiring(
        total_steps=STEPS, interval=10, grow=lambda w, g, m, r: g, drop=lambda w, g, m, r: w * g
    ),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.003),
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(80, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


def draw(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 2, 4, 4, generator=generator)
    return x, torch.randint(4, (8,), generator=generator)


class Run:
    """A training of either kind; both kinds start from the same weights and masks."""

    def __init__(
        self, kind: str, rewiring: Any, optimizer: Any, coefficient: Any = None, seed: int = 3
    ) -> None:
        self.model = network(seed)
        self.topology = Topology(self.model, sparsity=0.7, rewiring=rewiring, seed=seed)
        if kind == "compact":
            self.model = layers.compact_copy(self.model, self.topology)
            self.topology.rebind_(layers.compact_stores(self.model), model=self.model)
        self.optimizer = optimizer(self.model.parameters())
        self.topology.attach(self.optimizer)
        self.corrector: Any = GradientCorrector(self.model, self.loss, coefficient or Constant(0.0))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def go(self, first: int, last: int, micro: int = 1) -> Run:
        for step in range(first, last):
            self.optimizer.zero_grad()
            for part in range(micro):
                self.corrector.backward(draw(micro * step + part), scale=1 / micro)
            self.optimizer.step()
        return self

    def refresh(self, *steps: int) -> None:
        self.corrector.refresh([draw(step) for step in steps])

    def state(self) -> dict[str, Any]:
        parts = ("model", "optimizer", "corrector", "topology")
        return copy.deepcopy({part: getattr(self, part).state_dict() for part in parts})


def assert_follow(masked: Run, compact: Run) -> None:
    a, b = masked.topology, compact.topology
    assert layers.same(dict(a.masks), dict(b.masks))
    assert layers.same(dict(a.ever_active), dict(b.ever_active))
    assert layers.same(layers.dense_weights(a), layers.dense_weights(b))
    assert layers.same(
        layers.dense_state(a, masked.optimizer), layers.dense_state(b, compact.optimizer)
    )
    assert (a.plan, a.num_weights, a.density, a.exploration_rate, a.summary()) == (
        b.plan,
        b.num_weights,
        b.density,
        b.exploration_rate,
        b.summary(),
    )
    assert (a.num_steps, a.num_rewirings) == (b.num_steps, b.num_rewirings)
    assert torch.equal(a.state_dict()["generator"], b.state_dict()["generator"])
    assert a.verify() == b.verify() == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rewiring", REWIRINGS)
def test_both_kinds_take_the_same_decisions_and_steps(rewiring: str, optimizer: str) -> None:
    runs = [
        Run(kind, REWIRINGS[rewiring](), OPTIMIZERS[optimizer]).go(0, STEPS)
        for kind in ("masked", "compact")
    ]
    assert_follow(*runs)
    assert runs[0].topology.num_rewirings >= 7
    assert runs[0].topology.exploration_rate > 0.33


def test_both_kinds_add_up_the_raw_gradients_of_micro_batches() -> None:
    runs = [
        Run(kind, rigl(40, interval=4), OPTIMIZERS["sgd"]).go(0, 40, micro=3)
        for kind in ("masked", "compact")
    ]
    assert_follow(*runs)


@pytest.mark.parametrize("rewiring", ["set", "rigl"])
@pytest.mark.parametrize("coefficient", [lambda: Constant(0.6), LossCovariance])
def test_both_kinds_are_corrected_alike_until_a_rewiring(rewiring: str, coefficient: Any) -> None:
    runs = [
        Run(kind, REWIRINGS[rewiring](), OPTIMIZERS["sgd"], coefficient())
        for kind in ("masked", "compact")
    ]
    values = set()
    for first in range(0, 30, 10):
        # A rewiring follows step 10 k, so the snapshot is taken right after it.
        for run in runs:
            run.refresh(*range(first, first + 10))
            run.go(first, first + 10)
        assert_follow(*runs)
        values.add(runs[0].corrector.coefficient_value)
        assert runs[0].corrector.coefficient_value == runs[1].corrector.coefficient_value
    assert runs[0].topology.num_rewirings == 3
    assert max(values) > 0.0


@pytest.mark.parametrize("rewiring", ["set", "rigl_itop"])
def test_without_a_rewiring_in_between_the_corrections_stay_the_same(rewiring: str) -> None:
    runs = [
        Run(kind, REWIRINGS[rewiring](), OPTIMIZERS["adamw"], Constant(0.9))
        for kind in ("masked", "compact")
    ]
    for run in runs:
        run.refresh(*range(9))
        run.go(0, 9)
    assert_follow(*runs)
    old, new = (run.corrector.full_gradient for run in runs)
    for name, layer in layers.layers_of(runs[1].model).items():
        gradient = new[name.replace("weight", "values")]
        assert gradient.shape == layer.values.shape
        assert torch.equal(old[name].flatten()[layer.index], gradient)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [10, 15, 25])
def test_a_compact_run_is_resumed_bit_for_bit(stop: int, optimizer: str) -> None:
    def make(seed: int) -> Run:
        return Run("compact", rigl(60, interval=10), OPTIMIZERS[optimizer], Constant(0.5), seed)

    def train(run: Run, first: int, last: int) -> Run:
        for step in range(first, last):
            if step % 12 == 0:  # so that rewirings fall between a refresh and the stops
                run.refresh(*range(step, step + 12))
            run.go(step, step + 1)
        return run

    whole = train(make(3), 0, 40)
    saved = train(make(3), 0, stop).state()
    resumed = make(8)
    for part in ("model", "optimizer", "corrector", "topology"):
        getattr(resumed, part).load_state_dict(copy.deepcopy(saved[part]))
    assert resumed.topology.verify() == []
    train(resumed, stop, 40)
    assert same_tree(resumed.state(), whole.state())


def same_tree(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return bool(a == b)


@pytest.mark.parametrize("rewiring", ["set", "rigl"])
def test_a_topology_goes_on_in_the_other_kind_and_back(rewiring: str) -> None:
    whole = Run("masked", REWIRINGS[rewiring](), lambda p: torch.optim.SGD(p, lr=0.05)).go(0, 60)
    run = Run("masked", REWIRINGS[rewiring](), lambda p: torch.optim.SGD(p, lr=0.05)).go(0, 15)
    for step, kind in ((15, "compact"), (35, "masked")):
        moved = Run(kind, REWIRINGS[rewiring](), lambda p: torch.optim.SGD(p, lr=0.05), seed=9)
        moved.topology.load_state_dict(run.topology.state_dict())
        dense = layers.dense_weights(run.topology)
        for name, store in moved.topology._weights.items():
            flat = dense[name].flatten()
            entries = flat[layers.layers_of(moved.model)[name].index] if kind == "compact" else flat
            store.weight.data.copy_(entries.view(store.weight.shape))
        others = {n: t for n, t in run.model.state_dict().items() if _plain(n, dense)}
        moved.model.load_state_dict(moved.model.state_dict() | others)
        run = moved.go(step, step + 20 if kind == "compact" else 60)
    assert_follow(whole, run)


def _plain(name: str, masked: dict[str, Tensor]) -> bool:
    """Whether a tensor of a model has the same name and meaning in both kinds."""
    return name not in masked and not name.endswith((".values", ".index"))


@pytest.mark.parametrize("topology", ["static", "rigl"])
def test_a_session_clips_and_corrects_both_kinds_alike(topology: str) -> None:
    """To rounding: the norm adds up the same gradients in another order."""
    toy: Any = import_module("tests.unit.training.toy")
    build_optimizer = import_module("equipoise.training.optimizers").build_optimizer
    correcting = import_module("equipoise.training.correcting")

    def trained(compact: bool) -> Any:
        settings = {"topology": topology, "corrector": "agent", "clip_norm": 0.05}
        session = toy.session(**settings, sparsity=0.8)
        if compact:
            session.topology._attachment.remove()
            session.model = layers.compact_copy(session.model, session.topology)
            stores = layers.compact_stores(session.model)
            session.topology.rebind_(stores, model=session.model)
            surroundings = correcting.Surroundings(
                model=session.model,
                topology=session.topology,
                images=session.images.train,
                device=session.device,
                measure=session.meter,
                num_refreshes=session.schedule.count,
                folder=None,
            )
            session.corrector = correcting.build_corrector(
                session.objective, session.run, surroundings
            )
            trainable = list(session.model.parameters())
            session.optimizer = build_optimizer(trainable, session.run.optimization)
            session.topology.attach(session.optimizer)
        toy.begin_epoch(session)
        session.train_step(next(iter(session.batches())))
        moving = [p.grad if m is None else p.grad * m for p, m in session._with_masks()]
        assert float(torch.nn.utils.get_total_norm(moving)) == pytest.approx(0.05, rel=1e-4)
        return session

    masked, compact = trained(False), trained(True)
    assert {m for _, m in compact._with_masks()} == {None}
    weights = layers.dense_weights(compact.topology)
    for name, weight in layers.dense_weights(masked.topology).items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6)
