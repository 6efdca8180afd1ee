"""Attacks stay in the ball and in [0, 1], climb, and leave the network as it was."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import LOSSES, PGD, cross_entropy, divergence, margin, towards
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.probing import probed
from equipoise.attacks.threat import Norm, ThreatModel

nets = import_module("tests.unit.attacks.nets")
NORMS: tuple[Norm, ...] = ("linf", "l2")
ROUNDING = 1e-6


def length(change: Tensor, norm: str) -> Tensor:
    order = float("inf") if norm == "linf" else 2
    return torch.linalg.vector_norm(change.flatten(1), ord=order, dim=1)


def attack(norm: Norm = "linf", eps: float = 0.1, **changes: Any) -> PGD:
    settings = {"step_size": eps / 4, "steps": 10, **changes}
    return PGD(threat=ThreatModel(norm=norm, eps=eps), **settings)


def accuracy(pgd: PGD, *, seed: int = 0, score: Any = cross_entropy) -> float:
    model, x, y = nets.trained()
    torch.manual_seed(seed)
    with probed(model):
        moved = pgd.perturb(lambda images: score(model(images), y), x)
        return float((model(moved).argmax(1) == y).float().mean())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["ball", "near", "image"])
def test_perturbed_images_stay_in_the_ball_and_in_the_box(norm: Norm, start: Any) -> None:
    model, x, y = nets.trained()
    pgd = attack(norm, 0.3, start=start, step_size=0.4)
    with probed(model):
        for moved in (pgd.begin(x), pgd.perturb(lambda z: cross_entropy(model(z), y), x)):
            assert float(length(moved - x, norm).max()) <= 0.3 + ROUNDING
            assert float(moved.min()) >= 0.0
            assert float(moved.max()) <= 1.0
    assert float(length(moved - x, norm).max()) > 0.2


@pytest.mark.parametrize("norm", NORMS)
def test_starts_fill_the_ball(norm: Norm) -> None:
    torch.manual_seed(0)
    x = torch.full((4000, 1, 1, 2), 0.5)
    change = attack(norm, 0.25).begin(x) - x
    lengths = length(change, norm)
    # In two dimensions a quarter of an even filling lies within half of the radius.
    assert 0.22 < float((lengths < 0.125).float().mean()) < 0.28
    assert abs(float(change.mean())) < 0.01


def test_projection_is_the_nearest_point_where_the_ball_is_a_box() -> None:
    x = torch.tensor([[0.1, 0.5, 0.9]])
    far = torch.tensor([[-1.0, 0.55, 2.0]])
    found = ThreatModel(norm="linf", eps=0.2).project(far, x)
    assert torch.allclose(found, torch.tensor([[0.0, 0.55, 1.0]]))
    short = ThreatModel(norm="l2", eps=0.5).project(x + torch.tensor([[0.3, 0.4, 0.0]]) * 2, x)
    assert torch.allclose(short - x, torch.tensor([[0.3, 0.4, 0.0]]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("score", LOSSES.values(), ids=LOSSES)
def test_more_steps_break_more(norm: Norm, score: Any) -> None:
    eps = 0.1 if norm == "linf" else 0.8
    found = [accuracy(attack(norm, eps, steps=n), score=score) for n in (0, 2, 5, 20)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[1] + 0.02
    assert found[1] > found[3] + 0.3


def test_an_empty_ball_moves_nothing() -> None:
    _, x, _ = nets.trained()
    assert torch.equal(attack(eps=0.0).perturb(lambda z: z.sum((1, 2, 3)), x), x)


def test_one_step_is_the_sign_of_the_gradient() -> None:
    model, x, y = nets.trained()
    once = attack(steps=1, step_size=0.05, start="image")
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(leaf), y).sum(), leaf)
    with probed(model):
        moved = once.perturb(lambda z: cross_entropy(model(z), y), x)
    assert torch.allclose(moved, (x + 0.05 * gradient.sign()).clamp(0, 1), atol=1e-6)


def test_samples_do_not_disturb_one_another() -> None:
    model, x, y = nets.trained()
    pgd = attack(start="image")
    with probed(model):
        whole = pgd.perturb(lambda z: cross_entropy(model(z), y), x)
        part = pgd.perturb(lambda z: cross_entropy(model(z), y[:7]), x[:7])
    assert float((whole[:7] - part).abs().max()) < 1e-5


def test_a_target_is_reached() -> None:
    model, x, y = nets.trained()
    targets = (y + 1) % 4
    with probed(model):
        moved = attack(eps=0.4, steps=30).perturb(lambda z: towards(model(z), targets), x)
        before = float((model(x).argmax(1) == targets).float().mean())
        after = float((model(moved).argmax(1) == targets).float().mean())
    assert after > before + 0.5


def test_scores_by_hand() -> None:
    logits, y = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    assert margin(logits, y).tolist() == [-2.0, 2.0]
    p, q = logits.softmax(1), logits.flip(0).softmax(1)
    by_hand = (p * (p.log() - q.log())).sum(1)
    assert torch.allclose(divergence(logits, logits.flip(0)), by_hand, atol=1e-6)
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    divergence(certain, certain.detach().flip(1)).sum().backward()
    assert certain.grad is not None
    assert bool(certain.grad.isfinite().all())


class Counting(nn.Module):
    """Changes a buffer in every pass, replaces another, and may fail."""

    calls: Tensor
    last: Tensor

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU())
        self.body[1].eval()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().mean().view(1)
        if self.fails:
            raise RuntimeError("on purpose")
        return self.body(x)


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails: bool) -> None:
    model = Counting(fails=fails)
    model.body[0].bias.requires_grad_(False)
    model.body[0].weight.grad = torch.full((4, 4), 3.0)
    state = copy.deepcopy(model.state_dict())
    facts = [(m.training, list(m._buffers.values())) for m in model.modules()]
    live = [p.requires_grad for p in model.parameters()]
    with probed(model):
        assert not any(m.training for m in model.modules())
        score = lambda z: model(z).sum(1)  # noqa: E731
        if fails:
            with pytest.raises(RuntimeError, match="on purpose"):
                attack().perturb(score, torch.rand(3, 4))
        else:
            attack().perturb(score, torch.rand(3, 4))
    for (mode, buffers), module in zip(facts, model.modules(), strict=True):
        assert module.training is mode
        assert all(a is b for a, b in zip(buffers, module._buffers.values(), strict=True))
    assert all(torch.equal(state[name], now) for name, now in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == live
    assert torch.equal(model.body[0].weight.grad, torch.full((4, 4), 3.0))
    assert model.body[1].weight.grad is None


def test_an_exception_inside_restores_too() -> None:
    model = Counting()
    with pytest.raises(KeyError), probed(model):
        raise KeyError
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_pixels_are_the_inverse_of_inputs() -> None:
    pixels = Pixels((0.4, 0.5), (0.2, 0.25))
    images = torch.rand(3, 2, 4, 4)
    assert torch.allclose(pixels.of(pixels.inputs(images)), images, atol=1e-6)
    assert torch.equal(Pixels().of(images), images)
    assert pixels.inputs(torch.tensor([0.4, 0.75]).view(1, 2, 1, 1)).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ThreatModel(eps=-1.0), "eps is a radius"),
        (lambda: ThreatModel(norm=cast(Any, "l1")), "norm is one of"),
        (lambda: PGD(steps=-1), "PGD takes steps"),
        (lambda: PGD(step_size=float("nan")), "PGD takes steps"),
    ],
)
def test_what_is_out_of_range_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
