"""Runs that train active weights only: begun, stored, stopped, resumed, evaluated, shipped."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from equipoise.engine import convert
from equipoise.engine.convolution import Geometry, Tiling, Way
from equipoise.engine.layers import SparseLayer
from equipoise.engine.library import VARIABLE, kernels, unavailable_because
from equipoise.engine.network import EngineNetwork, to_dense
from equipoise.records import MANIFEST, RECORDS, read_records
from equipoise.shipping import load_sparse
from equipoise.training import arms, build
from equipoise.training.arms import Job, run_jobs
from equipoise.training.loop import CHECKPOINT, MODEL, train
from equipoise.training.observers import Bar
from equipoise.training.optimizers import build_optimizer
from equipoise.training.session import Session
from equipoise.training.stored import evaluate_stored, export_stored

toy: Any = import_module("tests.unit.training.toy")
resume: Any = import_module("tests.unit.training.test_resume")

missing = unavailable_because()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))

CNN: dict[str, Any] = {"model": "small_cnn", "width": 0.25, "sparsity": 0.8}
SETUPS: dict[str, dict[str, Any]] = {
    "set": {"topology": "set", "interval": 2},
    "rigl agent": {"topology": "rigl", "interval": 2, "corrector": "agent"},
    "rigl_itop no_gamma adamw bernoulli": {
        "topology": "rigl_itop",
        "interval": 3,
        "corrector": "no_gamma",
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "mask_sampling": "bernoulli",
        "clip_norm": 1.0,
    },
    "svrg sgdw every second epoch": {
        "topology": "set_itop",
        "interval": 4,
        "corrector": "svrg",
        "optimizer": "sgdw",
        "decay": "matrices",
        "refresh_every": 2,
        "epochs": 4,
    },
    "agent accumulate, dropout": {
        "model": "wrn_22_2",
        "width": 0.25,
        "dropout": 0.3,
        "batch_size": 12,
        "accumulate": 2,
        "corrector": "agent",
        "topology": "rigl",
        "interval": 2,
        "growth_signal": "corrected",
    },
    "svrg cached": {
        "corrector": "svrg",
        "correction_mode": "cached",
        "topology": "set",
        "interval": 3,
    },
    "mvr": {"corrector": "mvr", "topology": "rigl", "interval": 2},
    "agent_mvr_oracle on disk": {
        "corrector": "agent_mvr_oracle",
        "correction_mode": "cached",
        "cache": "disk",
        "topology": "set",
        "interval": 2,
    },
}


@pytest.fixture(scope="module", autouse=True)
def untimed() -> Iterator[None]:
    with toy.untimed():
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """With engine="auto" nothing is timed, and the engine always pays."""
    monkeypatch.setattr(convert, "too_small", lambda *passed: None)
    monkeypatch.setattr(convert, "speed_up", lambda *passed: 2.0)


@pytest.fixture
def never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever times something now fails."""
    for name in ("choose_way", "too_small", "speed_up"):
        monkeypatch.setattr(convert, name, refuse)


def refuse(*passed: Any) -> Any:
    raise AssertionError("something was timed")


def another_way(geometry: Geometry, density: float, rows: int) -> Way:
    """A way that adds in another order than the usual one."""
    del geometry, density, rows
    tiling = Tiling(block=1, rows=1, columns=2)
    return Way(tiling, tiling, tiling, wide=False)


def data_of(changes: dict[str, Any]) -> Any:
    return toy.images(48, 16, 16) if "dropout" in changes else toy.images()


@pytest.fixture(scope="module")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Uninterrupted runs by name, each trained once."""

    def make(name: str) -> Any:
        changes = CNN | SETUPS[name] | {"engine": "sparse"}
        case = resume.Case(changes, tmp_path_factory.mktemp("whole"), data_of(changes))
        state = torch.load(case.whole / CHECKPOINT, weights_only=True)
        assert any(key.endswith(".values") for key in state["model"])
        assert state["engine"]
        assert state["topology"]["num_rewirings"] >= 2
        return case

    return cache(make)


@pytest.fixture(params=SETUPS)
def case(request: pytest.FixtureRequest, make_case: Callable[[str], Any]) -> Any:
    return make_case(request.param)


@pytest.fixture
def agent(make_case: Callable[[str], Any]) -> Any:
    return make_case("rigl agent")


@pytest.mark.parametrize("when", ["middle of an epoch", "last step of an epoch"])
def test_a_stop_changes_nothing(case: Any, when: str, tmp_path: Path, never_timed: None) -> None:
    del never_timed
    with toy.untimed():
        count = resume.WHEN[when](case.steps, case.steps * case.run.loop.epochs)
        outcome = case.stop_after(tmp_path, count)
    assert not outcome.finished
    assert toy.stored_state(tmp_path)["position"]["step"] == count
    case.check(tmp_path)


@pytest.mark.parametrize("step", [2, 6, 8, 11])
def test_a_kill_changes_nothing(step: int, agent: Any, tmp_path: Path) -> None:
    agent.kill(tmp_path, resume.KilledAt("stepped", step))
    assert toy.stored_state(tmp_path)["position"]["step"] == step - 1
    agent.check(tmp_path)


def test_a_kill_during_a_refresh_after_rewirings(agent: Any, tmp_path: Path) -> None:
    agent.kill(tmp_path, resume.KilledAt("refreshed", 7))
    assert toy.stored_state(tmp_path)["topology"]["num_rewirings"] >= 3
    agent.check(tmp_path)


def test_a_run_goes_on_in_the_ways_that_it_began_with(agent: Any, tmp_path: Path) -> None:
    """Other ways add in another order, and may be the fastest next time."""
    agent.stop_after(tmp_path, agent.steps + 2)
    with toy.untimed(another_way):
        agent.check(tmp_path)
        fresh = Session(agent.run, agent.data)
        other = another_way(Geometry(1, 1), 1.0, 1)
        assert {layer.way for layer in sparse_layers(fresh)} == {other}
        agent.train(tmp_path / "fresh")
    ends = [torch.load(each / MODEL) for each in (tmp_path, tmp_path / "fresh")]
    assert toy.differences(*ends) != []


def sparse_layers(session: Session) -> list[SparseLayer]:
    return [m for m in session.model.modules() if isinstance(m, SparseLayer)]


def test_a_mixed_network_goes_on_as_it_began(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With auto, layers that torch runs faster keep masks; later timings change nothing."""
    del eager
    run = toy.make_run(**CNN | SETUPS["rigl agent"] | {"engine": "auto"})
    data = toy.images()
    with toy.untimed(slow=lambda geometry: geometry.in_channels == 8):
        whole, part = tmp_path / "whole", tmp_path / "part"
        train(run, whole, dataset=data)
        left = iter(range(7))
        train(run, part, dataset=data, should_stop=lambda: next(left, None) is None)
    state = torch.load(part / CHECKPOINT, weights_only=True)
    kinds = {key.rpartition(".")[2] for key in state["model"] if key.startswith("features.3")}
    assert kinds == {"weight"}
    assert "features.3" not in state["engine"]
    assert len([key for key in state["model"] if key.endswith(".values")]) == 1
    for name in ("choose_way", "too_small", "speed_up"):
        monkeypatch.setattr(convert, name, refuse)
    train(run, part, dataset=data)
    assert toy.differences(*(torch.load(each / MODEL) for each in (whole, part))) == []
    assert toy.differences(*(toy.stored_state(each) for each in (whole, part))) == []


@pytest.mark.parametrize("engine", ["auto", "dense"])
def test_a_masked_run_goes_on_with_masks(
    engine: str, tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is found to be faster in the meantime."""
    del eager
    run = toy.make_run(**CNN | SETUPS["rigl agent"] | {"engine": engine})
    data = toy.images()
    monkeypatch.setattr(convert, "too_small", lambda *passed: "it is small")
    train(run, tmp_path / "whole", dataset=data)
    left = iter(range(7))
    train(run, tmp_path / "part", dataset=data, should_stop=lambda: next(left, None) is None)
    monkeypatch.setattr(convert, "too_small", lambda *passed: None)
    assert train(run, tmp_path / "part", dataset=data).finished
    states = [toy.stored_state(tmp_path / each) for each in ("whole", "part")]
    assert toy.differences(*states) == []
    assert states[0]["engine"] == {}


def test_a_run_from_before_there_was_an_engine_goes_on(tmp_path: Path, eager: None) -> None:
    del eager
    data, whole, part = toy.images(), tmp_path / "whole", tmp_path / "part"
    changes = CNN | SETUPS["rigl agent"]
    train(toy.make_run(**changes, engine="dense"), whole, dataset=data)
    left = iter(range(7))
    old = toy.make_run(**changes, engine="dense")
    train(old, part, dataset=data, should_stop=lambda: next(left, None) is None)
    state = torch.load(part / CHECKPOINT, weights_only=True)
    del state["engine"]
    torch.save(state, part / CHECKPOINT)
    manifest = json.loads((part / MANIFEST).read_text())
    del manifest["run"]["loop"]["engine"], manifest["engine"]
    (part / MANIFEST).write_text(json.dumps(manifest))
    assert train(toy.make_run(**changes, engine="auto"), part, dataset=data).finished
    assert toy.differences(*(torch.load(each / MODEL) for each in (whole, part))) == []


def test_other_settings_are_still_another_run(tmp_path: Path) -> None:
    train(toy.make_run(epochs=1), tmp_path, dataset=toy.images())
    with pytest.raises(ValueError, match=r"another run \(engine .dense. instead of .sparse.\)"):
        train(toy.make_run(epochs=1, engine="sparse"), tmp_path, dataset=toy.images())


@pytest.mark.parametrize("engine", ["auto", "sparse"])
def test_a_checkpoint_where_the_kernels_are_off(
    engine: str, tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del eager
    run = toy.make_run(**CNN | SETUPS["set"] | {"engine": engine})
    left = iter(range(3))
    train(run, tmp_path, dataset=toy.images(), should_stop=lambda: next(left, None) is None)
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setenv(VARIABLE, "off")
    with pytest.raises(ValueError, match="made with the engine") as caught:
        train(run, tmp_path, dataset=toy.images())
    said = str(caught.value)
    assert is_one_sentence(said), said
    assert "switched off by EQUIPOISE_KERNELS=off" in said
    assert "--overwrite" in said
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert evaluate_of(tmp_path, run) >= 0.0
    monkeypatch.delenv(VARIABLE)
    assert train(run, tmp_path, dataset=toy.images()).finished


def is_one_sentence(said: str) -> bool:
    return said.endswith(".") and "\n" not in said and ". " not in said and ".)" not in said


def evaluate_of(folder: Path, run: Any) -> float:
    """Accuracy of what a folder holds, on the same images, with a plain model."""
    stored = import_module("equipoise.training.stored")
    images = build.select_images(toy.images(), run.data)
    model = build.build_model(run, images.train, torch.device("cpu"))
    stored._load_weights(model, folder)
    loader = build.test_loader(images.test, run, torch.device("cpu"))
    return float(stored.evaluate(model, loader.epoch(0)).accuracy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda ways: ways.popitem(),
        lambda ways: ways.update(nowhere=next(iter(ways.values()))),
        lambda ways: next(iter(ways.values()))["forward"].update(rows=0),
        lambda ways: next(iter(ways.values())).pop("input"),
        lambda ways: ways.update({next(iter(ways)): 3}),
    ],
    ids=["one too few", "one too many", "impossible", "incomplete", "nonsense"],
)
def test_a_damaged_list_of_ways(damage: Callable[[Any], Any], tmp_path: Path) -> None:
    run = toy.make_run(**CNN | SETUPS["set"] | {"engine": "sparse"})
    left = iter(range(3))
    train(run, tmp_path, dataset=toy.images(), should_stop=lambda: next(left, None) is None)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    damage(state["engine"])
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"checkpoint") as caught:
        train(run, tmp_path, dataset=toy.images())
    assert is_one_sentence(str(caught.value)), caught.value


def finished(folder: Path, **changes: Any) -> Any:
    settings = {"train_samples": 64, "test_samples": 48, "dataset": "digits", "epochs": 2}
    run = toy.make_run(**CNN | SETUPS["set"] | {"engine": "sparse"} | settings | changes)
    train(run, folder)
    return run


def test_what_is_stored_is_a_plain_network(tmp_path: Path) -> None:
    run = finished(tmp_path, corrector="agent")
    record = read_records(tmp_path / RECORDS)[-1]
    state = torch.load(tmp_path / MODEL, weights_only=True)
    images = build.select_images(build.load_images(run.data), run.data)
    model = build.build_model(run, images.train, torch.device("cpu"))
    assert list(state) == list(model.state_dict())
    model.load_state_dict(state)
    masks = torch.load(tmp_path / CHECKPOINT, weights_only=True)["topology"]["masks"]
    assert all(int(state[name][~mask].count_nonzero()) == 0 for name, mask in masks.items())
    scores = [evaluate_stored(tmp_path)]
    (tmp_path / MODEL).rename(tmp_path / "aside")
    scores.append(evaluate_stored(tmp_path))
    assert scores[0] == scores[1]
    # The record is the engine's, the others are torch's: the same network, other roundings.
    assert scores[0].score.loss == pytest.approx(record.test_loss, rel=1e-5)
    assert scores[0].score.accuracy == pytest.approx(record.test_accuracy, abs=1 / 48 + 1e-9)
    assert scores[0].active_weights <= record.active_weights


def test_exports_of_the_last_checkpoint_and_of_the_model_are_the_same(tmp_path: Path) -> None:
    finished(tmp_path)
    export_stored(tmp_path, out=tmp_path / "from_model")
    (tmp_path / MODEL).unlink()
    export_stored(tmp_path, out=tmp_path / "from_checkpoint")
    loaded = [load_sparse(tmp_path / each) for each in ("from_model", "from_checkpoint")]
    assert list(loaded[0].tensors) == list(loaded[1].tensors)
    assert toy.differences(loaded[0].dense(), loaded[1].dense()) == []
    assert toy.differences(loaded[0].masks(), loaded[1].masks()) == []
    masks = torch.load(tmp_path / CHECKPOINT, weights_only=True)["topology"]["masks"]
    assert toy.differences(dict(loaded[0].masks()), masks) == []
    assert evaluate_stored(tmp_path / "from_model") == evaluate_stored(tmp_path / "from_checkpoint")


def test_an_unfinished_run_is_evaluated_and_exported(tmp_path: Path, agent: Any) -> None:
    agent.stop_after(tmp_path, agent.steps + 2)
    session = Session(agent.run, agent.data, begun=torch.load(tmp_path / CHECKPOINT))
    session.load_state_dict(torch.load(tmp_path / CHECKPOINT))
    exported = load_sparse(export_stored(tmp_path).path).dense()
    assert toy.differences(dict(to_dense(session.model).state_dict()), dict(exported)) == []
    assert session.topology.num_rewirings >= 3


def test_the_manifest_tells_what_was_used(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del eager

    def manifest(**changes: Any) -> dict[str, Any]:
        run = toy.make_run(**CNN | {"epochs": 1} | changes)
        train(run, tmp_path, dataset=toy.images(), overwrite=True)
        told: dict[str, Any] = json.loads((tmp_path / MANIFEST).read_text())
        return told

    used = {"used": True, "instructions": kernels().instructions, "reason": None}
    sparse, dense = manifest(engine="sparse"), manifest(engine="dense")
    assert sparse["engine"] == manifest(engine="auto")["engine"] == used
    assert sparse["network"] == dense["network"]
    plain = toy.session(**CNN).model
    assert sparse["network"]["parameters"] == sum(p.numel() for p in plain.parameters())
    unused = {"used": False, "instructions": None, "reason": None}
    assert dense["engine"] == unused
    for other in ({"precision": "bf16"}, {"sparsity": 0.0}, {"topology": "dense"}):
        assert manifest(engine="auto", **other)["engine"] == unused
    monkeypatch.setattr(convert, "speed_up", lambda *passed: 0.5)
    assert manifest(engine="auto")["engine"] == unused | {
        "reason": "a step would take 2.00 times as long as with masks"
    }
    monkeypatch.setenv(VARIABLE, "off")
    said = manifest(engine="auto")["engine"]
    assert said["used"] is False
    assert said["reason"].startswith("the kernels are switched off by EQUIPOISE_KERNELS=off")
    with pytest.raises(ValueError, match=r"^the engine cannot run this network: .* masks instead"):
        manifest(engine="sparse")


def test_a_resumed_run_says_what_it_uses(agent: Any, tmp_path: Path) -> None:
    lines = []
    for _ in range(2):
        console = Console(record=True, force_terminal=False, width=200)
        agent.train(tmp_path, observers=(Bar(console, "it"),), should_stop=lambda: True)
        lines.append(console.export_text().splitlines()[0])
    assert lines == ["Engine: active weights only."] * 2


def test_where_the_engine_does_not_pay_nothing_is_different(monkeypatch: Any) -> None:
    """Trying it leaves no trace in weights, statistics, random numbers or counts."""
    monkeypatch.setattr(convert, "speed_up", lambda *passed: 0.5)
    monkeypatch.setattr("equipoise.engine.timing._WORTH_SECONDS", 0.0)
    changes = CNN | SETUPS["rigl agent"]
    sessions = [toy.session(engine=kind, **changes) for kind in ("dense", "auto")]
    assert sessions[1].engine_reason is not None
    assert type(sessions[1].model) is type(sessions[0].model)
    assert toy.differences(*(s.state_dict() for s in sessions)) == []
    records = [[toy.without_time(r) for r in toy.all_epochs(session)] for session in sessions]
    assert records[0] == records[1]
    states = [s.state_dict() for s in sessions]
    for state in states:
        del state["meter"]
    assert toy.differences(*states) == []


def test_no_dense_weight_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[nn.Parameter]] = []

    def watched(*passed: Any, build_model: Any = build.build_model) -> Any:
        model = build_model(*passed)
        made.extend(weakref.ref(p) for p in model.parameters() if p.ndim >= 2)
        return model

    monkeypatch.setattr(build, "build_model", watched)
    session = toy.session(engine="sparse", **CNN | SETUPS["rigl agent"] | {"distribution": "er"})
    gc.collect()
    alive = [p for p in (each() for each in made) if p is not None]
    masked = {id(p) for p in session.topology.parameters.values()}
    # What is fully active keeps its weight; nothing else does.
    assert all(id(p) in masked for p in alive)
    assert len(made) - len(alive) == len(sparse_layers(session)) >= 3
    toy.one_epoch(session)
    held = [p for g in session.optimizer.param_groups for p in g["params"]]
    corrector = session.corrector.state_dict()
    sizes = {p.numel() for p in held} | {t.numel() for t in corrector["snapshot"].values()}
    largest = max(layer.values.numel() for layer in sparse_layers(session))
    assert max(sizes) <= max(largest, *(p.numel() for p in alive), 1)


@pytest.mark.parametrize("optimizer", ["sgd", "sgdw", "adam", "adamw"])
def test_decay_of_matrices_is_decay_of_their_active_weights(optimizer: str) -> None:
    changes = CNN | {"optimizer": optimizer, "decay": "matrices", "weight_decay": 0.05}
    sessions = [toy.session(engine=kind, **changes) for kind in ("dense", "sparse")]
    groups = [
        [(len(group["params"]), group["weight_decay"]) for group in session.optimizer.param_groups]
        for session in sessions
    ]
    assert groups[0] == groups[1]
    assert groups[0][0][0] == len(sessions[0].topology.parameters)


def test_without_masks_decay_of_matrices_goes_by_dimensions() -> None:
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,), ())]
    settings = toy.make_run(decay="matrices").optimization
    groups = build_optimizer(parameters, settings).param_groups
    assert [len(group["params"]) for group in groups] == [1, 2]


def test_channels_last_and_label_smoothing_go_with_it() -> None:
    changes = CNN | {"channels_last": True, "label_smoothing": 0.1, "clip_norm": 0.1}
    records = [
        [r.train_loss for r in toy.all_epochs(toy.session(engine=kind, **changes))]
        for kind in ("dense", "sparse")
    ]
    assert records[0] == pytest.approx(records[1], rel=1e-4)


def jobs(folder: Path, *changes: dict[str, Any]) -> list[Job]:
    return [
        Job(label=f"arm{n}", run=toy.make_run(**each), folder=folder / f"arm{n}")
        for n, each in enumerate(changes)
    ]


def test_the_arms_of_a_comparison_are_timed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(arms, "Session", seen.append)
    planned = jobs(
        tmp_path,
        {"engine": "auto"},
        {"engine": "auto", "corrector": "agent", "topology": "set", "seed": 3},
        {"engine": "auto", "sparsity": 0.9},
        {"engine": "auto", "batch_size": 8},
        {"engine": "sparse"},
        {"engine": "dense"},
        {"engine": "auto", "precision": "bf16", "width": 0.3},
        {"engine": "auto", "width": 0.3},
        {"engine": "auto", "width": 0.4},
    )
    (planned[8].folder).mkdir()
    (planned[8].folder / CHECKPOINT).touch()
    arms._decide_engine(planned, 1, overwrite=False)
    assert seen == [planned[n].run for n in (0, 2, 3, 4, 7)]
    seen.clear()
    arms._decide_engine(planned, 1, overwrite=True)
    assert seen[-1] == planned[8].run


def test_an_interrupt_while_the_arms_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(run: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(arms, "Session", interrupted)
    before = torch.get_num_threads()
    console = Console(record=True)
    assert not run_jobs(jobs(tmp_path, {"engine": "auto"}), console, workers=1)
    assert torch.get_num_threads() == before
    assert list(tmp_path.iterdir()) == []


def test_the_engine_is_not_asked_about_what_it_cannot_do(never_timed: None) -> None:
    del never_timed
    for other in ({"precision": "bf16"}, {"topology": "dense"}, {"sparsity": 0.0}):
        session = toy.session(engine="auto", **CNN | other)
        assert not session.uses_engine
        assert session.engine_reason is None


def test_the_plain_model_of_a_session_runs_without_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = toy.session(engine="sparse", **CNN)
    assert isinstance(session.model, EngineNetwork)
    toy.one_epoch(session)
    plain = to_dense(session.model)
    monkeypatch.setenv(VARIABLE, "off")
    assert plain(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
