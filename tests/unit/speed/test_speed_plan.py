"""A plan is about the very network that would be trained, and says what fits it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.engine import convert
from equipoise.engine.choice import Memory, Timed
from equipoise.engine.layers import SparseLayer, default_way
from equipoise.settings import Run, with_setting
from equipoise.shipping import save_sparse
from equipoise.speed import plan as planning
from equipoise.speed.plan import build_network, expected_images, plan_run, state_bytes
from equipoise.training.session import Session

kit: Any = import_module("tests.unit.engine.engine_kit")


def run_with(**settings: Any) -> Run:
    run = Run()
    chosen = {"device": "cpu", "batch_size": 16, "topology": "static", **settings}
    for name, value in chosen.items():
        run = with_setting(run, name, value)
    return run


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer gains fourfold, every step threefold."""

    def choose(geometry: Any, positions: Any, rows: int, *rest: Any) -> Timed:
        return Timed(default_way(geometry, len(positions) / geometry.num_weights, rows), 1.0, 4.0)

    def seconds(model: nn.Module, inputs: Any) -> float:
        return 1.0 if any(isinstance(m, SparseLayer) for m in model.modules()) else 3.0

    monkeypatch.setattr(convert, "choose_way", choose)
    monkeypatch.setattr("equipoise.engine.timing.step_seconds", seconds)
    monkeypatch.setattr(convert, "machine_memory", lambda: Memory(None))


def test_it_is_the_network_that_would_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    run = run_with(model="small_cnn", seed=3, sparsity=0.8)
    session = Session(run)
    images = expected_images(run)
    shape = (images.channels, images.side, images.classes, images.guessed)
    assert shape == (1, 8, len(session.images.train.classes), False)
    mine, its = build_network(run, images).state_dict(), session.model.state_dict()
    assert mine.keys() == its.keys()
    for name, mask in session.topology.masks.items():
        assert torch.equal(mine[name] * mask, its[name])
    plan = plan_run(run)
    assert list(plan.weights) == session.topology.summary()


def test_the_masks_and_the_file_are_those_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    run = run_with(model="small_cnn", sparsity=0.9, mask_sampling="bernoulli")
    session = Session(run)
    state, masks = session.model.state_dict(), session.topology.masks
    assert plan_run(run).file == save_sparse(tmp_path / "file", state, masks=masks)


@kit.needs_kernels
@pytest.mark.usefixtures("fast")
def test_a_gain_with_its_memory() -> None:
    run = run_with(model="small_cnn", sparsity=0.9, interval=5, topology="rigl")
    seen: list[tuple[int, int]] = []
    plan = plan_run(run, lambda *progress: seen.append(progress))
    assert plan.explanation is not None
    assert plan.verdict == plan.explanation.verdict
    assert "3.0 times as fast" in plan.verdict
    count = len(plan.explanation.layers)
    assert seen == [(n, count) for n in range(count + 1)]
    assert plan.engine_bytes == state_bytes(plan.explanation.network, 1) < 0.6 * plan.masked_bytes


@kit.needs_kernels
@pytest.mark.usefixtures("fast")
def test_sparse_in_any_case_is_planned_as_such() -> None:
    plan = plan_run(run_with(model="small_cnn", engine="sparse"))
    assert plan.explanation is not None
    assert plan.explanation.gain == 3.0


@kit.needs_kernels
def test_what_training_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "explain", lambda *_, **__: _Refused())
    plan = plan_run(run_with(model="mlp", engine="sparse"))
    assert plan.verdict == "Training would refuse --engine sparse: it is odd."


class _Refused:
    reason = "it is odd"
    verdict = "Nothing to gain"
    network = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        (
            {"engine": "dense"},
            "Nothing to gain: --engine dense asks for masks on ordinary tensors.",
        ),
        ({"compile": True}, "Nothing to gain: the engine does not go with --compile."),
        (
            {"topology": "dense"},
            "Nothing to gain: the engine does not go with a network without masks.",
        ),
        (
            {"precision": "bf16", "sparsity": 0.0},
            "Nothing to gain: the engine does not go with a network without masks and "
            "--precision bf16.",
        ),
    ],
)
def test_settings_that_rule_the_engine_out(settings: dict[str, Any], verdict: str) -> None:
    plan = plan_run(run_with(model="mlp", **settings))
    assert plan.explanation is None
    assert plan.verdict == verdict
    assert plan.engine_bytes == plan.masked_bytes


@pytest.mark.parametrize("topology", ["rigl", "bsr"])
def test_the_densities_are_those_that_a_training_starts_with(
    topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    run = run_with(model="small_cnn", topology=topology, seed=3, engine="dense")
    plan, session = plan_run(run), Session(run)
    assert list(plan.weights) == session.topology.summary()
    budget = getattr(session.topology, "budget", None)
    assert plan.budget == budget
    assert (budget is None) is (topology == "rigl")


def test_another_device_rules_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "resolve_device", lambda _: torch.device("cuda"))
    assert plan_run(run_with(model="mlp", device="auto")).verdict == (
        "Nothing to gain: training runs on cuda here, the engine on processors only."
    )


def test_without_kernels_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    plan = plan_run(run_with(model="small_cnn"))
    start = "Nothing to gain on this machine: the kernels are switched off"
    assert plan.verdict.startswith(start)
    assert plan.verdict.endswith("unset it to use them; training goes on with masks.")
    plan = plan_run(run_with(model="small_cnn", engine="sparse"))
    assert plan.verdict.startswith("Training would refuse --engine sparse: the kernels are switch")


@pytest.mark.parametrize(
    ("settings", "states"),
    [({}, 1), ({"momentum": 0.0}, 0), ({"optimizer": "sgdw"}, 1), ({"optimizer": "adamw"}, 2)],
)
def test_the_optimizer_keeps_what_it_keeps(
    settings: dict[str, Any], states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    run = run_with(model="mlp", **settings)
    session = Session(run)
    for parameter in session.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    session.optimizer.step()
    kept = [
        tensor
        for state in session.optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and tensor.ndim > 0
    ]
    network = state_bytes(session.model, 0)
    assert plan_run(run).masked_bytes == network + sum(4 * tensor.numel() for tensor in kept)
    parameters = sum(4 * p.numel() for p in session.model.parameters())
    assert state_bytes(session.model, states) == network + states * parameters


def test_a_folder_of_images_has_as_many_classes_as_one_can_guess() -> None:
    images = expected_images(run_with(dataset="image_folder"))
    assert (images.channels, images.side, images.classes, images.guessed) == (3, 224, 1000, True)
    assert expected_images(run_with(dataset="image_folder", image_size=64)).side == 64
    assert expected_images(run_with(dataset="cifar100")).classes == 100
