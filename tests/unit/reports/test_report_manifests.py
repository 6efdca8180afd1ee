from importlib import import_module

import pytest

from equipoise.reports.manifests import (
    device,
    is_unfinished,
    planned_epochs,
    setting_differences,
    settings,
)

synthetic = import_module("tests.unit.reports.synthetic_runs")
record, run = synthetic.record, synthetic.run


def test_planned_epochs_are_read_from_the_manifest_or_its_settings() -> None:
    assert planned_epochs(run("a", 0, [], epochs=5)) == 5
    assert planned_epochs(run("a", 0, [], run={"loop": {"epochs": 7}})) == 7
    assert planned_epochs(run("a", 0, [])) is None
    assert planned_epochs(run("a", 0, [], epochs="many")) is None


@pytest.mark.parametrize(("planned", "expected"), [(3, True), (2, False), (None, False)])
def test_a_run_short_of_its_plan_is_unfinished(planned: int | None, expected: bool) -> None:
    assert is_unfinished(run("a", 0, [record(1), record(2)], epochs=planned)) is expected


def test_a_planned_run_without_records_is_unfinished() -> None:
    assert is_unfinished(run("a", 0, [], epochs=1))


def test_a_device_is_named_in_words() -> None:
    assert device(run("a", 0, [], device="cpu")) == "cpu"
    whole = {"type": "cuda", "name": "A card", "threads": 2, "platform": "Linux"}
    assert device(run("a", 0, [], device=whole)) == "A card, cuda, 2 threads"
    assert device(run("a", 0, [], device={})) is None
    assert device(run("a", 0, [])) is None


def test_only_settings_that_differ_between_arms_are_listed() -> None:
    runs = [
        run("a", 0, [], run={"lr": 0.1, "loop": {"seed": 0}, "net": {"depth": 2, "width": 8}}),
        run("a", 1, [], run={"lr": 0.1, "seed": 1, "net": {"depth": 2, "width": 8}}),
        run("b", 0, [], run={"lr": 0.1, "seed": 0, "net": {"depth": 3, "width": 8}, "x": "y"}),
    ]
    assert setting_differences(runs) == {
        "net.depth": {"a": "2", "b": "3"},
        "x": {"a": "-", "b": "y"},
    }


def test_seeds_of_an_arm_that_disagree_are_shown_side_by_side() -> None:
    runs = [
        run("a", 0, [], run={"lr": 0.1}),
        run("a", 1, [], run={"lr": 0.2}),
        run("b", 0, [], run={"lr": 0.1}),
    ]
    assert setting_differences(runs) == {"lr": {"a": "0.1 | 0.2", "b": "0.1"}}


def test_a_manifest_without_settings_is_its_own_settings() -> None:
    made = run("a", 0, [], lr=0.1)
    assert settings(made) == made.manifest
