"""Sessions that train against attacks: what both gradients see, and what a refresh sees."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise.data import Batch
from equipoise.settings import with_setting
from equipoise.training import build
from equipoise.training.objective import pixels_of
from equipoise.training.session import Session

toy = import_module("tests.unit.training.toy")

ROBUST = ("at", "mixed", "trades", "mart")
FAST = {"attack_steps": 2, "epochs": 2}


def seen_by(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The prepared batches of the corrector's losses, in order."""
    batches: list[Batch] = []
    loss = type(session.objective).loss

    def spied(objective: Any, model: Any, batch: Batch) -> Tensor:
        batches.append(batch)
        return loss(objective, model, batch)

    monkeypatch.setattr(type(session.objective), "loss", spied)
    return batches


@pytest.mark.parametrize("objective", ROBUST)
def test_both_gradients_see_the_same_perturbed_tensor(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = toy.session(objective=objective, corrector="svrg", **FAST)
    toy.begin_epoch(session)
    batches = seen_by(session, monkeypatch)
    for group in session.batches():
        batches.clear()
        session.train_step(group)
        new, old = batches
        assert new.x is old.x
        moved = new.x[-group[0].size :]
        assert not torch.equal(moved, group[0].x)


@pytest.mark.parametrize("objective", ROBUST)
def test_arms_of_a_pair_attack_alike_until_they_differ(objective: str) -> None:
    """The first step of a plain and a corrected run is the same, random starts included."""
    moved = {}
    for corrector in ("none", "agent"):
        session = toy.session(objective=objective, corrector=corrector, **FAST)
        moved[corrector] = toy.first_steps(session, 5)
    for (a, _), (b, _) in zip(moved["none"], moved["agent"], strict=True):
        assert torch.equal(a, b)


def refresh_images(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Session, list[Batch]]:
    session = toy.session(corrector="svrg", augment="yes", **FAST, **changes)
    batches = seen_by(session, monkeypatch)
    toy.begin_epoch(session)
    return session, list(batches)


def test_a_clean_snapshot_sees_the_images_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    session, batches = refresh_images(monkeypatch, objective="trades")
    for found, wanted in zip(batches, session.loader.epoch(0), strict=True):
        assert torch.equal(found.x, wanted.x)


def test_a_snapshot_without_augmentation_sees_the_images_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, batches = refresh_images(monkeypatch, objective="at", snapshot="clean_noaug")
    run = with_setting(session.run, "augment", "no")
    plain = build.train_loader(session.images.train, run, session.device)
    augmented = []
    for found, wanted, other in zip(batches, plain.epoch(0), session.loader.epoch(0), strict=True):
        assert torch.equal(found.x, wanted.x)
        augmented.append(not torch.equal(found.x, other.x))
    assert any(augmented)


def test_an_adversarial_snapshot_attacks_as_the_epoch_will(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also from the same random points: while the weights stay, both are the same images."""
    session, batches = refresh_images(monkeypatch, objective="at", snapshot="adversarial")
    for group, found in zip(session.batches(), batches, strict=True):
        again = session._prepared(group[0])
        assert torch.equal(found.x, again.x)
        assert not torch.equal(found.x, group[0].x)


def test_an_adversarial_snapshot_has_the_mean_of_the_old_gradients() -> None:
    """With a clean one the two differ, which is the published bias."""
    bias = {}
    for snapshot in ("clean", "adversarial"):
        session = toy.session(
            **{"objective": "at", "corrector": "svrg", "snapshot": snapshot, "keep": "all"},
            **{"eps": 0.2, "step_size": 0.1},
            **FAST,
        )
        toy.begin_epoch(session)
        full = toy.flat(session.corrector.full_gradient.values())
        mean, size = torch.zeros_like(full), session.loader.num_samples
        for group in session.batches():
            prepared = session._prepared(group[0])
            mean += toy.gradient(session, prepared) * prepared.size / size
        bias[snapshot] = float((mean - full).norm() / full.norm())
    assert bias["adversarial"] < 1e-5
    assert bias["clean"] > 0.05


@pytest.mark.parametrize("objective", ROBUST)
def test_the_engine_trains_against_attacks(objective: str) -> None:
    changes = {"objective": objective, "topology": "rigl", "interval": 2, "corrector": "agent"}
    losses = {}
    for engine in ("dense", "sparse"):
        with toy.untimed():
            session = toy.session(
                model="small_cnn", engine=engine, width=0.25, learning_rate=0.02, **changes, **FAST
            )
        assert session.uses_engine is (engine == "sparse")
        records = toy.all_epochs(session)
        losses[engine] = [record.train_loss for record in records]
        assert session.topology.verify() == []
    # Signs of tiny gradients may differ by rounding, and a rewiring may follow them.
    assert losses["sparse"] == pytest.approx(losses["dense"], rel=0.05)


def test_the_attack_of_the_engine_is_that_of_masks() -> None:
    moved = {}
    for engine in ("dense", "sparse"):
        with toy.untimed():
            session = toy.session(model="small_cnn", engine=engine, objective="at", **FAST)
        batch = next(iter(session.batches()))[0]
        before = copy.deepcopy(session.model.state_dict())
        torch.manual_seed(3)
        moved[engine] = session._prepared(batch).x
        assert toy.differences(dict(before), dict(session.model.state_dict())) == []
        assert session.model.training
    different = (moved["dense"] - moved["sparse"]).abs() > 1e-4
    assert float(different.float().mean()) < 0.01


def test_attacks_follow_the_scale_of_the_inputs() -> None:
    """Inputs in pixels or normalised: the same images are shown to the same network."""
    for inputs in ("normalised", "pixels"):
        session = toy.session(objective="at", inputs=inputs, eps=0.1, step_size=0.1, **FAST)
        batch = next(iter(session.batches()))[0]
        pixels = pixels_of(session.images.train)
        change = pixels.of(session._prepared(batch).x) - pixels.of(batch.x)
        assert float(change.abs().max()) == pytest.approx(0.1, abs=1e-5)
        if inputs == "pixels":
            assert 0.0 <= float(batch.x.min()) <= float(batch.x.max()) <= 1.0


def test_smoothed_labels_are_refused_where_they_have_no_place() -> None:
    with pytest.raises(ValueError, match=r"^--label-smoothing has no place in the mart"):
        toy.session(objective="mart", label_smoothing=0.1)
    toy.session(objective="trades", label_smoothing=0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eps": 0.1, "attack_steps": 3}, r"^--eps and --attack-steps have no effect with"),
        ({"snapshot": "adversarial"}, r"^--snapshot has no effect with --objective standard"),
        ({"objective": "at", "beta": 3.0}, r"^--beta has no effect with --objective at"),
    ],
)
def test_settings_without_effect_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        toy.session(**changes)
