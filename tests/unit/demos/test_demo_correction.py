"""The arms of the demonstration of correction: valid, paired, and as dear as they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.demos.commands import FOLDER, command, folder_of
from equipoise.demos.correction import (
    CIFAR,
    DIGITS,
    base_run,
    jobs_of,
    planned_arms,
    published_passes,
)
from equipoise.demos.settings import Demonstrating, check_demonstrating
from equipoise.settings import Run, as_plain, partition_epochs_of
from equipoise.training.arms import time_left
from equipoise.training.loop import train


def differences(run: Run, base: Run) -> set[str]:
    """Names of the settings in which two runs differ."""
    left, right = as_plain(run), as_plain(base)
    return {
        name for group in left for name in left[group] if left[group][name] != right[group][name]
    }


@pytest.mark.parametrize("settings", [CIFAR, DIGITS], ids=["cifar", "digits"])
def test_every_arm_differs_from_plain_in_what_it_says_only(settings: dict[str, object]) -> None:
    base = base_run(settings, 0.9, None)
    arms = {one.member.name: one for one in planned_arms(base)}
    assert {name: differences(one.arm.run, base) for name, one in arms.items()} == {
        "plain": set(),
        "table": {"corrector"},
        "fixed_partition": {"partition_epochs"},
        "double_long": {"batch_size", "epochs"},
        "double_batch": {"batch_size"},
        "lower_rate": {"learning_rate"},
        "agent": {"corrector"},
        "longer": {"epochs"},
    }
    assert next(iter(arms)) == "plain"
    assert base.loop.batchnorm == "refreshed"
    # The table's own partition holds all along, as that of its control does.
    assert partition_epochs_of(arms["table"].arm.run) == base.loop.epochs
    assert arms["longer"].arm.run.loop.epochs == 24
    assert published_passes(base.loop.epochs) == pytest.approx(24, rel=0.02)


def test_agent_makes_as_many_passes_as_longer_plain_training_is_given(tmp_path: Path) -> None:
    tiny = {
        **DIGITS, "model": "mlp", "width": 0.05, "train_samples": 64, "test_samples": 32,
        "epochs": 4, "engine": "dense",
    }  # fmt: skip
    arms = {one.member.name: one for one in planned_arms(base_run(tiny, 0.5, None))}
    for name in ("agent", "longer", "double_long"):
        last = train(arms[name].arm.run, tmp_path / name).records[-1]
        assert last.data_passes == pytest.approx(arms[name].passes)
    assert arms["longer"].passes == pytest.approx(arms["agent"].passes, rel=0.05)


def test_jobs_are_paired_and_weighted_by_their_passes(tmp_path: Path) -> None:
    planned = planned_arms(base_run(CIFAR, 0.9, None))
    jobs = jobs_of(planned, 2, tmp_path)
    assert len(jobs) == 2 * len(planned)
    assert [job.run.loop.seed for job in jobs] == [0] * len(planned) + [1] * len(planned)
    weights = {job.label: job.weight for job in jobs}
    assert (weights["plain"], weights["double_long"], weights["longer"]) == (8, 16, 24)
    assert weights["agent"] == pytest.approx(24.33, abs=0.01)


def test_other_settings_have_a_folder_of_their_own() -> None:
    assert folder_of(base_run(CIFAR, 0.9, Path("somewhere"))) == FOLDER
    others = {folder_of(base_run(CIFAR, 0.98, None)), folder_of(base_run(DIGITS, 0.9, None))}
    assert {path.name for path in others} == {
        "demo-correction-cifar10-s0.98",
        "demo-correction-digits-s0.9",
    }


def test_the_command_is_told_without_folders() -> None:
    chosen = Demonstrating(name="correction", data_dir=Path("a"), out=Path("b"), sparsity=0.98)
    assert command(chosen) == "equipoise demo correction --sparsity 0.98"


def test_mistakes_get_one_sentence() -> None:
    for chosen, words in (
        (Demonstrating(name="corection"), "did you mean correction?"),
        (Demonstrating(name="correction", num_seeds=0), "--num-seeds is at least 1; got 0"),
        (Demonstrating(name="correction", workers=0), "--workers is at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match="is") as caught:
            check_demonstrating(chosen)
        assert words in str(caught.value)


def test_what_was_done_before_does_not_shorten_the_time_left() -> None:
    assert time_left(60.0, 0.9, 0.95) == "1:00 left"
    assert time_left(60.0, 0.0, 0.5) == "1:00 left"
    assert time_left(60.0, 0.5, 0.5) == ""
