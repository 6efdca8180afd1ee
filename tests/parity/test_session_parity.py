"""Arms of a pair share what they should, and a session is the loop that one would write by hand."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.data import ImageLoader
from equipoise.training.build import stream_seed

toy = import_module("tests.unit.training.toy")

EQUAL = {"batch_size": 12}  # 72 images, so that no batch is short
CORRECTED = ("agent", "no_gamma", "svrg", "alpha_svrg", "fixed")


def live(session: Any) -> dict[str, Any]:
    """Everything that a plain and a corrected run have in common."""
    return {
        "model": dict(session.model.state_dict()),
        "optimizer": session.optimizer.state_dict(),
        "topology": session.topology.state_dict(),
        "random": torch.get_rng_state(),
        "position": session.state_dict()["position"],
        "meter": (session.meter.forward_samples, session.meter.backward_samples),
    }


def trained(**changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    session = toy.session(**changes)
    records = [toy.without_time(record) for record in toy.all_epochs(session)]
    return copy.deepcopy(live(session)), records


def order(session: Any, number: int) -> Tensor:
    return torch.cat([batch.index for batch in session.loader.epoch(number)])


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class ByHand:
    """A training written out: a copy of the old model, a sum of gradients, a mask, an optimizer."""

    def __init__(self, session: Any) -> None:
        self.model: nn.Module = copy.deepcopy(session.model)
        self.masks = {name: mask.clone() for name, mask in session.topology.masks.items()}
        self.loader: ImageLoader = session.loader
        self.epochs = session.run.loop.epochs
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.old = copy.deepcopy(self.model)
        self.mean_gradient: list[Tensor] = []
        self.coefficient = 0.0
        self.losses: list[float] = []

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    def gradient(self, model: nn.Module, batch: Any) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(model, batch), list(model.parameters())))

    def mask(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.masks:
                parameter.data *= self.masks[name]
                buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    buffer *= self.masks[name]

    def snapshot(self, epoch: int, *, adaptive: bool) -> None:
        """Full gradient with a throw-away copy, then the slope of new on old losses."""
        scratch = copy.deepcopy(self.model)
        batches = list(self.loader.epoch(epoch))
        rows = [self.gradient(scratch, batch) for batch in batches]
        self.mean_gradient = [torch.stack(parts).mean(dim=0) for parts in zip(*rows, strict=True)]
        if adaptive and epoch > 0:
            with torch.no_grad():
                new = [float(self.loss(scratch, batch)) for batch in batches]
                old = [float(self.loss(self.old, batch)) for batch in batches]
            slope = np.cov(new, old, ddof=1)[0, 1] / np.var(old, ddof=1)
            self.coefficient = 0.7 * self.coefficient + 0.3 * float(slope)
        self.old = copy.deepcopy(self.model)

    def train(self, weight: float | None = 0.0) -> nn.Module:
        """`weight` of the old gradient; None for 0.1 times the estimate."""
        step, total = 0, self.epochs * len(self.loader)
        for epoch in range(self.epochs):
            if weight is None or weight != 0.0:
                self.snapshot(epoch, adaptive=weight is None)
            used = 0.1 * self.coefficient if weight is None else weight
            losses = []
            for batch in self.loader.epoch(epoch):
                for group in self.optimizer.param_groups:
                    group["lr"] = 0.1 * 0.1 ** ((step >= 0.5 * total) + (step >= 0.75 * total))
                loss = self.loss(self.model, batch)
                self.optimizer.zero_grad()
                torch.autograd.backward(loss)
                if used != 0.0:
                    self.correct(batch, used)
                self.optimizer.step()
                self.mask()
                losses.append(float(loss.detach()))
                step += 1
            self.losses.append(sum(losses) / len(losses))
        return self.model

    def correct(self, batch: Any, used: float) -> None:
        old = self.gradient(self.old, batch)
        rows = zip(self.model.parameters(), self.mean_gradient, old, strict=True)
        for parameter, mean, subtracted in rows:
            assert parameter.grad is not None
            parameter.grad += used * (mean - subtracted)


def test_a_plain_session_is_the_loop_by_hand_bit_for_bit() -> None:
    session = toy.session(**EQUAL)
    by_hand = ByHand(session)
    model = by_hand.train()
    records = toy.all_epochs(session)
    assert toy.differences(dict(model.state_dict()), dict(session.model.state_dict())) == []
    assert [r.train_loss for r in records] == pytest.approx(by_hand.losses, rel=1e-12)
    momenta = [state["momentum_buffer"] for state in session.optimizer.state.values()]
    expected = [state["momentum_buffer"] for state in by_hand.optimizer.state.values()]
    assert toy.differences(expected, momenta) == []


@pytest.mark.parametrize(
    ("corrector", "weight"), [("svrg", 1.0), ("fixed", 0.1), ("agent", None)], ids=str
)
def test_a_corrected_session_is_the_loop_by_hand(corrector: str, weight: float | None) -> None:
    session = toy.session(corrector=corrector, **EQUAL)
    by_hand, plain = ByHand(session), ByHand(session)
    model, uncorrected = by_hand.train(weight), plain.train()
    records = toy.all_epochs(session)
    ours = torch.nn.utils.parameters_to_vector(session.model.parameters()).detach()
    theirs = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    without = torch.nn.utils.parameters_to_vector(uncorrected.parameters()).detach()
    assert float((ours - theirs).norm()) < 1e-3 * float((theirs - without).norm())
    assert [r.train_loss for r in records] == pytest.approx(by_hand.losses, rel=1e-5)
    if weight is None:
        assert records[-1].coefficient == pytest.approx(0.1 * by_hand.coefficient, rel=1e-4)
        assert records[0].coefficient == 0.0
    else:
        assert records[-1].coefficient == weight


@pytest.mark.parametrize("corrector", CORRECTED)
def test_arms_share_weights_masks_order_and_random_numbers(corrector: str) -> None:
    plain = toy.session(topology="rigl", interval=3)
    start = copy.deepcopy(live(plain))
    arm = toy.session(topology="rigl", interval=3, corrector=corrector)
    assert toy.differences(start, live(arm)) == []
    for number in range(3):
        assert torch.equal(order(plain, number), order(arm, number))
    # The data order is still shared after an epoch whose refresh went over the data as well.
    toy.one_epoch(arm)
    assert torch.equal(order(plain, 1), torch.cat([b.index for g in arm.batches() for b in g]))


def test_a_larger_batch_takes_the_same_images_in_the_same_order() -> None:
    single, double = toy.session(), toy.session(batch_size=32)
    left, right = live(single), live(double)
    assert toy.differences(left["model"], right["model"]) == []
    assert toy.differences(left["topology"], right["topology"]) == []
    assert torch.equal(order(single, 1), order(double, 1))
    assert (single.steps_per_epoch, double.steps_per_epoch) == (5, 3)


@pytest.mark.parametrize("other", ["set", "rigl", "set_itop", "rigl_itop"])
def test_topologies_of_a_seed_start_from_the_same_weights_and_masks(other: str) -> None:
    static, moving = live(toy.session()), live(toy.session(topology=other, interval=3))
    assert toy.differences(static, moving) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"topology": "dense"},
        {"topology": "set", "interval": 2},
        {"topology": "rigl", "interval": 2, "growth_signal": "corrected"},
        {"topology": "rigl_itop", "interval": 3, "optimizer": "adamw", "learning_rate": 1e-3},
        {"accumulate": 2, "clip_norm": 0.5, "optimizer": "sgdw", "label_smoothing": 0.1},
        {"precision": "bf16", "refresh_every": 2, "refresh_draw": "fresh"},
        {"precision": "fp16", "validation": 0.25},
        {"model": "wrn_22_2", "width": 0.25, "dropout": 0.3, "batch_size": 48, "epochs": 2},
    ],
    ids=lambda changes: ", ".join(map(str, changes.values())) or "default",
)
def test_a_fixed_coefficient_of_zero_is_no_correction_bit_for_bit(changes: dict[str, Any]) -> None:
    plain, plain_records = trained(**changes)
    zero, zero_records = trained(corrector="fixed", coefficient=0.0, **changes)
    assert toy.differences(plain, zero) == []
    assert plain_records == zero_records


def test_a_small_coefficient_is_seen() -> None:
    plain, plain_records = trained()
    corrected, records = trained(corrector="fixed", coefficient=1e-3)
    found = toy.differences(plain, corrected)
    assert any(path.startswith(".model") for path in found)
    assert not any(path.startswith((".random", ".topology")) for path in found)
    assert plain_records != records


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_first_epoch_of_agent_is_plain(dropout: float) -> None:
    changes = {"model": "wrn_22_2", "width": 0.25, "dropout": dropout, "batch_size": 48}
    plain, agent = (toy.session(corrector=c, **changes) for c in ("none", "agent"))
    states, records = [], []
    for session in (plain, agent):
        torch.manual_seed(5)
        records.append(toy.without_time(toy.one_epoch(session)))
        states.append(copy.deepcopy(live(session)))
    assert toy.differences(*states) == []
    assert records[0] == records[1]


def test_the_same_settings_give_the_same_training_whatever_came_before() -> None:
    changes = {"topology": "set", "corrector": "agent", "interval": 2}
    first = trained(**changes)
    torch.manual_seed(12345)
    torch.rand(17)
    second = trained(**changes)
    assert toy.differences(first, second) == []


def test_seeds_differ_in_weights_masks_order_and_random_numbers() -> None:
    sessions = [toy.session(seed=seed, topology="set", interval=2) for seed in (0, 1)]
    weights = [s.model.state_dict()["layers.0.weight"] for s in sessions]
    masks = [s.topology.masks["layers.0.weight"] for s in sessions]
    assert not torch.equal(*weights)
    assert not torch.equal(*masks)
    assert not torch.equal(order(sessions[0], 0), order(sessions[1], 0))
    assert sessions[0].topology.num_active == sessions[1].topology.num_active
    streams = {stream_seed(seed, name) for seed in (0, 1) for name in ("weights", "masks", "data")}
    assert len(streams) == 6


def test_initial_weights_depend_on_nothing_but_the_seed_and_the_network() -> None:
    def initial(**changes: Any) -> dict[str, Tensor]:
        return dict(toy.session(topology="dense", **changes).model.state_dict())

    reference = initial()
    for changes in (
        {"batch_size": 7},
        {"optimizer": "adamw"},
        {"corrector": "svrg"},
        {"epochs": 9},
        {"precision": "bf16"},
        {"validation": 0.25},
    ):
        assert toy.differences(reference, initial(**changes)) == []
    torch.manual_seed(stream_seed(0, "weights"))
    from equipoise.models import create

    by_hand = create("mlp", num_classes=4, in_channels=1, image_size=8, width=0.05)
    assert toy.differences(reference, dict(by_hand.state_dict())) == []
