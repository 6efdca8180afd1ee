"""The adapters for AutoAttack, against packages that stand for the real ones."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise.attacks.auto import auto_attack, auto_attack_source
from equipoise.attacks.threat import ThreatModel

nets = import_module("tests.unit.attacks.nets")
THREAT = ThreatModel(norm="linf", eps=0.1)


class Fake:
    """Moves every image by more than is allowed."""

    calls: list[dict[str, Any]]
    made: list[Any]

    def __init__(self, model: Any, **settings: Any) -> None:
        type(self).calls.append(settings)
        self.model = model
        self.apgd_targeted = types.SimpleNamespace(n_target_classes=9)
        self.fab = types.SimpleNamespace(n_target_classes=9)
        type(self).made.append(self)
        assert not any(p.requires_grad for p in model.parameters())

    def run_standard_evaluation(self, x: Tensor, y: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(self.model(leaf), y)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return x + 5.0 * gradient.sign()

    __call__ = run_standard_evaluation


def install(name: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a package of this name in place; returns what it is called with."""
    for other in ("autoattack", "torchattacks"):
        monkeypatch.setitem(sys.modules, other, None)
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    calls: list[dict[str, Any]] = []
    module.AutoAttack = type("AutoAttack", (Fake,), {"calls": calls, "made": []})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda asked: module.__spec__ if asked == name else None,
    )
    return calls


@pytest.mark.parametrize("name", ["autoattack", "torchattacks"])
def test_what_comes_back_is_projected_and_judged_here(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = install(name, monkeypatch)
    model, x, y = nets.trained()
    before = torch.get_rng_state()
    found = auto_attack(model, [(x, y, torch.arange(len(y)))], THREAT, num_classes=4, seed=7)
    assert auto_attack_source() == name
    (settings,) = calls
    assert (settings["norm"], settings["eps"], settings["seed"]) == ("Linf", 0.1, 7)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y), leaf)
    once = (x + 0.1 * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        clean, left = model(x).argmax(1) == y, model(once).argmax(1) == y
    assert torch.equal(found.clean, clean)
    assert torch.equal(found.robust, clean & left)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.requires_grad for p in model.parameters())


def test_as_many_wrong_classes_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    install("autoattack", monkeypatch)
    model, x, y = nets.trained()
    for classes, aimed_at in ((4, 3), (10, 9)):
        auto_attack(model, [(x, y, torch.arange(len(y)))], THREAT, num_classes=classes)
        made = sys.modules["autoattack"].AutoAttack.made[-1]
        targets = (made.apgd_targeted.n_target_classes, made.fab.n_target_classes)
        assert targets == (aimed_at, aimed_at)


def test_a_missing_package_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
    with pytest.raises(ImportError, match="is not installed and not on PyPI; run") as caught:
        auto_attack_source()
    assert str(caught.value).endswith("--method pgd.")
