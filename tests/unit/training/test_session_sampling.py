"""Sessions with BSR-Net's connectivity, under masks and in the engine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.engine.layers import SparseLayer
from equipoise.topology import ConnectivitySampling
from equipoise.training.loop import CHECKPOINT, train

toy = import_module("tests.unit.training.toy")

BSR: dict[str, Any] = {
    "topology": "bsr",
    "optimizer": "sgdw",
    "learning_rate": 0.04,
    "weight_decay": 1e-3,
    "model": "small_cnn",
    "width": 0.25,
    "sparsity": 0.8,
}


def session(engine: str = "dense", **changes: Any) -> Any:
    with toy.untimed():
        return toy.session(**{**BSR, "engine": engine, **changes})


def test_masks_and_engine_decide_alike_from_the_same_numbers() -> None:
    masked, compact = session(), session("sparse", noise="agent")
    assert compact.uses_engine
    dense = dict(masked.topology.masks)
    assert all(torch.equal(mask, compact.topology.masks[name]) for name, mask in dense.items())
    for one, two, _ in zip(masked.batches(), compact.batches(), range(1), strict=False):
        masked.train_step(one)
        compact.train_step(two)
    for name, mask in masked.topology.masks.items():
        # Rounding can move a weight across zero; nearly all must be the same.
        same = float((mask == compact.topology.masks[name]).float().mean())
        assert same > 0.99
    assert masked.topology.num_active == compact.topology.num_active


def test_masks_and_engine_stay_together_under_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    masked, compact = (session(e, objective="at", attack_steps=3) for e in ("dense", "sparse"))
    assert (masked.uses_engine, compact.uses_engine) == (False, True)
    steps = list(zip(masked.batches(), compact.batches(), range(4), strict=False))
    shown = masked._prepared(steps[0][0][0])
    for each, (group, _, _) in ((masked, steps[0]), (compact, steps[0])):
        with monkeypatch.context() as patched:
            patched.setattr(each, "_prepared", lambda batch: shown)
            each.train_step(group)
    for name, mask in masked.topology.masks.items():
        assert float((mask == compact.topology.masks[name]).float().mean()) > 0.99
    assert compact.mean_loss == pytest.approx(masked.mean_loss, rel=1e-4)
    # On their own, signs of tiny gradients differ by rounding, so does a connection, and from then
    # on chance: the numbers of connections and the loss are what must stay together.
    for one, two, _ in steps[1:]:
        masked.train_step(one)
        compact.train_step(two)
        assert masked.topology.num_active == compact.topology.num_active
        assert compact.mean_loss == pytest.approx(masked.mean_loss, rel=0.02)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("objective", ["standard", "at"])
def test_a_training_keeps_signs_and_budget(engine: str, objective: str) -> None:
    steps = {"attack_steps": 2} if objective == "at" else {}
    current = session(engine, corrector="agent", objective=objective, **steps)
    topology = current.topology
    assert isinstance(topology, ConnectivitySampling)
    signs = {name: sign.clone() for name, sign in topology.signs.items()}
    records = toy.all_epochs(current)
    assert topology.verify() == []
    assert all(torch.equal(signs[name], sign) for name, sign in topology.signs.items())
    assert topology.num_active >= topology.budget
    assert records[-1].active_weights == topology.num_active
    assert records[-1].rewirings == records[-1].step == current.total_steps
    assert records[-1].exploration_rate > records[0].exploration_rate > 0.2
    assert records[-1].train_loss < records[0].train_loss


def test_the_engine_moves_state_with_the_weights() -> None:
    current = session("sparse", corrector="svrg")
    toy.begin_epoch(current)
    layers = [m for m in current.model.modules() if isinstance(m, SparseLayer)]
    lengths = set()
    for group in current.batches():
        current.train_step(group)
        for layer in layers:
            state = current.optimizer.state[layer.values]["velocity"]
            assert state.shape == layer.values.shape == layer.index.shape
        lengths.add(tuple(layer.index.numel() for layer in layers))
    assert len(lengths) > 1  # the layers share one budget


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        ("dense", {}),
        ("sparse", {}),
        ("sparse", {"objective": "at", "attack_steps": 2, "snapshot": "adversarial"}),
    ],
    ids=("masks", "engine", "engine under attack"),
)
def test_a_stopped_training_ends_bit_for_bit_like_another(
    engine: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"engine": engine, "corrector": "agent", "epochs": 2, **changes}
    run = toy.make_run(**{**BSR, **settings})
    with toy.untimed():
        train(run, tmp_path / "whole", dataset=toy.images())
        left = iter(range(6))
        train(
            run,
            tmp_path / "part",
            dataset=toy.images(),
            should_stop=lambda: next(left, None) is None,
        )
        assert (tmp_path / "part" / CHECKPOINT).exists()
        train(run, tmp_path / "part", dataset=toy.images())
    states = [toy.stored_state(tmp_path / name) for name in ("whole", "part")]
    assert toy.differences(*states) == []


def test_arms_of_a_pair_start_alike() -> None:
    plain, corrected = session(), session(corrector="agent")
    assert torch.equal(toy.weights(plain), toy.weights(corrected))
    signs = plain.topology.signs
    assert all(torch.equal(s, corrected.topology.signs[n]) for n, s in signs.items())


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a --sparsity above 0"):
        session(sparsity=0.0)
    with pytest.raises(ValueError, match="--clip-norm rescales"):
        session(correction_mask="all", clip_norm=1.0)
    with pytest.raises(ValueError, match="cannot be had with --correction-mask all"):
        session("sparse", correction_mask="all")
    with pytest.warns(UserWarning, match="is rewired after every step"):
        session(interval=3)


def test_the_published_correction_moves_what_is_inactive() -> None:
    moved = {}
    for kind in ("active", "all"):
        current = session(corrector="svrg", correction_mask=kind, momentum=0.0, weight_decay=0.0)
        toy.begin_epoch(current)
        count = 0
        for group in current.batches():
            before = {n: h.clone() for n, h in current.topology.hidden.items()}
            inactive = {n: ~m for n, m in current.topology.masks.items()}
            current.train_step(group)
            for name, hidden in current.topology.hidden.items():
                still = inactive[name] & ~current.topology.masks[name]
                count += int(((hidden != before[name]) & still).sum())
        moved[kind] = count
    assert moved["active"] == 0
    assert moved["all"] > 0
