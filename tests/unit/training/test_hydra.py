"""HYDRA: three phases, one network; scores learn, weights wait."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.engine.network import to_dense
from equipoise.records import find_runs, read_run
from equipoise.shipping import load_sparse
from equipoise.topology.importance import first_scores, kept_by_score, scored
from equipoise.training import hydra
from equipoise.training.hydra import (
    FINETUNED,
    PRETRAINED,
    PRUNED,
    HydraPlan,
    hydra_folder,
    hydra_run,
    train_hydra,
)
from equipoise.training.session import Session
from equipoise.training.stored import export_stored

toy = import_module("tests.unit.training.toy")
PLAN = HydraPlan(pretrain_epochs=2, score_epochs=1, finetune_epochs=2)


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
    dense = torch.load(tmp_path / PRETRAINED / "model.pt")
    pruned = torch.load(tmp_path / PRUNED / "model.pt")
    tuned = torch.load(tmp_path / "model.pt")
    names = [name for name in dense if name.endswith("weight") and dense[name].dim() > 1]
    assert len(names) == 3
    chosen_by_size = []
    for name in names:
        stem = name.removesuffix("weight") + "parametrizations.weight"
        mask = kept_by_score(pruned[f"{stem}.0.scores"], 0.25)
        assert torch.equal(pruned[f"{stem}.original"], dense[name])  # frozen while scores learned
        assert int(mask.sum()) == mask.numel() - int(0.75 * mask.numel())
        assert int(tuned[name][~mask].count_nonzero()) == 0
        assert not torch.equal(tuned[name], dense[name] * mask)
        chosen_by_size.append(torch.equal(mask, kept_by_score(dense[name], 0.25)))
    assert not all(chosen_by_size)
    per_epoch = 1.0 if objective == "standard" else 2.0 + 1 / 3 + 2 * 2 / 3
    assert (outcome.finished, outcome.resumed) == (True, False)
    assert outcome.records[-1].data_passes == pytest.approx(5 * per_epoch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained at once, never stopped."""
    folder: Path = tmp_path_factory.mktemp("hydra") / "run"
    train_hydra(run(), folder, PLAN, dataset=toy.images())
    return folder


def test_the_folder_is_that_of_one_run(whole: Path) -> None:
    (found,) = find_runs(whole.parent)
    assert (found.folder, found.label, found.seed) == (whole, "hydra", 0)
    assert [record.epoch for record in found.epochs] == [1, 2, 3, 4, 5]
    assert [record.step for record in found.epochs] == [5, 10, 15, 20, 25]
    phases = found.manifest["phases"]
    assert [(p["name"], p["first_epoch"], p["last_epoch"]) for p in phases] == [
        ("pre-train", 1, 2),
        ("prune", 3, 3),
        ("fine-tune", 4, 5),
    ]
    assert found.manifest["hydra"]["score_epochs"] == 1
    assert found.manifest["run"]["loop"]["epochs"] == 5
    dense, pruned, tuned = (found.epochs[place] for place in (1, 2, 4))
    assert dense.sparsity == 0.0
    # The pruned network computes with the weights that are fine-tuned later, as many in each layer.
    assert (
        pruned.active_weights == tuned.active_weights == found.manifest["network"]["active_weights"]
    )
    assert pruned.sparsity == pytest.approx(tuned.sparsity) == pytest.approx(0.75, abs=0.01)


def test_costs_are_those_of_all_phases(whole: Path) -> None:
    (found,) = find_runs(whole)
    parts = [read_run(whole / name).epochs for name in (PRETRAINED, PRUNED, FINETUNED)]
    for name in ("data_passes", "training_flops", "training_seconds", "evaluation_seconds"):
        costs = [getattr(record, name) for record in found.epochs]
        assert costs == sorted(costs)
        assert costs[-1] == pytest.approx(sum(getattr(part[-1], name) for part in parts))
        assert costs[2] == pytest.approx(sum(getattr(part[-1], name) for part in parts[:2]))
    assert found.epochs[4].exploration_rate == 1.0  # all were active, in the first phase


def test_it_is_evaluated_and_shipped_like_any_run(whole: Path, tmp_path: Path) -> None:
    network = torch.load(whole / "model.pt")
    assert toy.differences(network, torch.load(whole / FINETUNED / "model.pt")) == []
    exported = export_stored(whole, out=tmp_path / "network.safetensors")
    shipped = load_sparse(exported.path)
    assert shipped.metadata["label"] == "hydra"
    assert toy.differences(dict(shipped.dense()), network) == []


def stopping_after(steps: int) -> Callable[[], bool]:
    counted = iter(range(10_000))
    return lambda: next(counted) + 1 >= steps


# Steps are asked about one by one: 5 an epoch, 10 of pre-training, then 5 of scores.
@pytest.mark.parametrize("steps", [3, 10, 12, 15, 18])
def test_it_goes_on_where_it_was_stopped(steps: int, whole: Path, tmp_path: Path) -> None:
    first = train_hydra(
        run(), tmp_path, PLAN, dataset=toy.images(), should_stop=stopping_after(steps)
    )
    assert (first.finished, first.resumed) == (False, False)
    assert not (tmp_path / "model.pt").exists()
    done = [r.epoch for r in read_run(tmp_path).epochs]
    assert done == [r.epoch for r in first.records] == list(range(1, (steps - 1) // 5 + 1))
    again = train_hydra(run(), tmp_path, PLAN, dataset=toy.images())
    assert (again.finished, again.resumed) == (True, True)
    expected = [toy.without_time(record) for record in read_run(whole).epochs]
    assert [toy.without_time(record) for record in again.records] == expected
    states = [torch.load(folder / "model.pt") for folder in (whole, tmp_path)]
    assert toy.differences(*states) == []


def test_a_finished_run_is_not_trained_again(whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    again = train_hydra(run(), whole, PLAN)  # without data, which nobody reads
    assert (again.finished, again.resumed, len(again.records)) == (True, True, 5)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before


def test_another_run_in_the_folder_is_refused(whole: Path) -> None:
    moved = HydraPlan(pretrain_epochs=1, score_epochs=2, finetune_epochs=2)
    with pytest.raises(ValueError, match="pretrain-epochs 2 instead of 1"):
        train_hydra(run(), whole, moved, dataset=toy.images())
    with pytest.raises(ValueError, match=r"another run \(sparsity 0.75 instead of 0.5"):
        train_hydra(run(sparsity=0.5), whole, PLAN, dataset=toy.images())
    with pytest.raises(ValueError, match="label hydra instead of other"):
        train_hydra(run(), whole, PLAN, label="other", dataset=toy.images())


def test_overwriting_begins_with_the_first_phase(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    stopped = train_hydra(
        run(), tmp_path / "copy", PLAN, dataset=toy.images(), overwrite=True,
        should_stop=stopping_after(7),
    )  # fmt: skip
    assert (stopped.finished, len(stopped.records)) == (False, 1)
    assert not list((tmp_path / "copy").rglob("model.pt"))  # none of the earlier run is left


def test_observers_see_one_training(tmp_path: Path) -> None:
    told: list[Any] = []

    class Watching:
        def start(self, session: Session) -> None:
            told.append((session.epochs_before, session.steps_before, session.epochs_in_all))

        def refreshed(self, session: Session, batch: Any) -> None:
            raise AssertionError("there is nothing to refresh")

        def stepped(self, session: Session, samples: int) -> None:
            pass

        def recorded(self, session: Session, record: Any) -> None:
            told.append((record.epoch, round(record.data_passes)))

        def stop(self) -> None:
            pass

    names: list[str] = []
    train_hydra(
        run(), tmp_path, PLAN, dataset=toy.images(), observers=(Watching(),),
        on_phase=lambda phase: names.append(phase.name),
    )  # fmt: skip
    assert names == [PRETRAINED, PRUNED, FINETUNED]
    starts = [(0, 0, 5), (2, 10, 5), (3, 15, 5)]
    assert told == [starts[0], (1, 1), (2, 2), starts[1], (3, 3), starts[2], (4, 4), (5, 5)]


def test_the_usual_folder_knows_the_plan() -> None:
    usual = hydra_folder(run(), PLAN)
    assert usual.name.startswith("digits-mlp-hydra-s0.75-seed0-")
    longer = HydraPlan(pretrain_epochs=1, score_epochs=2, finetune_epochs=2)
    assert len({usual, hydra_folder(run(), longer), hydra_folder(run(sparsity=0.5), PLAN)}) == 3


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
    # What is wrong with the last phase is said before the first begins.
    with pytest.raises(ValueError, match="--finetune-epochs is at least 1; got 0"):
        train_hydra(run(), tmp_path, HydraPlan(pretrain_epochs=1, finetune_epochs=0))
    with pytest.raises(ValueError, match="--learning-rate must be above 0"):
        train_hydra(run(), tmp_path, HydraPlan(pretrain_epochs=1, finetune_rate=0.0))
    assert not list(tmp_path.iterdir())
