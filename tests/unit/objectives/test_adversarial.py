"""Adversarial objectives: what they perturb, what they minimise, what they leave alone."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.attacks.pgd import PGD
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.threat import ThreatModel
from equipoise.data import Batch
from equipoise.objectives import AdversarialTraining, Attacker, Mart, Objective, Standard, Trades
from equipoise.objectives.adversarial import boosted_cross_entropy
from equipoise.training.meter import Meter

nets = import_module("tests.unit.attacks.nets")
EPS = 0.1
PIXELS = Pixels((0.45, 0.5, 0.55), (0.2, 0.25, 0.3))


def attacker(start: Any = "ball", **more: Any) -> Attacker:
    pgd = PGD(threat=ThreatModel(norm="linf", eps=EPS), step_size=EPS / 2, steps=4, start=start)
    return Attacker(attack=pgd, **more)


OBJECTIVES: dict[str, Objective] = {
    "standard": Standard(),
    "at": AdversarialTraining(attacker=attacker()),
    "mixed": AdversarialTraining(attacker=attacker(), share=0.5),
    "trades": Trades(attacker=attacker("near")),
    "mart": Mart(attacker=attacker("near")),
}


def known() -> tuple[nn.Module, Batch]:
    model, x, y = nets.trained()
    return model, Batch(x[:32], y[:32], torch.arange(32))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_contract_prepare_leaves_the_model_alone_and_loss_is_pure(name: str) -> None:
    model, batch = known()
    model.train()
    try:
        objective = OBJECTIVES[name]
        before = {key: value.clone() for key, value in model.state_dict().items()}
        prepared = objective.prepare(model, batch)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert all(m.training for m in model.modules())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert torch.equal(prepared.y, batch.y)
        assert prepared.size == batch.size
        losses = [objective.loss(model, prepared) for _ in range(2)]
        assert losses[0].shape == ()
        assert torch.equal(*losses)
        assert losses[0].requires_grad
    finally:
        model.load_state_dict(before)
        model.eval()


@pytest.mark.parametrize("name", ["at", "mixed", "trades", "mart"])
def test_what_is_moved_stays_near_and_raises_the_loss(name: str) -> None:
    model, batch = known()
    objective = OBJECTIVES[name]
    prepared = objective.prepare(model, batch)
    moved = prepared.x[-batch.size :] if name in ("trades", "mart") else prepared.x
    assert float((moved - batch.x).abs().max()) <= EPS + 1e-6
    assert float(moved.min()) >= 0.0
    assert float(moved.max()) <= 1.0
    with torch.no_grad():
        assert objective.loss(model, prepared) > objective.loss(model, batch) + 0.05
    if name in ("trades", "mart"):
        assert torch.equal(prepared.x[: batch.size], batch.x)


def test_half_of_a_mixed_batch_is_as_it_was() -> None:
    model, batch = known()
    prepared = OBJECTIVES["mixed"].prepare(model, batch)
    changed = (prepared.x != batch.x).flatten(1).any(1)
    assert changed.tolist() == [True] * 16 + [False] * 16


def test_radii_are_in_pixels_whatever_the_inputs_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    batch = Batch(PIXELS.inputs(torch.rand(8, 3, 2, 2)), torch.arange(8) % 4, torch.arange(8))
    prepared = AdversarialTraining(attacker=attacker(pixels=PIXELS)).prepare(model, batch)
    std = torch.tensor(PIXELS.std).view(1, 3, 1, 1)
    change = (prepared.x - batch.x).abs() * std
    assert float(change.max()) <= EPS + 1e-6
    assert float(change.amax((0, 2, 3)).min()) > 0.9 * EPS
    images = PIXELS.of(prepared.x)
    assert torch.allclose(PIXELS.inputs(images), prepared.x, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_trades_at_the_clean_point_is_cross_entropy(beta: float) -> None:
    model, batch = known()
    objective = Trades(attacker=attacker("near"), beta=beta)
    parameters = list(model.parameters())
    plain = F.cross_entropy(model(batch.x), batch.y)
    wanted = torch.autograd.grad(plain, parameters)
    for same in (batch, batch._replace(x=torch.cat([batch.x, batch.x]))):
        loss = objective.loss(model, same)
        assert torch.allclose(loss, plain, atol=1e-6)
        found = torch.autograd.grad(loss, parameters)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_trades_against_ten_lines() -> None:
    model, batch = known()
    prepared = OBJECTIVES["trades"].prepare(model, batch)
    z, moved = model(batch.x), model(prepared.x[batch.size :])
    p, q = z.softmax(1), moved.softmax(1)
    wanted = F.cross_entropy(z, batch.y) + 6 * (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(OBJECTIVES["trades"].loss(model, prepared), wanted, atol=1e-5)


def test_mart_against_ten_lines() -> None:
    model, batch = known()
    prepared = OBJECTIVES["mart"].prepare(model, batch)
    p, q = model(batch.x).softmax(1), model(prepared.x[batch.size :]).softmax(1)
    rows = torch.arange(batch.size)
    others = q.clone()
    others[rows, batch.y] = 0.0
    boosted = -q[rows, batch.y].log() - (1 - others.amax(1)).log()
    doubt = 1 - p[rows, batch.y]
    wanted = (boosted + 6 * (p * (p.log() - q.log())).sum(1) * doubt).mean()
    assert torch.allclose(OBJECTIVES["mart"].loss(model, prepared), wanted, rtol=1e-4)


def test_boosting_stays_finite_where_the_network_is_certain_and_wrong() -> None:
    logits = torch.tensor([[500.0, 0.0, 0.0]], requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([1])).sum()
    loss.backward()
    assert logits.grad is not None
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())


class TwoModes(nn.Module):
    """Tells in which modes it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.layer(x)


@pytest.mark.parametrize(("name", "attack_calls"), [("at", 4), ("trades", 5), ("mart", 4)])
def test_attacks_see_the_network_in_evaluation_mode(name: str, attack_calls: int) -> None:
    model = TwoModes()
    batch = Batch(torch.rand(4, 4), torch.arange(4) % 3, torch.arange(4))
    objective = OBJECTIVES[name]
    objective.loss(model, objective.prepare(model, batch))
    assert model.modes[:attack_calls] == [False] * attack_calls
    assert all(model.modes[attack_calls:])


@pytest.mark.parametrize(
    ("kind", "forwards", "backwards"),
    [
        (AdversarialTraining, 4 * 8, 4 * 4),
        (Trades, 5 * 8, 4 * 4),
        (Mart, 4 * 8, 4 * 4),
    ],
)
def test_the_meter_counts_the_passes_of_an_attack(kind: Any, forwards: int, backwards: int) -> None:
    meter = Meter(torch.device("cpu"))
    objective = kind(attacker=attacker(measure=meter))
    batch = Batch(torch.rand(8, 4), torch.arange(8) % 3, torch.arange(8))
    objective.prepare(nn.Linear(4, 3), batch)
    assert (meter.forward_samples, meter.backward_samples) == (forwards, backwards)
    assert meter.seconds("attack") > 0.0


def test_a_batch_too_small_to_halve_is_left_alone() -> None:
    batch = Batch(torch.rand(1, 4), torch.zeros(1).long(), torch.arange(1))
    assert OBJECTIVES["mixed"].prepare(nn.Linear(4, 3), batch) is batch
