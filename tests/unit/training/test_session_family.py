"""Every corrector in a session: what it does to a run, with every optimizer."""

from __future__ import annotations

import copy
import math
from importlib import import_module
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.data import Batch, synthetic
from equipoise.engine.library import unavailable_because
from equipoise.settings import CorrectionSettings, CorrectorName
from equipoise.training.refreshing import RefreshSchedule

toy = import_module("tests.unit.training.toy")

NAMES = get_args(CorrectorName)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["sgd", "sgdw", "adamw"])
def test_every_corrector_learns_with_every_optimizer(name: str, optimizer: str) -> None:
    rate = 0.003 if optimizer == "adamw" else 0.02
    changes = {"corrector": name, "optimizer": optimizer, "learning_rate": rate}
    session = toy.session(epochs=4, topology="rigl", interval=4, **changes)
    records = toy.all_epochs(session)
    assert records[-1].train_loss < records[0].train_loss
    assert session.topology.verify() == []
    assert math.isfinite(records[-1].coefficient)


@pytest.mark.parametrize("name", NAMES)
def test_every_corrector_starts_from_the_same_network_and_data(name: str) -> None:
    plain, session = toy.session(), toy.session(corrector=name)
    assert torch.equal(toy.weights(plain), toy.weights(session))
    assert toy.differences(dict(plain.topology.masks), dict(session.topology.masks)) == []
    batches = [[tuple(b) for b in s.loader.epoch(0)] for s in (plain, session)]
    # A table wants batches that come again, so it has a partition of its own.
    assert (toy.differences(*batches) == []) == (name != "table")
    assert torch.equal(plain.state_dict()["random"]["cpu"], session.state_dict()["random"]["cpu"])


@pytest.mark.parametrize("corrector", ["svrg", "no_gamma", "alpha_svrg", "agent_mvr_oracle"])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cached_mode_is_recompute_mode_to_the_bit(
    corrector: str, cache: str, tmp_path: Any
) -> None:
    """With augmentation, BatchNorm, dropout and a rewiring in mid-epoch."""
    data = synthetic(num_train=40, num_test=8, channels=3, image_size=8)
    common = {
        "corrector": corrector,
        "model": "wrn_22_2",
        "width": 0.25,
        "dropout": 0.3,
        "augment": "yes",
        "topology": "set",
        "interval": 2,
        "epochs": 2,
    }
    ends = []
    for mode in ("recompute", "cached"):
        run = toy.make_run(**common, correction_mode=mode, cache=cache)
        session = toy.Session(run, data, folder=tmp_path / mode)
        records = toy.all_epochs(session)
        ends.append((toy.weights(session), [r.train_loss for r in records], records[-1]))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert ends[1][2].data_passes < ends[0][2].data_passes


@pytest.mark.parametrize(("corrector", "first"), [("svrg", 5), ("agent_mvr_oracle", 0)])
def test_only_in_the_middle_of_an_epoch_does_a_state_hold_stored_gradients(
    corrector: str, first: int
) -> None:
    """The first refresh of AGENT makes no pass."""
    session = toy.session(corrector=corrector, correction_mode="cached")

    def rows() -> int:
        state = session.state_dict()["corrector"]
        return len(state.get("snapshots", state)["cache"]["rows"])

    found = []
    for _ in range(2):
        session.refresh(session.refresh_batches())
        for group in session.batches():
            session.train_step(group)
        found.append(rows())
        session.finish_epoch()
        found.append(rows())
    assert found == [first, 0, 5, 0]


def test_without_a_folder_stored_gradients_stay_in_memory() -> None:
    session = toy.session(corrector="svrg", correction_mode="cached", cache="disk")
    toy.begin_epoch(session)
    state = session.corrector.cache.state_dict()
    assert len(state["rows"]) == 5
    assert session.corrector.cache.num_bytes == 5 * 4 * sum(
        tensor.numel() for tensor in session.corrector.snapshot.values()
    )


@pytest.mark.skipif(unavailable_because() is not None, reason="no kernels")
@pytest.mark.parametrize("corrector", ["svrg", "agent_mvr_oracle"])
def test_cached_mode_goes_with_the_engine(corrector: str) -> None:
    """To rounding after a rewiring; before one to the bit."""
    common = {"model": "small_cnn", "width": 0.25, "sparsity": 0.8, "engine": "sparse"}
    for topology, tolerance in (("static", 0.0), ("set", 1e-4)):
        ends = []
        for mode in ("recompute", "cached"):
            with toy.untimed():
                session = toy.session(
                    **common,
                    corrector=corrector,
                    correction_mode=mode,
                    topology=topology,
                    **({"interval": 3} if topology == "set" else {}),
                )
            assert session.uses_engine
            for _ in range(session.run.loop.epochs - 1):
                toy.one_epoch(session)
            toy.begin_epoch(session)
            if mode == "cached":
                snapshots = getattr(session.corrector, "snapshots", session.corrector)
                stored = sum(tensor.numel() for tensor in snapshots.snapshot.values())
                assert snapshots.cache.num_bytes == 5 * 4 * stored
                assert stored == sum(p.numel() for p in session.model.parameters())
            for group in session.batches():
                session.train_step(group)
            ends.append(toy.weights(session))
        assert float((ends[0] - ends[1]).abs().max()) <= tolerance


@pytest.mark.parametrize("corrector", ["svrg", "no_gamma"])
def test_keeping_active_weights_only_changes_no_bit_of_a_static_run(corrector: str) -> None:
    ends = []
    for keep in ("all", "active", "auto"):
        session = toy.session(corrector=corrector, keep=keep)
        toy.all_epochs(session)
        stored = sum(t.numel() for t in session.corrector.snapshot.values())
        ends.append((toy.weights(session), stored))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][0], ends[2][0])
    inactive = session.topology.num_weights - session.topology.num_active
    assert ends[1][1] == ends[2][1] == ends[0][1] - inactive


def test_left_to_itself_a_rewired_run_keeps_every_weight() -> None:
    for keep, packed in (("auto", False), ("active", True), ("all", False)):
        session = toy.session(corrector="svrg", topology="set", interval=2, keep=keep)
        toy.begin_epoch(session)
        assert bool(session.corrector.packing) == packed


# --- Published codes ------------------------------------------------------------------------------


def losses(session: Any, parameters: dict[str, Tensor], batches: list[Batch]) -> Tensor:
    """Of the batches at other parameters, batch statistics, nothing moved."""
    model = copy.deepcopy(session.model).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[name])
        return torch.stack([F.cross_entropy(model(b.x), b.y) for b in batches])


def named(session: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in session.model.named_parameters()}


@pytest.mark.parametrize(("name", "kind"), [("ref_itop", "dense"), ("ref_rigl", "other")])
def test_the_first_estimate_is_against_a_strange_network(name: str, kind: str) -> None:
    """Equal weights of batches, ddof 1, and 0.1 to begin with, written down again."""
    session = toy.session(corrector=name, sparsity=0.8)
    strange = dict(session.corrector.snapshot)
    dense = any(int((t == 0).sum()) == 0 for n, t in strange.items() if n.endswith("weight"))
    assert dense
    same = [
        torch.equal(t[m], session.model.get_parameter(n).detach()[m])
        for n, t, m in ((n, strange[n], m) for n, m in session.topology.masks.items())
    ]
    assert all(same) == (kind == "dense")
    batches = list(session.refresh_batches())
    now, then = losses(session, named(session), batches), losses(session, strange, batches)
    pairs = torch.stack([now, then]).double()
    slope = float(pairs.cov()[0, 1] / then.double().var())
    toy.begin_epoch(session)
    assert session.corrector.coefficient.estimate == pytest.approx(slope, rel=1e-6)
    assert session.corrector.coefficient_value == pytest.approx(0.1 * (0.7 * 0.1 + 0.3 * slope))


def test_one_code_adds_the_leftover_gradient_and_counts_batches_alike() -> None:
    for name, leftover in (("ref_itop", True), ("ref_rigl", False)):
        session = toy.session(corrector=name, momentum=0.0)
        last: list[Tensor] = []
        for group in session.batches():
            toy.begin_epoch(session)
            last = [toy.gradient(session, group[0])]
            session.train_step(group)
        session.finish_epoch()
        batches = list(session.refresh_batches())
        parts = [toy.gradient(session, batch) for batch in batches] + last * leftover
        toy.begin_epoch(session)
        found = toy.flat(session.corrector.full_gradient.values())
        expected = torch.stack(parts).sum(dim=0) / len(batches)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        assert [batch.size for batch in batches] == [16, 16, 16, 16, 8]


@pytest.mark.parametrize("name", ["ref_itop", "ref_rigl", "ref_bsr"])
def test_their_refresh_moves_the_statistics_of_batch_normalisation(name: str) -> None:
    session = toy.session(corrector=name, model="small_cnn", width=0.25)
    before = {n: b.clone() for n, b in session.model.named_buffers()}
    batches = len(list(session.refresh_batches()))
    toy.begin_epoch(session)
    for buffer, tensor in session.model.named_buffers():
        if buffer.endswith("num_batches_tracked"):
            assert int(tensor) == int(before[buffer]) + batches
        else:
            assert not torch.equal(tensor, before[buffer])
    kept = toy.session(corrector="no_gamma", model="small_cnn", width=0.25)
    toy.begin_epoch(kept)
    assert all(torch.equal(b, before[n]) for n, b in kept.model.named_buffers())


def test_one_code_compares_a_network_with_itself() -> None:
    """The coefficient is then a warm-up, 0.1 (1 - 0.7 ** epochs), whatever the losses are."""
    session = toy.session(corrector="ref_bsr", epochs=5)
    values = [record.coefficient for record in toy.all_epochs(session)]
    expected = [0.1 * (1 - 0.7**epoch) for epoch in range(5)]
    assert values == pytest.approx(expected, rel=1e-6)
    assert toy.all_epochs(toy.session(corrector="agent", epochs=5))[-1].coefficient != (
        pytest.approx(expected[-1], rel=1e-3)
    )


def test_one_code_refreshes_on_whole_batches_that_are_not_augmented() -> None:
    data = synthetic(num_train=40, num_test=8, channels=3, image_size=8)
    session = toy.session(data, corrector="ref_bsr", augment="yes")
    toy.one_epoch(session)
    batches = list(session.refresh_batches())
    assert [batch.size for batch in batches] == [16, 16]
    plain = {
        i: x
        for b in toy.session(data, augment="no").loader.epoch(0)
        for i, x in zip(b.index.tolist(), b.x, strict=True)
    }
    for batch in batches:
        for row, x in zip(batch.index.tolist(), batch.x, strict=True):
            assert torch.equal(x, plain[row])


# --- Learning rates -------------------------------------------------------------------------------


def test_reduce_lr_is_no_gamma_at_a_tenth_of_the_rate() -> None:
    ends = []
    for changes in (
        {"corrector": "reduce_lr", "learning_rate": 0.1},
        {"corrector": "no_gamma", "learning_rate": 0.1 * 0.1},
    ):
        session = toy.session(**changes)
        records = toy.all_epochs(session)
        ends.append((toy.weights(session), records[-1].learning_rate))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("name", ["mvr", "mvr_fixed", "agent_mvr", "agent_mvr_oracle"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgdw"])
def test_a_recursive_corrector_is_the_only_momentum(name: str, optimizer: str) -> None:
    session = toy.session(corrector=name, optimizer=optimizer, momentum=0.9)
    assert {group["momentum"] for group in session.optimizer.param_groups} == {0.0}


def test_mvr_takes_the_steps_of_storm() -> None:
    """The first one: its rate is k / (w + |g|^2) ** (1/3)."""
    session = toy.session(corrector="mvr", weight_decay=0.0, mvr_offset=2.0, topology="dense")
    [(moved, group)] = toy.first_steps(session, 1)
    expected = toy.gradient(toy.session(topology="dense"), group[0])
    factor = (2.0 + float(expected.square().sum())) ** (-1 / 3)
    torch.testing.assert_close(moved, expected * factor, rtol=1e-3, atol=1e-5)


# --- When, and over what --------------------------------------------------------------------------


def test_random_refreshes_are_keyed_and_as_frequent_as_asked() -> None:
    def schedule(seed: int) -> RefreshSchedule:
        settings = CorrectionSettings(refresh_chance=0.2)
        return RefreshSchedule(settings, steps_per_epoch=100, epochs=20, seed=seed)

    due = [schedule(1).due(step) for step in range(2000)]
    assert due[0]
    assert due == [schedule(1).due(step) for step in range(2000)]
    assert due != [schedule(2).due(step) for step in range(2000)]
    assert sum(due) == schedule(1).count
    assert 330 < sum(due) < 470  # 400 with a deviation of 18


@pytest.mark.parametrize(("every", "count"), [(1, 15), (4, 4), (5, 3), (100, 1)])
def test_refreshes_by_steps_run_through_epochs(every: int, count: int) -> None:
    session = toy.session(corrector="svrg", refresh_steps=every)
    toy.all_epochs(session)
    assert session.corrector.num_refreshes == count == session.schedule.count


def test_the_line_of_alpha_svrg_ends_at_the_last_refresh_of_any_schedule() -> None:
    for changes in ({"refresh_steps": 4}, {"refresh_chance": 0.3}, {"refresh_every": 2}):
        session = toy.session(corrector="alpha_svrg", **changes)
        toy.all_epochs(session)
        assert session.corrector.num_refreshes == session.schedule.count > 1
        assert session.corrector.coefficient_value == 0.0


def test_a_sub_sample_is_some_of_the_batches_and_another_one_every_time() -> None:
    session = toy.session(corrector="svrg", refresh_samples=33, batch_size=8)
    drawn = []
    for epoch in range(3):
        some = [tuple(batch) for batch in session.refresh_batches()]
        every = [tuple(batch) for batch in session.loader.epoch(epoch)]
        places = [
            place
            for place, batch in enumerate(every)
            for each in some
            if toy.differences(batch, each) == []
        ]
        assert len(some) == len(places) == 5
        assert places == sorted(places)
        drawn.append(places)
        toy.one_epoch(session)
    assert len(set(map(tuple, drawn))) > 1


def test_in_mid_epoch_fresh_draws_are_all_different() -> None:
    data = synthetic(num_train=40, num_test=8, channels=3, image_size=8)
    changes = {"refresh_steps": 1, "refresh_draw": "fresh", "augment": "yes"}
    session = toy.session(data, corrector="svrg", epochs=2, **changes)
    orders = []
    for _ in range(2):
        for group in session.batches():
            orders.append(tuple(i for b in session.refresh_batches() for i in b.index.tolist()))
            toy.begin_epoch(session)
            session.train_step(group)
        session.finish_epoch()
    assert len(set(orders)) == len(orders) == 6


def test_the_objective_prepares_the_batches_of_a_refresh_at_the_snapshot() -> None:
    """The seam of attacks: a full gradient over prepared batches, as the steps see them."""

    class Shifted:
        """Moves every image by the first weight, so it depends on the parameters."""

        def __init__(self, inner: Any) -> None:
            self.loss = inner.loss

        def prepare(self, model: Any, batch: Batch) -> Batch:
            shift = next(model.parameters()).detach().flatten()[:1].abs() + 0.1
            return batch._replace(x=batch.x + shift)

    session = toy.session(corrector="svrg", keep="all")
    session.objective = Shifted(session.objective)
    batches = [session.objective.prepare(session.model, b) for b in session.loader.epoch(0)]
    parts = [toy.gradient(session, b) * b.size for b in batches]
    toy.begin_epoch(session)
    found = toy.flat(session.corrector.full_gradient.values())
    torch.testing.assert_close(found, sum(parts) / 72, rtol=1e-3, atol=1e-5)
