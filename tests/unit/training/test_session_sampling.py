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


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_stopped_training_ends_bit_for_bit_like_another(engine: str, tmp_path: Path) -> None:
    run = toy.make_run(**{**BSR, "engine": engine, "corrector": "agent", "epochs": 2})
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
