"""Steps computed by hand, groups of parameters, and learning rates over a training."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.correction import Constant, GradientCorrector
from equipoise.settings import OptimizerSettings
from equipoise.training.optimizers import SGDW, build_optimizer, rate_factor

toy = import_module("tests.unit.training.toy")

PIECEWISE = OptimizerSettings()
COSINE = OptimizerSettings(schedule="cosine")


def one_weight(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: float) -> None:
    weight.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer.step()


def test_sgdw_two_steps_by_hand_with_a_drop_of_the_rate() -> None:
    weight = one_weight(1.0)
    optimizer = SGDW([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    step(optimizer, weight, 1.0)
    # v = -0.1 * 1; w = (1 - 0.5) * 1 + v
    assert weight.item() == pytest.approx(0.4, rel=1e-12)
    optimizer.param_groups[0]["lr"] = 0.01
    step(optimizer, weight, 2.0)
    # The old velocity keeps its size: v = 0.9 * -0.1 - 0.01 * 2; the decay falls with the rate.
    assert float(optimizer.state[weight]["velocity"]) == pytest.approx(-0.11, rel=1e-12)
    assert weight.item() == pytest.approx(0.4 * (1 - 0.05) - 0.11, rel=1e-12)


def test_sgdw_decay_does_not_depend_on_the_initial_rate() -> None:
    for rate in (1e-3, 0.1, 2.0):
        weight = one_weight(4.0)
        step(SGDW([weight], lr=rate, momentum=0.0, weight_decay=0.25), weight, 0.0)
        assert weight.item() == 3.0


def test_sgdw_at_a_rate_of_zero_coasts() -> None:
    weight = one_weight(1.0)
    optimizer = SGDW([weight], lr=0.1, momentum=0.5, weight_decay=0.5)
    step(optimizer, weight, 1.0)
    optimizer.param_groups[0]["lr"] = 0.0
    step(optimizer, weight, 7.0)
    assert weight.item() == pytest.approx(0.4 - 0.05, rel=1e-12)


def test_sgdw_is_the_sgd_of_torch_without_decay_and_change_of_rate() -> None:
    ours, theirs = one_weight(), one_weight()
    left = SGDW([ours], lr=0.05, momentum=0.8, weight_decay=0.0)
    right = torch.optim.SGD([theirs], lr=0.05, momentum=0.8)
    for gradient in (1.0, -2.0, 0.5, 4.0):
        step(left, ours, gradient)
        step(right, theirs, gradient)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


def test_sgdw_skips_parameters_without_gradient_and_runs_closures() -> None:
    used, unused = one_weight(1.0), one_weight(1.0)
    optimizer = SGDW([used, unused], lr=0.1, momentum=0.0, weight_decay=0.5)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert used.item() == pytest.approx(0.5 - 0.2)
    assert unused.item() == 1.0
    assert unused not in optimizer.state


def test_sgdw_state_continues_after_a_round_trip() -> None:
    first, second = one_weight(), one_weight()
    whole = SGDW([first], lr=0.1, momentum=0.9, weight_decay=0.1)
    for gradient in (1.0, 2.0, 3.0):
        step(whole, first, gradient)
    part = SGDW([second], lr=0.1, momentum=0.9, weight_decay=0.1)
    step(part, second, 1.0)
    part.param_groups[0]["lr"] = 0.01
    again = SGDW([second], lr=77.0, momentum=0.0, weight_decay=0.9)
    again.load_state_dict(part.state_dict())
    assert again.param_groups[0]["base_lr"] == 0.1
    again.param_groups[0]["lr"] = 0.1
    for gradient in (2.0, 3.0):
        step(again, second, gradient)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": 1.0}]
)
def test_sgdw_refuses_what_is_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"SGDW takes lr >= 0, .*; got ") as caught:
        SGDW([one_weight()], **wrong)
    assert f"{next(iter(wrong.values()))}" in str(caught.value)


class Parabola(nn.Module):
    """The loss of a batch (curvature, centre) is half its curvature times the distance squared."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = one_weight(1.0)

    def forward(self, batch: Tensor) -> Tensor:
        return 0.5 * batch[0] * (self.weight - batch[1]).square().sum()


def sgd_by_hand(gradients: list[Any], decay: float) -> float:
    """Nesterov with coupled decay, as torch defines it."""
    weight, velocity = 1.0, None
    for gradient in gradients:
        total = gradient(weight) + decay * weight
        velocity = total if velocity is None else 0.9 * velocity + total
        weight -= 0.1 * (total + 0.9 * velocity)
    return weight


def sgdw_by_hand(gradients: list[Any], decay: float) -> float:
    weight, velocity = 1.0, 0.0
    for gradient in gradients:
        velocity = 0.9 * velocity - 0.1 * gradient(weight)
        weight = (1 - decay) * weight + velocity
    return weight


@pytest.mark.parametrize(
    ("name", "by_hand"), [("sgd", sgd_by_hand), ("sgdw", sgdw_by_hand)], ids=["sgd", "sgdw"]
)
def test_two_corrected_steps_by_hand_with_decay_outside_the_correction(
    name: Any, by_hand: Any
) -> None:
    model = Parabola()
    batches = [torch.tensor([2.0, 3.0]).double(), torch.tensor([1.0, -1.0]).double()]
    corrector = GradientCorrector(model, model, Constant(0.5), batch_size=lambda _: 1.0)
    settings = OptimizerSettings(optimizer=name, weight_decay=0.2)
    optimizer = build_optimizer(model.parameters(), settings)
    corrector.refresh(batches)
    for batch in batches:
        optimizer.zero_grad()
        corrector.backward(batch)
        optimizer.step()

    full = ((2.0 * (1.0 - 3.0)) + (1.0 * (1.0 + 1.0))) / 2
    corrected = [
        lambda w: 2.0 * (w - 3.0) + 0.5 * (full - 2.0 * (1.0 - 3.0)),
        lambda w: 1.0 * (w + 1.0) + 0.5 * (full - 1.0 * (1.0 + 1.0)),
    ]
    assert model.weight.item() == pytest.approx(by_hand(corrected, 0.2), rel=1e-6)
    assert by_hand(corrected, 0.2) != pytest.approx(by_hand(corrected, 0.0), rel=1e-2)


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("sgdw", SGDW),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_decay_goes_to_the_groups_that_it_should(name: Any, kind: type, decay: Any) -> None:
    model = small_model()
    settings = OptimizerSettings(
        optimizer=name, learning_rate=0.03, weight_decay=0.07, momentum=0.6, decay=decay
    )
    optimizer = build_optimizer(model.parameters(), settings)
    assert type(optimizer) is kind
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decays) == len(list(model.parameters()))
    for parameter in model.parameters():
        held = decay == "all" or parameter.ndim >= 2
        assert decays[id(parameter)] == (0.07 if held else 0.0)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.03
        assert group.get("momentum", 0.6) == 0.6


@pytest.mark.parametrize(
    ("momentum", "wanted", "nesterov"),
    [(0.9, True, True), (0.9, False, False), (0.0, True, False)],
)
def test_nesterov_needs_momentum(momentum: float, wanted: bool, nesterov: bool) -> None:
    settings = OptimizerSettings(momentum=momentum, nesterov=wanted)
    optimizer = build_optimizer(small_model().parameters(), settings)
    assert optimizer.param_groups[0]["nesterov"] is nesterov


def rates(settings: OptimizerSettings, total: int) -> list[float]:
    return [rate_factor(number, total, settings) for number in range(total)]


def test_milestones_by_hand() -> None:
    assert rates(PIECEWISE, 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    halves = replace(PIECEWISE, milestones=(0.25,), drop_factor=0.5)
    assert rates(halves, 8) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert rates(replace(PIECEWISE, milestones=()), 4) == [1.0] * 4


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_milestone_is_at_its_step_in_spite_of_rounding(percent: int) -> None:
    settings = replace(PIECEWISE, milestones=(percent / 100,))
    assert rate_factor(percent - 1, 100, settings) == 1.0
    assert rate_factor(percent, 100, settings) == pytest.approx(0.1)


def test_a_training_of_one_step_takes_it_at_the_full_rate() -> None:
    assert rates(PIECEWISE, 1) == [1.0]
    assert rates(PIECEWISE, 3) == pytest.approx([1.0, 1.0, 0.1])


def test_cosine_by_hand() -> None:
    expected = [1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2]
    assert rates(COSINE, 4) == pytest.approx(expected)
    assert rate_factor(4, 4, COSINE) == pytest.approx(0.0, abs=1e-12)


def test_warm_up_by_hand() -> None:
    settings = replace(PIECEWISE, warmup=0.4, schedule="constant")
    assert rates(settings, 10) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])
    cosine = replace(COSINE, warmup=0.5)
    assert rates(cosine, 8) == pytest.approx([0, 0.25, 0.5, 0.75, *rates(COSINE, 4)])


@given(
    st.integers(1, 400),
    st.sampled_from(["piecewise", "cosine", "constant"]),
    st.floats(0.0, 0.99),
    st.lists(st.floats(0.01, 0.99), max_size=4).map(sorted).map(tuple),
    st.floats(0.01, 1.0),
)
def test_rates_rise_in_the_warm_up_and_never_after(
    total: int, schedule: Any, warmup: float, milestones: tuple[float, ...], drop: float
) -> None:
    settings = OptimizerSettings(
        schedule=schedule, warmup=warmup, milestones=milestones, drop_factor=drop
    )
    got = rates(settings, total)
    peak = round(warmup * total)
    assert all(0.0 <= rate <= 1.0 for rate in got)
    assert got[:peak] == [number / peak for number in range(peak)]
    assert all(one >= two for one, two in pairwise(got[peak:]))
    if peak < total and (schedule == "constant" or not milestones):
        assert got[peak] == pytest.approx(1.0)


def test_a_session_follows_the_schedule_step_by_step() -> None:
    current = toy.session(learning_rate=0.4, warmup=0.2, schedule="cosine", epochs=2)
    assert current.total_steps == 10
    seen = []
    for _ in range(2):
        for group in current.batches():
            current.train_step(group)
            seen.append(current.optimizer.param_groups[0]["lr"])
        record = current.finish_epoch()
        assert record.learning_rate == seen[-1]
    settings = current.run.optimization
    assert seen == [0.4 * rate_factor(number, 10, settings) for number in range(10)]
    assert seen[0] == 0.0
    assert max(seen) == 0.4
