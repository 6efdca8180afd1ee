"""Robust accuracy: early exit is exact, starts are keyed, more attack never leaves more right."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks.evaluation import (
    Counted,
    Plan,
    Robustness,
    attack_batch,
    evaluate_robustness,
    keyed_start,
)
from equipoise.attacks.pgd import LOSSES, PGD, towards
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.probing import probed
from equipoise.attacks.threat import Norm, ThreatModel

nets = import_module("tests.unit.attacks.nets")


def plan(eps: float = 0.05, norm: Norm = "linf", steps: int = 5, **more: Any) -> Plan:
    start = more.pop("start", "ball")
    pgd = PGD(
        threat=ThreatModel(norm=norm, eps=eps),
        step_size=more.pop("step_size", 2.5 * eps / max(1, steps)),
        steps=steps,
        start=start,
    )
    return Plan(attack=pgd, **{"restarts": 3, **more})


def evaluated(chosen: Plan, batch_size: int = 256) -> Robustness:
    model, x, y = nets.trained()
    parts = zip(*(t.split(batch_size) for t in (x, y, torch.arange(len(y)))), strict=True)
    return evaluate_robustness(model, parts, chosen)


def slowly(chosen: Plan) -> tuple[Tensor, Tensor]:
    """Every restart of every image, none left out."""
    model, x, y = nets.trained()
    numbers = torch.arange(len(y))
    with probed(model):
        logits = model(x).detach()
        alive = clean = logits.argmax(1) == y
        wrong = logits.clone()
        wrong[numbers, y] = -torch.inf
        ranked = wrong.argsort(1, descending=True)
        for restart in range(chosen.restarts):
            start = keyed_start(chosen.attack, x, numbers, chosen.seed, restart)
            for target in range(max(1, chosen.targets)):

                def score(z: Tensor, t: int = target) -> Tensor:
                    if chosen.targets:
                        return towards(model(z), ranked[:, t])
                    return LOSSES[chosen.loss](model(z), y)

                moved = chosen.attack.perturb(score, x, start)
                alive = alive & (model(moved).argmax(1) == y)
    return clean, alive


@pytest.mark.parametrize(
    "chosen",
    [plan(), plan(norm="l2", eps=0.5), plan(loss="margin"), plan(targets=2, restarts=2)],
    ids=["linf", "l2", "margin", "targeted"],
)
def test_leaving_out_what_is_broken_changes_nothing(chosen: Plan) -> None:
    found = evaluated(chosen)
    clean, alive = slowly(chosen)
    assert 0.0 < found.robust_accuracy < found.clean_accuracy
    assert torch.equal(found.clean, clean)
    assert torch.equal(found.robust, alive)
    everything = chosen.attack.steps * chosen.restarts * max(1, chosen.targets) * len(alive)
    assert found.backward_samples < everything


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_a_start_depends_on_the_image_and_not_on_its_batch(batch_size: int) -> None:
    _, x, _ = nets.trained()
    numbers = torch.arange(16)
    whole = keyed_start(plan().attack, x[:16], numbers, 3, 1)
    parts = [
        keyed_start(plan().attack, a, b, 3, 1)
        for a, b in zip(x[:16].split(batch_size), numbers.split(batch_size), strict=True)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, keyed_start(plan().attack, x[:16], numbers, 3, 2))
    assert not torch.equal(whole, keyed_start(plan().attack, x[:16], numbers, 4, 1))


def test_the_result_does_not_depend_on_the_batch_size() -> None:
    few, many = evaluated(plan(steps=2), 64), evaluated(plan(steps=2), 256)
    assert int((few.robust != many.robust).sum()) <= 1  # products of other sizes round differently


def test_strength_grows_with_steps_and_restarts_and_radius() -> None:
    by_steps = [evaluated(plan(steps=n, restarts=1)).robust_accuracy for n in (1, 3, 10)]
    assert by_steps == sorted(by_steps, reverse=True)
    assert by_steps[0] > by_steps[-1]
    many = evaluated(plan(restarts=6, steps=4))
    assert list(many.by_restart) == sorted(many.by_restart, reverse=True)
    assert many.by_restart[0] > many.by_restart[-1]
    assert many.by_restart[-1] == many.robust_accuracy
    by_radius = [evaluated(plan(eps=e, restarts=1)).robust_accuracy for e in (0.02, 0.05, 0.1)]
    assert by_radius == sorted(by_radius, reverse=True)
    assert by_radius[0] > by_radius[-1] + 0.2


def test_restarts_before_the_last_are_those_of_a_shorter_plan() -> None:
    long, short = evaluated(plan(restarts=4)), evaluated(plan(restarts=2))
    assert long.by_restart[:2] == short.by_restart


def test_targets_find_at_least_what_the_last_class_hides() -> None:
    """Towards every wrong class: no image that any of them breaks is left."""
    model, x, y = nets.trained()
    network = Counted(model, Pixels())
    with probed(model):
        _, all_of_them = attack_batch(network, x, y, torch.arange(len(y)), plan(targets=99))
        _, first = attack_batch(network, x, y, torch.arange(len(y)), plan(targets=1))
    assert bool((all_of_them[-1] <= first[-1]).all())


def test_the_network_and_the_random_stream_are_left_alone() -> None:
    model, *_ = nets.trained()
    model.train()
    before = torch.get_rng_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    evaluated(plan(restarts=1, steps=1))
    assert model.training
    model.eval()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_costs_are_counted() -> None:
    model, x, y = nets.trained()
    found = evaluate_robustness(
        model, [(x[:4], y[:4], torch.arange(4))], plan(eps=0.0, steps=3, restarts=2)
    )
    # An empty ball takes no steps: one pass before, one after each restart.
    assert (found.forward_samples, found.backward_samples) == (12, 0)
    found = evaluate_robustness(
        model, [(x[:4], y[:4], torch.arange(4))], plan(eps=1e-6, steps=3, restarts=2)
    )
    assert (found.forward_samples, found.backward_samples) == (4 + 2 * 4 * 4, 2 * 3 * 4)


@pytest.mark.parametrize(
    "make",
    [lambda: plan(restarts=0), lambda: plan(targets=-1), lambda: plan(loss="hinge")],
)
def test_impossible_plans_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="a plan takes restarts"):
        make()


def test_no_images_and_no_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="got no images"):
        evaluate_robustness(nn.Identity(), [], plan())
    batch = torch.rand(2, 1, 4, 4), torch.zeros(2).long(), torch.arange(2)
    with pytest.raises(ValueError, match=r"expected logits of shape \(2, classes\)"):
        evaluate_robustness(nn.Identity(), [batch], plan())
