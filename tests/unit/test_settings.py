"""A run is a value: it survives being written down, and every setting is part of its identity."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import settings as module
from equipoise.data import dataset_names
from equipoise.models import model_names
from equipoise.published import PUBLISHED, in_effect
from equipoise.settings import (
    CorrectionSettings,
    DatasetName,
    ModelName,
    Run,
    as_plain,
    from_plain,
    setting_types,
    with_setting,
)
from equipoise.validation import validate

GROUPS = {field.name: getattr(Run(), field.name) for field in fields(Run)}
ELSEWHERE = {"data_dir", "download"}
"""Say where the data are on this machine, not what is trained."""


def other(value: Any, kind: Any) -> Any:
    """A valid value of a setting that is not `value`."""
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    if get_origin(kind) is tuple:
        return (0.125,)
    members = [k for k in get_args(kind) if k is not type(None)] or [kind]
    if members == [bool]:
        return not value
    if members == [Path]:
        return Path("elsewhere")
    if members == [str]:
        return "cuda:7"
    return 7 if int in members else 0.375


CHANGES = [
    (name, other(getattr(group, name), kind))
    for group in GROUPS.values()
    for name, kind in get_type_hints(type(group)).items()
]


def changed(name: str, value: Any) -> Run:
    return with_setting(Run(), name, value)


def everything_changed() -> Run:
    run = Run()
    for name, value in CHANGES:
        run = with_setting(run, name, value)
    return run


def test_names_are_unique_over_all_groups() -> None:
    names = [field.name for group in GROUPS.values() for field in fields(group)]
    assert len(names) == len(set(names)) == len(setting_types())


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=[name for name, _ in CHANGES])
def test_every_setting_is_part_of_the_identity(name: str, value: Any) -> None:
    run = changed(name, value)
    assert run != Run()
    assert (run.identity != Run().identity) == (name not in ELSEWHERE)
    assert (run.folder_name != Run().folder_name) == (name not in ELSEWHERE)


def test_identities_of_all_changes_are_different() -> None:
    identities = [changed(*change).identity for change in CHANGES if change[0] not in ELSEWHERE]
    assert len(set(identities)) == len(identities)
    assert all(len(identity) == 8 for identity in identities)


def test_steps_and_fractions_are_not_the_same() -> None:
    for name in ("interval", "stop"):
        assert changed(name, 1).identity != changed(name, 1.0).identity
        kept = json.loads(json.dumps(as_plain(changed(name, 1))))
        assert type(getattr(from_plain(kept).sparse, name)) is int


def test_a_whole_number_for_a_fraction_is_the_same() -> None:
    assert changed("learning_rate", 1).identity == changed("learning_rate", 1.0).identity
    assert changed("coefficient", 0).identity == changed("coefficient", 0.0).identity


def test_identity_and_folder_do_not_depend_on_the_process() -> None:
    code = "from equipoise.settings import Run; print(Run().identity, Run().folder_name)"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        )
        assert done.stdout.split() == [Run().identity, Run().folder_name]


def test_the_folder_says_what_it_holds() -> None:
    run = changed("corrector", "agent")
    assert run.folder_name == f"digits-small_cnn-rigl+agent-s0.9-seed0-{run.identity}"
    assert [changed("topology", t).label for t in ("dense", "set_itop")] == ["dense", "set_itop"]


@pytest.mark.parametrize("run", [Run(), everything_changed()], ids=["default", "changed"])
def test_a_run_survives_being_written_down(run: Run) -> None:
    back = from_plain(json.loads(json.dumps(as_plain(run))))
    kept = replace(run, data=replace(run.data, data_dir=None, download=False))
    assert back == kept
    assert back.identity == run.identity
    assert hash(back) == hash(kept)


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=[name for name, _ in CHANGES])
def test_every_setting_survives_being_written_down(name: str, value: Any) -> None:
    back = from_plain(json.loads(json.dumps(as_plain(changed(name, value)))))
    assert back == (Run() if name in ELSEWHERE else changed(name, value))


def test_writing_down_changes_nothing() -> None:
    run = everything_changed()
    before = repr(run)
    plain = as_plain(run)
    plain["loop"]["epochs"] = 99
    from_plain(plain)
    assert repr(run) == before


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=[name for name, _ in CHANGES])
def test_one_setting_can_be_changed_by_name(name: str, value: Any) -> None:
    run = changed(name, value)
    groups = [group for group in GROUPS if getattr(run, group) != getattr(Run(), group)]
    assert len(groups) == 1
    assert getattr(getattr(run, groups[0]), name) == value
    assert with_setting(run, name, getattr(GROUPS[groups[0]], name)) == Run()


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no setting is called 'colour'; see .*\.$"):
        with_setting(Run(), "colour", 1)


def test_runs_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        Run().loop.epochs = 3  # type: ignore[misc]


def test_the_default_run_is_valid_and_so_is_one_with_everything_changed() -> None:
    validate(Run())
    run = with_setting(everything_changed(), "topology", "rigl")
    # Compiling, half precision and the kernels exclude one another, and so do two schedules, a slip
    # without its weighting, and stored gradients of another draw.
    for name, value in (
        ("engine", "dense"),
        ("refresh_chance", None),
        ("correction_mode", "recompute"),
    ):
        run = with_setting(run, name, value)
    validate(run)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "two schedules": ({"refresh_steps": 5, "refresh_chance": 0.1}, "two schedules; got both"),
    "a slip alone": ({"refresh_leftover": True}, "add --refresh-weighting batches"),
    "nothing to store": ({"correction_mode": "cached", "corrector": "mvr"}, "mvr has none; choose"),
    "nothing corrected": ({"correction_mode": "cached"}, "none has none; choose"),
    "another draw": (
        {"correction_mode": "cached", "corrector": "svrg", "refresh_draw": "fresh"},
        "got --refresh-draw fresh",
    ),
    "a published draw": (
        {"correction_mode": "cached", "corrector": "ref_itop"},
        "got --refresh-draw fresh",
    ),
    "another epoch": (
        {"correction_mode": "cached", "corrector": "svrg", "refresh_every": 2},
        "got --refresh-every 2",
    ),
    "within an epoch": (
        {"correction_mode": "cached", "corrector": "svrg", "refresh_steps": 2},
        "got --refresh-steps 2",
    ),
    "a sub-sample": (
        {"correction_mode": "cached", "corrector": "svrg", "refresh_samples": 2},
        "got --refresh-samples 2",
    ),
    "kernels for all weights": (
        {"engine": "sparse", "corrector": "ref_rigl"},
        "a corrector that keeps inactive weights",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_of_the_correction_get_a_sentence(name: str) -> None:
    changes, words = CONTRADICTIONS[name]
    run = Run()
    for setting, value in changes.items():
        run = with_setting(run, setting, value)
    with pytest.raises(ValueError, match=words) as caught:
        validate(run)
    assert str(caught.value).count(".") == 1


def test_a_published_code_is_a_combination_that_can_be_changed() -> None:
    plain = CorrectionSettings(corrector="agent")
    assert in_effect(plain) == plain
    itop = in_effect(CorrectionSettings(corrector="ref_itop"))
    assert (itop.initial_coefficient, itop.first_estimate) == (0.1, "dense")
    assert itop.refresh_leftover
    changed_by_hand = CorrectionSettings(corrector="ref_itop", first_estimate="other")
    assert in_effect(changed_by_hand) == replace(itop, first_estimate="other")
    for name, preset in PUBLISHED.items():
        assert preset.keys() <= {field.name for field in fields(CorrectionSettings)}, name


INF, NAN = float("inf"), float("nan")
POSITIVE = ([1e-9, 1.0, 1e9], [0.0, -1.0, INF, NAN])
AT_LEAST_0 = ([0.0, 1e9], [-1e-9, INF, NAN])
COUNT: tuple[list[Any], list[Any]] = ([1, 10**6], [0, -1])
FROM_0 = ([0.0, 0.999], [-1e-9, 1.0, 2.0, NAN])
TO_1 = ([1e-9, 1.0], [0.0, -0.5, 1.0001, NAN])
RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "image_size": COUNT,
    "train_samples": COUNT,
    "test_samples": COUNT,
    "validation": FROM_0,
    "partition_epochs": AT_LEAST_0,
    "width": POSITIVE,
    "dropout": FROM_0,
    "sparsity": FROM_0,
    "interval": ([1, 0.5, 1.0], [0, -3, 0.0]),
    "stop": ([1, 0.5, 1.0], [0, -3, 0.0]),
    "prune_fraction": TO_1,
    "scaling": AT_LEAST_0,
    "smoothing": TO_1,
    "coefficient": ([0.0, -5.0, 1e9], [INF, -INF, NAN]),
    "refresh_every": COUNT,
    "eps": ([0.0, 8 / 255, 1.0], [-0.1, 8.0, NAN]),
    "step_size": POSITIVE,
    "attack_steps": COUNT,
    "beta": AT_LEAST_0,
    "refresh_steps": COUNT,
    "refresh_chance": TO_1,
    "refresh_samples": COUNT,
    "initial_coefficient": ([0.0, -5.0, 1e9], [INF, -INF, NAN]),
    "mvr_share": TO_1,
    "mvr_strength": POSITIVE,
    "mvr_offset": POSITIVE,
    "learning_rate": POSITIVE,
    "momentum": FROM_0,
    "weight_decay": AT_LEAST_0,
    "drop_factor": TO_1,
    "warmup": FROM_0,
    "clip_norm": POSITIVE,
    "label_smoothing": FROM_0,
    "epochs": COUNT,
    "batch_size": COUNT,
    "accumulate": COUNT,
    "seed": ([0, 2**31 - 1], [-1, 2**31]),
    "drop_factors": ([(), (0.1, 1.0)], [(0.1,), (0.1, 0.0), (0.1, 2.0), (0.1, NAN)]),
    "milestones": ([(), (0.1,), (0.1, 0.9), (0.5, 0.5)], [(0.9, 0.1), (0.0,), (1.0,), (NAN,)]),
}
GOOD = [(name, value) for name, (good, _) in RANGES.items() for value in good]
BAD = [(name, value) for name, (_, bad) in RANGES.items() for value in bad]


def test_every_number_has_a_range() -> None:
    numbers = {
        name
        for name, kind in setting_types().items()
        if {int, float} & {kind, *get_args(kind)} and kind is not bool
    }
    assert numbers == set(RANGES)


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_values_inside_their_range_are_taken(name: str, value: Any) -> None:
    validate(changed(name, value))


@pytest.mark.parametrize(("name", "value"), BAD)
def test_values_outside_their_range_get_a_sentence(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"\.$") as caught:
        validate(changed(name, value))
    said = str(caught.value)
    assert f"--{name.replace('_', '-')} " in said
    assert "got " in said
    assert "\n" not in said
    if isinstance(value, int | float):
        assert str(value).removesuffix(".0").lower() in said.lower()


@pytest.mark.parametrize(
    "name", [name for name, kind in setting_types().items() if type(None) in get_args(kind)]
)
def test_nothing_is_a_value_where_it_may_be(name: str) -> None:
    validate(changed(name, None))


@pytest.mark.parametrize(
    ("got", "hint"),
    [(90.0, "for 90 % write 0.9"), (1.0, "for 1 % write 0.01"), (99.5, "for 99.5 % write 0.995")],
)
def test_a_sparsity_in_per_cent_gets_a_hint(got: float, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        validate(changed("sparsity", got))


@given(st.floats())
def test_any_sparsity_is_taken_or_refused_in_one_sentence(value: float) -> None:
    if 0.0 <= value < 1.0:
        validate(changed("sparsity", value))
        return
    with pytest.raises(ValueError, match=r"^--sparsity .* got .*\.$"):
        validate(changed("sparsity", value))


def test_settings_that_contradict_each_other() -> None:
    run = with_setting(changed("topology", "dense"), "growth_signal", "corrected")
    with pytest.raises(ValueError, match=r"^--growth-signal corrected has no effect on a dense"):
        validate(run)
    validate(with_setting(run, "topology", "rigl"))


def test_names_are_those_of_the_rooms() -> None:
    assert set(get_args(ModelName)) == set(model_names())
    assert set(get_args(DatasetName)) == set(dataset_names())


def test_correctors_and_topologies_are_listed() -> None:
    from equipoise.listing import CORRECTORS, TOPOLOGIES

    assert tuple(CORRECTORS) == get_args(module.CorrectorName)
    assert tuple(TOPOLOGIES) == get_args(module.TopologyName)


def test_every_setting_has_a_help_text() -> None:
    """The docstring below a field is its help; it says what is taken where types cannot."""
    tree = ast.parse(inspect.getsource(module))
    helped = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or not node.name.endswith("Settings"):
            continue
        assert ast.get_docstring(node)
        for one, two in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(one, ast.AnnAssign):
                continue
            assert isinstance(one.target, ast.Name)
            assert isinstance(two, ast.Expr), f"{one.target.id} has no docstring"
            assert isinstance(two.value, ast.Constant)
            text = str(two.value.value)
            assert text[0].isupper() or text.split()[0] in ("none", "cpu,"), one.target.id
            assert text.endswith("."), one.target.id
            helped.add(one.target.id)
    assert helped == set(setting_types())


def test_defaults_are_those_of_the_published_method() -> None:
    assert (CorrectionSettings().scaling, CorrectionSettings().smoothing) == (0.1, 0.3)
    assert CorrectionSettings().corrector == "none"
