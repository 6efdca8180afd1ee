"""HYDRA: three phases, one network; scores learn, weights wait."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.engine.network import to_dense
from equipoise.topology.importance import first_scores, kept_by_score, scored
from equipoise.training import hydra
from equipoise.training.hydra import FINETUNED, PRUNED, HydraPlan, hydra_run, train_hydra
from equipoise.training.session import Session

toy = import_module("tests.unit.training.toy")
PLAN = HydraPlan(pretrain_epochs=2, prune_epochs=2, finetune_epochs=2)


def run(**changes: Any) -> Any:
    small = {"sparsity": 0.75, "learning_rate": 0.02}
    return toy.make_run(**{**small, **changes})


def test_every_layer_keeps_its_share() -> None:
    scores = torch.randn(7, 13)
    mask = kept_by_score(scores, 0.1)
    assert int(mask.sum()) == 91 - int(0.9 * 91)
    assert float(scores.abs()[mask].min()) >= float(scores.abs()[~mask].max())
    assert bool(kept_by_score(scores, 1.0).all())


def test_scores_start_like_the_weights() -> None:
    weight = torch.randn(8, 6, 3, 3)
    scores = first_scores(weight)
    assert float(scores.abs().max()) == pytest.approx((6 / 54) ** 0.5)
    assert torch.equal(kept_by_score(scores, 0.25), kept_by_score(weight, 0.25))


def test_gradients_go_straight_through_to_the_scores() -> None:
    first, last = nn.Linear(5, 4), nn.Linear(4, 3)
    model, original = nn.Sequential(first, nn.ReLU(), last), first.weight
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    with scored(model, 0.5) as found:
        weight = first.weight
        kept = found["0.weight"].mask()
        assert int(((weight != 0) != kept).sum()) == 0
        F.cross_entropy(model(x), y).backward()
        score = found["0.weight"].scores
        assert original.grad is None
        leaf = weight.detach().requires_grad_()
        hidden = F.linear(x, leaf, first.bias).relu()
        (gradient,) = torch.autograd.grad(F.cross_entropy(last(hidden), y), leaf)
        wanted = gradient * original * score.sign()
        assert score.grad is not None
        assert torch.allclose(score.grad, wanted, atol=1e-6)
        assert int(score.grad[~kept].count_nonzero()) > 0  # what is left out can come back


def test_the_model_is_itself_again() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError), scored(model, 0.3):
        raise KeyError
    after = model.state_dict()
    assert sorted(after) == sorted(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters())
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("objective", ["standard", "trades"])
def test_three_phases(objective: str, tmp_path: Path) -> None:
    steps = {"attack_steps": 2} if objective == "trades" else {}
    chosen = run(objective=objective, **steps)
    outcome = train_hydra(chosen, tmp_path, PLAN, dataset=toy.images())
    dense = torch.load(tmp_path / "pre-train" / "model.pt")
    pruned = torch.load(tmp_path / PRUNED / "scores.pt")
    tuned = torch.load(tmp_path / FINETUNED / "model.pt")
    for name, mask in pruned["masks"].items():
        assert torch.equal(pruned["model"][name], dense[name])  # frozen while scores learned
        assert int(mask.sum()) == mask.numel() - int(0.75 * mask.numel())
        assert int(tuned[name][~mask].count_nonzero()) == 0
        assert not torch.equal(tuned[name], dense[name] * mask)
    magnitudes = {n: kept_by_score(dense[n], 0.25) for n in pruned["masks"]}
    assert any(not torch.equal(m, pruned["masks"][n]) for n, m in magnitudes.items())
    per_epoch = 1.0 if objective == "standard" else 2.0 + 1 / 3 + 2 * 2 / 3
    assert outcome.data_passes == pytest.approx(6 * per_epoch)
    assert outcome.last.sparsity == pytest.approx(0.75, abs=0.01)
    summary = json.loads((tmp_path / "hydra.json").read_text())
    assert summary["test_accuracy"] == outcome.last.test_accuracy
    assert set(summary["phases"]) == {"pre-train", "prune", "fine-tune"}


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_hydra(run(), tmp_path / "whole", PLAN, dataset=toy.images())
    finish, calls = Session.finish_epoch, iter(range(99))

    def failing(session: Session) -> Any:
        if next(calls) == 3:  # in the second epoch of the scores
            raise KeyboardInterrupt
        return finish(session)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "finish_epoch", failing)
        with pytest.raises(KeyboardInterrupt):
            train_hydra(run(), tmp_path / "part", PLAN, dataset=toy.images())
    again = train_hydra(run(), tmp_path / "part", PLAN, dataset=toy.images())
    assert toy.without_time(again.last) == toy.without_time(whole.last)
    assert again.data_passes == whole.data_passes
    states = [toy.stored_state(tmp_path / n / FINETUNED) for n in ("whole", "part")]
    assert toy.differences(*states) == []


def test_the_engine_starts_from_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    found = {}
    for engine in ("dense", "sparse"):
        small = {"model": "small_cnn", "width": 0.25, "engine": engine}
        chosen = hydra_run(run(**small), epochs=1, rate=0.01, dense=False)
        with toy.untimed():
            session = Session(chosen, toy.images())
        if not state:
            state = {n: torch.randn_like(t.float()) for n, t in session.model.state_dict().items()}
            masks = {n: kept_by_score(state[n], 0.25) for n in session.topology.masks}
        hydra.start_pruned_(session, state, masks)
        assert session.uses_engine is (engine == "sparse")
        assert session.topology.verify() == []
        found[engine] = dict(to_dense(session.model).state_dict())
    assert toy.differences(found["dense"], found["sparse"]) == []
    for name, mask in masks.items():
        assert torch.equal(found["dense"][name], state[name] * mask)


def test_nothing_to_prune_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HYDRA prunes to a --sparsity above 0"):
        train_hydra(run(sparsity=0.0), tmp_path, PLAN)
