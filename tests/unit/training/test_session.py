"""Each setting does what it says to a session, and only that."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.correction import GradientCorrector
from equipoise.settings import Run, with_setting
from equipoise.training import build
from equipoise.training.evaluate import evaluate

toy = import_module("tests.unit.training.toy")

CPU = torch.device("cpu")
DESCENT = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "topology": "dense"}
"""With these a step is the rate times the gradient, so that gradients can be read off weights."""


def test_a_step_is_the_gradient_of_its_batch() -> None:
    reference = toy.session(**DESCENT)
    expected = toy.gradient(reference, next(reference.loader.epoch(0)))
    moved, group = toy.first_steps(toy.session(**DESCENT), 1)[0]
    assert [batch.size for batch in group] == [16]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("accumulate", "sizes"), [(2, [32, 32, 8]), (3, [48, 24]), (9, [72])])
def test_accumulated_batches_weigh_by_their_size(accumulate: int, sizes: list[int]) -> None:
    session = toy.session(accumulate=accumulate, **DESCENT)
    groups = list(session.batches())
    assert [sum(batch.size for batch in group) for group in groups] == sizes
    assert session.steps_per_epoch == len(sizes)
    last = groups[-1]
    parts = [batch.size / sizes[-1] * toy.gradient(session, batch) for batch in last]
    before = toy.weights(session).clone()
    session.train_step(last)
    moved = (before - toy.weights(session)) / session.optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(moved, sum(parts), rtol=1e-4, atol=1e-5)
    assert (session.step, session.batch) == (1, len(last))


@pytest.mark.parametrize("corrector", ["none", "svrg"])
def test_accumulation_without_batch_norm_is_the_larger_batch(corrector: str) -> None:
    """Group by group the two see the same images; the correction is linear in the batch."""

    def trained(**changes: Any) -> Tensor:
        session = toy.session(corrector=corrector, epochs=2, **changes)
        for module in session.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 0.0
                module.__dict__["forward"] = torch.clone
        toy.all_epochs(session)
        return toy.weights(session)

    torch.testing.assert_close(
        trained(batch_size=24, accumulate=1), trained(batch_size=8, accumulate=3)
    )


def test_an_epoch_of_accumulated_steps() -> None:
    session = toy.session(accumulate=2, epochs=2)
    records = toy.all_epochs(session)
    assert [record.step for record in records] == [3, 6]
    assert session.topology.num_steps == session.total_steps == 6
    assert [record.data_passes for record in records] == [1.0, 2.0]


@pytest.mark.parametrize("corrector", ["none", "svrg"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_corrected_gradient_is_clipped(corrector: str, precision: str) -> None:
    changes = {"corrector": corrector, "precision": precision, **DESCENT}
    free = toy.first_steps(toy.session(**changes), 2)
    clipped = toy.first_steps(toy.session(clip_norm=1e-2, **changes), 2)
    assert float(free[0][0].norm()) > 0.1
    for moved, _ in clipped:
        assert float(moved.norm()) == pytest.approx(1e-2, rel=1e-2)
    direction = F.cosine_similarity(free[0][0], clipped[0][0], dim=0)
    assert float(direction) > 0.999
    wide = toy.first_steps(toy.session(clip_norm=1e9, **changes), 2)
    torch.testing.assert_close(wide[1][0], free[1][0], rtol=1e-3, atol=1e-4)


def test_svrg_at_the_snapshot_steps_along_the_full_gradient() -> None:
    session = toy.session(corrector="svrg", **DESCENT)
    toy.begin_epoch(session)
    full = toy.flat(session.corrector.full_gradient[n] for n, _ in session.model.named_parameters())
    before = toy.weights(session).clone()
    session.train_step(next(session.batches()))
    moved = (before - toy.weights(session)) / session.optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(moved, full, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("corrector", ["none", "agent", "svrg"])
def test_half_precision_is_close_and_keeps_single_precision_states(
    precision: str, corrector: str
) -> None:
    changes = {"corrector": corrector, **DESCENT}
    single = toy.first_steps(toy.session(**changes), 1)[0][0]
    session = toy.session(precision=precision, **changes)
    seen = []
    session.model.register_forward_hook(lambda *passed: seen.append(passed[2].dtype))
    half = toy.first_steps(session, 1)[0][0]
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert not torch.equal(half, single)
    assert float((half - single).norm()) < 0.1 * float(single.norm())
    toy.all_epochs(session)
    states: list[Tensor] = list(session.model.parameters())
    if isinstance(session.corrector, GradientCorrector):
        states += [*session.corrector.full_gradient.values(), *session.corrector.snapshot.values()]
        assert session.corrector.full_gradient
    assert {tensor.dtype for tensor in states} == {torch.float32}


def test_evaluation_is_in_the_precision_of_the_run() -> None:
    session = toy.session(precision="bf16", epochs=1)
    seen: list[torch.dtype] = []
    toy.begin_epoch(session)
    session.model.register_forward_hook(lambda *passed: seen.append(passed[2].dtype))
    session.finish_epoch()
    assert seen == [torch.bfloat16]


def test_the_gradient_scaler_scales_and_a_broken_step_is_skipped() -> None:
    session = toy.session(precision="fp16", corrector="svrg", topology="set", interval=9)
    toy.begin_epoch(session)
    assert session.scaler.get_scale() == 65536.0
    batches = session.batches()
    session.train_step(next(batches))
    moved = toy.weights(session).clone()
    broken = [next(batches)[0]]
    broken = [broken[0]._replace(x=torch.full_like(broken[0].x, 1e30))]
    session.train_step(broken)  # and nobody is warned of what the scaler takes care of
    assert torch.equal(toy.weights(session), moved)
    assert session.scaler.get_scale() == 32768.0
    assert (session.step, session.topology.num_steps) == (2, 1)
    other = toy.session(precision="fp16", corrector="svrg", topology="set", interval=9)
    other.load_state_dict(session.state_dict())
    assert other.scaler.state_dict() == session.scaler.state_dict()
    assert other.scaler.get_scale() == 32768.0


def test_every_pass_uses_the_scale_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    session = toy.session(precision="fp16", corrector="svrg", accumulate=3)
    seen: list[float] = []
    for name in ("refresh", "backward"):
        method = getattr(session.corrector, name)

        def spied(*passed: Any, scale: float, method: Any = method) -> Any:
            seen.append(scale)
            return method(*passed, scale=scale)

        monkeypatch.setattr(session.corrector, name, spied)
    session.scaler.update(256.0)
    toy.one_epoch(session)
    assert seen == pytest.approx([256, *[256 / 3] * 3, 256 * 16 / 24, 256 * 8 / 24])


@pytest.mark.parametrize("corrector", ["none", "svrg"])
def test_training_is_in_training_mode_whatever_an_observer_did(corrector: str) -> None:
    plain, meddled = (toy.session(corrector=corrector) for _ in range(2))
    toy.begin_epoch(plain)
    meddled.model.eval()
    toy.begin_epoch(meddled)
    for one, two in zip(plain.batches(), meddled.batches(), strict=True):
        plain.train_step(one)
        meddled.model.eval()
        meddled.train_step(two)
    states = [dict(session.model.state_dict()) for session in (plain, meddled)]
    assert toy.differences(*states) == []


def test_single_precision_has_no_scaler_state() -> None:
    session = toy.session()
    assert session.scaler.get_scale() == 1.0
    assert session.scaler.state_dict() == {}


def test_channels_last_changes_the_layout_and_hardly_the_numbers() -> None:
    changes = {"model": "small_cnn", "width": 0.5, "epochs": 1, "corrector": "svrg"}
    usual, other = toy.session(**changes), toy.session(channels_last=True, **changes)
    seen: list[bool] = []
    other.model.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    convolutions = [m.weight for m in other.model.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    left, right = toy.one_epoch(usual), toy.one_epoch(other)
    assert all(seen)
    assert seen
    assert right.train_loss == pytest.approx(left.train_loss, rel=1e-3)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)


def test_a_validation_split_is_held_back_and_scored() -> None:
    session = toy.session(validation=0.25, epochs=1)
    train, validation, test = session.images
    assert (len(train), len(validation), len(test)) == (54, 18, 40)
    assert torch.equal(train.images, toy.images().train.images[:54])
    record = toy.one_epoch(session)
    score = evaluate(session.model, build.test_loader(validation, session.run, CPU).epoch(0))
    assert record.validation_accuracy == score.accuracy
    assert record.validation_loss == score.loss
    assert record.validation_loss != record.test_loss
    assert record.data_passes == 1.0
    assert session.meter.forward_samples == 54
    without = toy.one_epoch(toy.session(epochs=1))
    assert (without.validation_loss, without.validation_accuracy) == (None, None)


def test_the_record_scores_the_test_images() -> None:
    session = toy.session(epochs=1)
    record = toy.one_epoch(session)
    score = evaluate(
        session.model, build.test_loader(session.images.test, session.run, CPU).epoch(0)
    )
    assert (record.test_loss, record.test_accuracy) == tuple(score)


def test_label_smoothing_is_in_the_loss_of_both_points() -> None:
    changes = {"label_smoothing": 0.2, **DESCENT}
    reference = toy.session(**changes)
    batch = next(reference.loader.epoch(0))
    expected = toy.gradient(reference, batch, label_smoothing=0.2)
    moved = toy.first_steps(toy.session(**changes), 1)[0][0]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, toy.gradient(reference, batch), rtol=1e-2)
    # At the snapshot old and new gradients are the same, so nothing but the mean is left.
    session = toy.session(corrector="svrg", **changes)
    toy.begin_epoch(session)
    full = toy.flat(session.corrector.full_gradient[n] for n, _ in session.model.named_parameters())
    before = toy.weights(session).clone()
    session.train_step(next(session.batches()))
    moved = (before - toy.weights(session)) / session.optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(moved, full, rtol=1e-3, atol=1e-5)


def test_a_setting_of_rewirings_without_rewirings_is_noted() -> None:
    run = with_setting(with_setting(Run(), "topology", "static"), "interval", 5)
    with pytest.warns(UserWarning, match="have no effect"):
        assert build.build_rewiring(run, total_steps=100) is None


def test_clipping_measures_the_active_weights_only() -> None:
    """Inactive weights have gradients too, but never move."""
    session = toy.session(clip_norm=1e-2, sparsity=0.9, topology="static")
    session.train_step(next(iter(session.batches())))
    masks = session.topology.masks
    named = session.model.named_parameters()
    moving = [p.grad * masks[n] if n in masks else p.grad for n, p in named]
    assert float(torch.nn.utils.get_total_norm(moving)) == pytest.approx(1e-2, rel=1e-3)


def test_a_short_training_rewires_now_and_then_and_not_at_every_step() -> None:
    rewiring = build.build_rewiring(Run(), total_steps=36)
    assert rewiring is not None
    assert rewiring.interval_steps == 10
