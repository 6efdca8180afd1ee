"""A folder belongs to one run: it is finished once, never mixed with another, never damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.models import create
from equipoise.records import MANIFEST, RECORDS, read_records, read_run
from equipoise.settings import Run, as_plain, from_plain, with_setting
from equipoise.training import loop as module
from equipoise.training.checkpoint import save_checkpoint
from equipoise.training.loop import CHECKPOINT, MODEL, Outcome, train
from equipoise.training.session import Session

toy = import_module("tests.unit.training.toy")

RUN: Run = toy.make_run(corrector="agent", topology="set", interval=2)


def start(folder: Path, run: Run = RUN, **options: Any) -> Outcome:
    return train(run, folder, dataset=toy.images(), **options)


def stop_after(steps: int) -> Callable[[], bool]:
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    start(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the middle of the second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    start(folder, should_stop=stop_after(7))
    return folder


@pytest.fixture(params=["finished", "stopped"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of the two."""
    folder = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(request.param), folder)
    return folder


@pytest.fixture
def halfway(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


@pytest.fixture
def complete(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path, run: Run = RUN, **options: Any) -> str:
    """What is said; nothing may have been touched."""
    before = content(folder)
    with pytest.raises(ValueError, match=r"\.$") as caught:
        start(folder, run, **options)
    assert content(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_leaves_these_files(finished: Path) -> None:
    assert sorted(content(finished)) == [CHECKPOINT, MANIFEST, MODEL, RECORDS]
    assert len(read_records(finished / RECORDS)) == 3


def test_a_finished_run_is_not_trained_again(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(complete)

    def refuse(*passed: Any) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr(module, "Session", refuse)
    outcome = start(complete)
    assert outcome.finished
    assert outcome.resumed
    assert outcome.records == read_records(complete / RECORDS)
    assert content(complete) == before


def test_a_finished_run_without_its_model_gets_it_back_without_training(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(complete)
    (complete / MODEL).unlink()

    def refuse(*passed: Any) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr(Session, "train_step", refuse)
    outcome = start(complete)
    assert outcome.finished
    assert outcome.resumed
    for name in (MANIFEST, RECORDS, CHECKPOINT):
        assert (complete / name).read_bytes() == before[name]
    assert toy.differences(torch.load(complete / MODEL), saved_model(before, complete)) == []


def saved_model(before: dict[str, bytes], folder: Path) -> Any:
    (folder / "before.pt").write_bytes(before[MODEL])
    return torch.load(folder / "before.pt")


CHANGES: list[tuple[str, Any, str]] = [
    ("learning_rate", 0.2, "learning-rate 0.1 instead of 0.2"),
    ("seed", 1, "seed 0 instead of 1"),
    ("topology", "rigl", "topology 'set' instead of 'rigl'"),
    ("epochs", 4, "epochs 3 instead of 4"),
    ("milestones", (0.25,), "milestones [0.5, 0.75] instead of [0.25]"),
    ("deterministic", False, "deterministic True instead of False"),
    ("train_samples", 70, "train-samples None instead of 70"),
    ("interval", 2.0, "interval 2 instead of 2.0"),
]


@pytest.mark.parametrize(("name", "value", "words"), CHANGES, ids=[c[0] for c in CHANGES])
def test_another_run_in_the_same_folder_is_refused(
    either: Path, name: str, value: Any, words: str
) -> None:
    said = refused(either, with_setting(RUN, name, value))
    assert words in said
    assert str(either) in said
    assert "--overwrite" in said


def test_another_label_is_refused(either: Path) -> None:
    assert "label set+agent instead of other" in refused(either, label="other")


@pytest.mark.parametrize(("name", "value"), [("data_dir", Path("elsewhere")), ("download", True)])
def test_the_place_of_the_data_is_no_difference(complete: Path, name: str, value: Any) -> None:
    assert start(complete, with_setting(RUN, name, value)).resumed


def test_whole_numbers_for_fractions_are_no_difference(tmp_path: Path) -> None:
    run = with_setting(RUN, "scaling", 1.0)
    start(tmp_path, run)
    assert start(tmp_path, with_setting(RUN, "scaling", 1)).resumed


def test_overwriting_starts_again(either: Path) -> None:
    run = with_setting(RUN, "learning_rate", 0.2)
    outcome = start(either, run, overwrite=True)
    assert outcome.finished
    assert not outcome.resumed
    assert [record.epoch for record in read_records(either / RECORDS)] == [1, 2, 3]
    assert outcome.records[-1].learning_rate == pytest.approx(0.2 * 0.01)
    assert read_run(either).manifest["run"]["optimization"]["learning_rate"] == 0.2
    fresh = start(either.parent / "fresh", run)
    assert list(map(toy.without_time, outcome.records)) == list(
        map(toy.without_time, fresh.records)
    )


class Cut(Exception):
    """Stands for the end of the process."""


def cut(*passed: Any, **options: Any) -> None:
    raise Cut


@pytest.mark.parametrize(
    ("where", "target"),
    [
        ("write_atomically", module),
        ("unlink", Path),
        ("write_records", module),
        ("save_checkpoint", module),
    ],
)
def test_a_kill_while_overwriting_never_mixes_two_runs(
    either: Path, where: str, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards the new run is refused or starts from its first step."""
    run = with_setting(RUN, "learning_rate", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(target, where, cut)
        with pytest.raises(Cut):
            start(either, run, overwrite=True)
    if where in ("write_atomically", "unlink"):  # the manifest is still the old one
        assert "holds another run (learning-rate 0.1 instead of 0.2)" in refused(either, run)
        outcome = start(either, run, overwrite=True)
    else:
        outcome = start(either, run)
    fresh = start(either.parent / "fresh", run)
    assert list(map(toy.without_time, outcome.records)) == list(
        map(toy.without_time, fresh.records)
    )
    assert toy.differences(*map(toy.stored_state, (either, either.parent / "fresh"))) == []


def test_while_overwriting_the_old_results_are_not_taken_for_the_new(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Session, "train_step", cut)
        with pytest.raises(Cut):
            start(complete, overwrite=True)
    assert not (complete / MODEL).exists()
    assert not (complete / CHECKPOINT).exists()
    assert read_records(complete / RECORDS) == []
    assert start(complete).finished


MANIFESTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda old: b"",
    "half": lambda old: old[: len(old) // 2],
    "garbage": lambda old: b"\xff\xfe\0garbage",
    "list": lambda old: b"[1, 2]",
    "number": lambda old: b"7",
    "no run": lambda old: json.dumps({"label": "x", "seed": 0}).encode(),
    "no label": lambda old: json.dumps({"run": {}}).encode(),
    "run is a list": lambda old: json.dumps(json.loads(old) | {"run": []}).encode(),
    "run is nothing": lambda old: json.dumps(json.loads(old) | {"run": None}).encode(),
    "group is a number": lambda old: json.dumps(json.loads(old) | {"run": {"loop": 3}}).encode(),
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_damaged_manifest(either: Path, damage: str) -> None:
    path = either / MANIFEST
    path.write_bytes(MANIFESTS[damage](path.read_bytes()))
    said = refused(either)
    assert str(path) in said
    assert "--overwrite" in said


def test_a_damaged_manifest_can_be_overwritten(either: Path) -> None:
    (either / MANIFEST).write_text("garbage")
    assert start(either, overwrite=True).finished
    assert read_run(either).manifest["run"] == as_plain(RUN)


@pytest.mark.parametrize("part", ["first", "last", "binary"])
def test_damaged_records(either: Path, part: str) -> None:
    path = either / RECORDS
    lines = path.read_bytes().splitlines(keepends=True)
    if part == "first":
        lines[0] = lines[0][:30] + b"\n"
    else:
        lines.append(b'{"epoch": 9}\n' if part == "last" else b"\xff\xfe\n")
    path.write_bytes(b"".join(lines))
    assert f"{path}, line {1 if part == 'first' else len(lines)}, is not a record" in refused(
        either
    )


@pytest.mark.parametrize("damage", ["missing", "doubled"])
def test_records_that_do_not_fit_the_checkpoint(halfway: Path, damage: str) -> None:
    path = halfway / RECORDS
    path.write_bytes(b"" if damage == "missing" else 2 * path.read_bytes())
    assert f"{path} lacks records of the 1 epochs" in refused(halfway)
    assert start(halfway, overwrite=True).finished


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_checkpoint(halfway: Path, damage: bytes | None) -> None:
    path = halfway / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-500] if damage is None else damage)
    assert f"{path} is damaged" in refused(halfway)


def test_a_checkpoint_of_another_network(halfway: Path) -> None:
    torch.save({"format": 1, **toy.session(width=0.2).state_dict()}, halfway / CHECKPOINT)
    assert "the checkpoint does not fit this run" in refused(halfway)


def test_a_checkpoint_without_a_manifest(halfway: Path) -> None:
    (halfway / MANIFEST).unlink()
    assert f"no {MANIFEST}" in refused(halfway)
    assert start(halfway, overwrite=True).finished


def test_what_half_a_write_leaves_is_not_in_the_way(halfway: Path) -> None:
    for name in (CHECKPOINT, RECORDS, MODEL, MANIFEST):
        (halfway / f"{name}.partial").write_bytes(b"half")
    assert start(halfway).finished
    assert sorted(content(halfway)) == [CHECKPOINT, MANIFEST, f"{MANIFEST}.partial", MODEL, RECORDS]


def test_records_grow_and_are_never_lost(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    path = tmp_path / RECORDS

    class Reader(toy.Watcher):  # type: ignore[name-defined]
        def start(self, session: Session) -> None:
            seen.append([r.epoch for r in read_records(path)])

        def stepped(self, session: Session, samples: int) -> None:
            seen.append([r.epoch for r in read_records(path)])

    for stop in (3, 4, 9):
        start(tmp_path, observers=(Reader(),), should_stop=stop_after(stop))
    assert all(one == two[: len(one)] for one, two in pairwise(seen))
    assert seen[-1] == [1, 2]
    assert [r.epoch for r in read_records(path)] == [1, 2, 3]


def test_missing_data_leave_no_folder(tmp_path: Path) -> None:
    run = with_setting(with_setting(RUN, "dataset", "svhn"), "data_dir", tmp_path)
    with pytest.raises(FileNotFoundError, match="SVHN was not found"):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 18), (1e9, 3)])
def test_checkpoints_come_after_epochs_and_so_many_seconds(
    tmp_path: Path, seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []

    def counting(path: Path, state: Any) -> None:
        saved.append(state["position"]["step"])
        save_checkpoint(path, state)

    monkeypatch.setattr(module, "save_checkpoint", counting)
    start(tmp_path, checkpoint_seconds=seconds)
    assert len(saved) == expected
    assert saved == sorted(saved)


def test_a_stop_is_asked_for_after_every_step(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask() -> bool:
        asked.append(1)
        return False

    start(tmp_path, should_stop=ask)
    assert len(asked) == 15


def test_the_manifest_describes_the_run(finished: Path) -> None:
    manifest = read_run(finished).manifest
    assert from_plain(manifest["run"]) == RUN
    assert manifest["identity"] == RUN.identity
    assert (manifest["label"], manifest["seed"], manifest["steps"]) == ("set+agent", 0, 15)
    data, network = manifest["data"], manifest["network"]
    counts = (data["train_samples"], data["validation_samples"], data["test_samples"])
    assert counts == (72, 0, 40)
    session = toy.session(corrector="agent", topology="set", interval=2)
    assert network["parameters"] == sum(p.numel() for p in session.model.parameters())
    assert network["maskable_weights"] == session.topology.num_weights
    assert network["active_weights"] == session.topology.num_active
    assert network["forward_flops_per_sample"] == session.flops.sparse
    assert network["dense_forward_flops_per_sample"] == session.flops.dense
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["device"]["type"] == "cpu"
    assert manifest["device"]["name"]
    assert manifest["device"]["threads"] == torch.get_num_threads()


def test_a_label_may_be_given(tmp_path: Path) -> None:
    start(tmp_path, label="mine")
    assert read_run(tmp_path).label == "mine"
    assert start(tmp_path, label="mine").resumed


def test_the_model_needs_no_equipoise_to_be_read(finished: Path) -> None:
    weights = torch.load(finished / MODEL, weights_only=True)
    model = create("mlp", num_classes=4, in_channels=1, image_size=8, width=0.05)
    model.load_state_dict(weights)
    assert set(weights) == set(model.state_dict())
    state = torch.load(finished / CHECKPOINT, weights_only=True)
    assert toy.differences(dict(state["model"]), dict(weights)) == []


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
def test_the_process_keeps_its_own_determinism(
    before: tuple[bool, bool], wanted: bool, fails: bool, tmp_path: Path
) -> None:
    inside: list[bool] = []

    class Looker(toy.Watcher):  # type: ignore[name-defined]
        def start(self, session: Session) -> None:
            inside.append(torch.are_deterministic_algorithms_enabled())
            if fails:
                raise Cut

    def state() -> tuple[bool, bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        )

    found = state()
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.benchmark = True
    run = with_setting(with_setting(RUN, "deterministic", wanted), "epochs", 1)
    try:
        if fails:
            with pytest.raises(Cut):
                start(tmp_path, run, observers=(Looker(),))
        else:
            start(tmp_path, run, observers=(Looker(),))
        assert state() == (*before, True)
        assert inside == [wanted or before[0]]
    finally:
        torch.use_deterministic_algorithms(found[0], warn_only=found[1])
        torch.backends.cudnn.benchmark = found[2]


def test_records_are_what_was_returned(finished: Path) -> None:
    lines = (finished / RECORDS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        asdict(r) for r in read_records(finished / RECORDS)
    ]
