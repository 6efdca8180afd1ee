"""What a session says that it cost and reached is what it did."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from torch import Tensor

from equipoise.correction import NoCorrection
from equipoise.training.optimizers import SGDW

toy = import_module("tests.unit.training.toy")

COSTS: list[tuple[dict[str, Any], list[float]]] = [
    ({"corrector": "none"}, [1, 2, 3, 4]),
    ({"corrector": "agent"}, [1, 1 + 10 / 3, 1 + 20 / 3, 11]),
    ({"corrector": "no_gamma"}, [1, 1 + 10 / 3, 1 + 20 / 3, 11]),
    ({"corrector": "svrg"}, [3, 6, 9, 12]),
    ({"corrector": "fixed"}, [3, 6, 9, 12]),
    ({"corrector": "fixed", "coefficient": 0.0}, [1, 2, 3, 4]),
    ({"corrector": "alpha_svrg"}, [3, 6, 9, 10]),  # it ends at a coefficient of 0
    ({"corrector": "alpha_svrg", "coefficient": 0.0}, [1, 2, 3, 4]),
    ({"corrector": "svrg", "refresh_every": 2}, [3, 5, 8, 10]),
    ({"corrector": "agent", "refresh_every": 2}, [1, 2, 2 + 10 / 3, 4 + 10 / 3]),
    ({"corrector": "agent", "accumulate": 2}, [1, 1 + 10 / 3, 1 + 20 / 3, 11]),
    ({"corrector": "agent", "batch_size": 32}, [1, 1 + 10 / 3, 1 + 20 / 3, 11]),
    ({"corrector": "svrg", "validation": 0.25}, [3, 6, 9, 12]),
    # A step of an attack is a forward and half a backward pass, which is 2/3 of a pass.
    ({"objective": "at", "attack_steps": 3}, [3, 6, 9, 12]),
    ({"objective": "mixed", "attack_steps": 3}, [2, 4, 6, 8]),
    ({"objective": "mart", "attack_steps": 3}, [4, 8, 12, 16]),
    ({"objective": "trades", "attack_steps": 3}, [13 / 3, 26 / 3, 13, 52 / 3]),
    ({"objective": "at", "attack_steps": 3, "corrector": "svrg"}, [5, 10, 15, 20]),
    (
        {"objective": "at", "attack_steps": 3, "corrector": "svrg", "snapshot": "adversarial"},
        [7, 14, 21, 28],
    ),
    # The old gradient of trades takes two passes as well, its clean full gradient one.
    (
        {"objective": "trades", "attack_steps": 3, "corrector": "svrg"},
        [22 / 3, 44 / 3, 22, 88 / 3],
    ),
    ({"corrector": "reduce_lr"}, [1, 1 + 10 / 3, 1 + 20 / 3, 11]),
    ({"corrector": "svrg", "correction_mode": "cached"}, [2, 4, 6, 8]),
    ({"corrector": "agent", "correction_mode": "cached"}, [1, 1 + 7 / 3, 1 + 14 / 3, 8]),
    ({"corrector": "svrg", "refresh_steps": 3}, [4, 8, 11, 15]),
    (
        {"corrector": "svrg", "refresh_samples": 20, "refresh_draw": "fresh"},  # 2 batches of 16
        [(2 + 32 / 72) * epochs for epochs in (1, 2, 3, 4)],
    ),
    # Of 72 images the first step has 16, and no step before it.
    ({"corrector": "mvr"}, [2 * epochs - 16 / 72 for epochs in (1, 2, 3, 4)]),
    ({"corrector": "mvr_fixed"}, [2 * epochs - 16 / 72 for epochs in (1, 2, 3, 4)]),
    ({"corrector": "mvr_fixed", "mvr_share": 1.0}, [1, 2, 3, 4]),
    (
        {"corrector": "agent_mvr"},  # forward only while its coefficient is 0
        [1 + 56 / 216 + 2 * epochs for epochs in (0, 1, 2, 3)],
    ),
    (
        {"corrector": "agent_mvr_oracle"},
        [1 + 56 / 72 + 13 / 3 * epochs for epochs in (0, 1, 2, 3)],
    ),
    ({"corrector": "ref_itop"}, [10 / 3, 20 / 3, 10, 40 / 3]),
    ({"corrector": "ref_rigl"}, [10 / 3, 20 / 3, 10, 40 / 3]),
    (
        {"corrector": "ref_bsr"},  # 4 whole batches in a refresh
        [1 + 64 / 72 + (2 + 4 / 3 * 64 / 72) * epochs for epochs in (0, 1, 2, 3)],
    ),
]


@pytest.mark.parametrize(("changes", "passes"), COSTS, ids=lambda value: str(value))
def test_passes_over_the_data(changes: dict[str, Any], passes: list[float]) -> None:
    session = toy.session(epochs=4, **changes)
    records = toy.all_epochs(session)
    assert [record.data_passes for record in records] == pytest.approx(passes, abs=1e-12)
    size = session.loader.num_samples
    for record in records:
        work = record.forward_samples + 2 * record.backward_samples
        assert record.data_passes == pytest.approx(work / (3 * size))


def test_the_flops_of_a_record_are_those_of_its_counts() -> None:
    session = toy.session(corrector="agent", topology="rigl", interval=4, stop=12, epochs=4)
    flops = session.flops
    for number, record in enumerate(toy.all_epochs(session), start=1):
        grown = 16 * record.rewirings
        assert record.rewirings == min(3, 5 * number // 4)
        active = flops.sparse * (record.forward_samples + 2 * record.backward_samples)
        expected = active + (flops.dense - flops.sparse) * grown
        assert record.training_flops == pytest.approx(expected, rel=1e-12)
    assert record.rewirings == 3


@pytest.mark.parametrize("topology", ["static", "set", "set_itop"])
def test_only_growth_by_gradient_pays_for_dense_gradients(topology: str) -> None:
    session = toy.session(topology=topology, interval=None if topology == "static" else 3)
    record = toy.all_epochs(session)[-1]
    assert record.rewirings == (0 if topology == "static" else {"set": 3, "set_itop": 5}[topology])
    samples = record.forward_samples + 2 * record.backward_samples
    assert record.training_flops == pytest.approx(session.flops.sparse * samples, rel=1e-12)


def test_a_record_says_what_the_parts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    session = toy.session(topology="set", interval=2, corrector="agent", epochs=3)
    losses: list[float] = []
    backward = session.corrector.backward

    def spied(batch: Any, *, scale: float) -> Tensor:
        loss: Tensor = backward(batch, scale=scale)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(session.corrector, "backward", spied)
    toy.begin_epoch(session)
    for group in session.batches():
        session.train_step(group)
    record = session.finish_epoch()
    sizes = [16, 16, 16, 16, 8]
    expected = sum(a * b for a, b in zip(losses, sizes, strict=True)) / 72
    assert record.train_loss == pytest.approx(expected, rel=1e-9)
    record = toy.one_epoch(session)
    topology = session.topology
    assert (record.epoch, record.step) == (2, 10)
    assert record.sparsity == topology.sparsity == pytest.approx(0.5, abs=0.01)
    assert record.active_weights == topology.num_active
    assert 0.5 < record.exploration_rate == topology.exploration_rate <= 1.0
    assert record.rewirings == topology.num_rewirings > 0
    assert record.coefficient == session.corrector.coefficient_value != 0.0
    assert record.coefficient_estimate == pytest.approx(record.coefficient / 0.1 / 0.3, rel=1e-6)
    assert -1.0 <= record.loss_correlation <= 1.0
    assert record.peak_device_memory_bytes is None
    assert record.peak_memory_bytes > 2**24


@pytest.mark.parametrize("corrector", ["none", "agent"])
def test_the_seconds_of_the_parts_add_up(corrector: str) -> None:
    session = toy.session(corrector=corrector, topology="set", interval=2)
    with session.meter("other"):
        for _ in range(2):
            record = toy.one_epoch(session)
    names = ("new_gradient", "old_gradient", "refresh", "optimizer", "topology", "data", "other")
    parts = {name: getattr(record, f"{name}_seconds") for name in names}
    assert sum(parts.values()) == pytest.approx(record.training_seconds, rel=1e-9)
    corrected = corrector == "agent"
    for name in ("old_gradient", "refresh"):
        assert (parts[name] > 0.001) == corrected, name
    for name in ("new_gradient", "optimizer", "topology", "data", "other"):
        assert parts[name] > 0.0, name
    assert record.evaluation_seconds > 0.0


def test_a_dense_topology_masks_nothing() -> None:
    session = toy.session(topology="dense", sparsity=0.9)
    records = toy.all_epochs(session)
    assert (records[-1].sparsity, records[-1].exploration_rate) == (0.0, 1.0)
    assert records[-1].active_weights == session.topology.num_weights
    assert not any((p == 0).any() for p in session.topology.parameters.values())


@pytest.mark.parametrize("topology", ["static", "set", "rigl", "set_itop", "rigl_itop"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgdw", "adam", "adamw"])
def test_inactive_weights_and_their_optimizer_state_stay_zero(
    topology: str, optimizer: str
) -> None:
    interval = None if topology == "static" else 3
    session = toy.session(
        topology=topology, optimizer=optimizer, interval=interval, corrector="svrg", sparsity=0.8
    )
    for _ in range(2):
        record = toy.one_epoch(session)
        assert session.topology.verify() == []
        assert record.sparsity == pytest.approx(0.8, abs=0.01)
    assert (record.rewirings > 0) == (topology != "static")
    if optimizer == "sgdw":
        assert isinstance(session.optimizer, SGDW)


def test_the_batch_may_be_larger_than_the_data() -> None:
    session = toy.session(batch_size=1000)
    assert (session.steps_per_epoch, session.loader.batch_size) == (1, 72)
    assert toy.all_epochs(session)[-1].data_passes == 3.0


def test_no_corrector_is_no_object_with_a_snapshot() -> None:
    session = toy.session()
    assert isinstance(session.corrector, NoCorrection)
    assert toy.all_epochs(session)[-1].coefficient == 0.0
