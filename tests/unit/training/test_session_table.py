"""Sessions with a table of stored gradients or a coefficient by age."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.correction import AgeAdaptive, GradientTable
from equipoise.records import RECORDS, find_runs, read_records
from equipoise.reports.corrections import correction_tables
from equipoise.reports.page import page_html
from equipoise.training.loop import train
from equipoise.training.session import observed
from equipoise.validation import validate

toy = import_module("tests.unit.training.toy")


def run_epochs(session: Any, epochs: int) -> None:
    for _ in range(epochs):
        if session.refresh_is_due:
            session.refresh(session.refresh_batches())
        for group in session.batches():
            session.train_step(group)
        session.finish_epoch()


def test_a_table_knows_its_batches_and_forgets_them_with_the_partition() -> None:
    session = toy.session(corrector="table", partition_epochs=2, epochs=5)
    table = session.corrector
    assert isinstance(table, GradientTable)
    sizes = []
    for _ in range(5):
        if session.refresh_is_due:
            session.refresh(session.refresh_batches())
        sizes.append(len(table))
        for group in session.batches():
            session.train_step(group)
        session.finish_epoch()
    assert sizes == [0, 5, 0, 5, 0]
    assert session.loader.locked


def test_passes_of_a_table_are_those_of_plain_training() -> None:
    passes = []
    for corrector in ("none", "table"):
        session = toy.session(corrector=corrector)
        run_epochs(session, 2)
        passes.append(session.meter.data_passes(session.loader.num_samples))
    assert passes == [2.0, 2.0]


def test_a_table_follows_the_masks_of_the_session() -> None:
    session = toy.session(corrector="table", topology="set", interval=2, table_precision="fp32")
    run_epochs(session, 2)
    columns = session.corrector._ledger.follow()
    sizes = {s.name: s.size for s in columns.segments}
    assert all(sizes[name] == count for name, count in session.topology.plan.items())


def test_an_age_is_the_sum_of_the_rates_of_the_optimizer() -> None:
    session = toy.session(corrector="age")
    coefficient = session.corrector.coefficient
    assert isinstance(coefficient, AgeAdaptive)
    session.refresh(session.refresh_batches())
    for group in session.batches():
        session.train_step(group)
    assert coefficient._age == pytest.approx(5 * 0.1)
    assert session.meter.data_passes(session.loader.num_samples) == pytest.approx(3.0)


@pytest.mark.parametrize("corrector", ["table", "age"])
def test_records_and_page_hold_what_was_seen(corrector: str, tmp_path: Path) -> None:
    run = toy.make_run(corrector=corrector, epochs=3, learning_rate=0.02)
    outcome = train(run, tmp_path / "a", dataset=toy.images())
    assert read_records(tmp_path / "a" / RECORDS) == outcome.records
    last = outcome.records[-1]
    assert last.rho_squared is not None
    assert last.variance_ratio is not None
    assert 0.0 < last.rho_squared <= 1.0
    assert last.variance_ratio < 1.0
    assert (last.table_bytes is not None) == (corrector == "table")
    assert bool(last.by_age) == (corrector == "age")
    runs = find_runs(tmp_path)
    tables = correction_tables({"arm": runs})
    assert len(tables) == (1 if corrector == "table" else 2)
    assert "What the correction saw" in page_html(runs, None)
    assert correction_tables({"plain": []}) == []


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_compact_and_masked_weights_are_corrected_alike(engine: str) -> None:
    """The engine rounds in another way; a run with it lowers the loss as one with masks does."""
    torch.manual_seed(0)
    with toy.untimed():
        session = toy.session(
            corrector="table",
            topology="set",
            interval=3,
            engine=engine,
            epochs=6,
            learning_rate=0.02,
        )
        run_epochs(session, 6)
    table = session.corrector
    assert isinstance(table, GradientTable)
    assert len(table) == 5
    assert table.evidence.rho_squared > 0.2
    assert session.uses_engine == (engine == "sparse")


def test_a_partition_of_one_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="--partition-epochs 1 draws new batches"):
        validate(toy.make_run(corrector="table", partition_epochs=1))


def test_what_the_gate_leaves_out_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Property 23: passes are those of the steps, of the old passes and of the refreshes made."""
    monkeypatch.setattr(AgeAdaptive, "_pays", lambda *arguments: False)
    images = toy.images(num_train=64)
    session = toy.session(images, corrector="age", gate=True, epochs=16)
    run_epochs(session, 16)
    found = session.corrector.coefficient
    assert found.rested > 6
    old, refreshes = found.corrected / 4, 16 - found.rested
    assert session.meter.data_passes(64) == pytest.approx(16 + old + refreshes)
    assert found.corrected + found.skipped == 64
    assert observed(session.corrector)["refreshes_left_out"] == found.rested


def test_a_sparse_network_is_sooner_down_with_stored_gradients_or_by_age(tmp_path: Path) -> None:
    """Property 16: training loss at a quarter of the epochs, in three of three seeds."""
    images = toy.images(num_train=512, num_test=16)
    for seed in range(3):
        losses = {}
        for corrector in ("none", "age", "table"):
            run = toy.make_run(
                corrector=corrector, seed=seed, width=0.25, sparsity=0.9, epochs=8,
                learning_rate=0.1, topology="rigl",
            )  # fmt: skip
            steps = iter(range(2 * 32))

            def two_epochs_are_over(steps: Any = steps) -> bool:
                return next(steps, None) is None

            outcome = train(
                run,
                tmp_path / f"{corrector}{seed}",
                dataset=images,
                should_stop=two_epochs_are_over,
            )
            losses[corrector] = outcome.records[1].train_loss
        assert max(losses["age"], losses["table"]) < losses["none"]
