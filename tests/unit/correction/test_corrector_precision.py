"""Mixed precision, loss scaling and other number formats."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.correction import Constant, Corrector, GradientCorrector, NoCorrection


def draw(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 4, generator=generator).to(dtype) for n in sizes]


def build(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def move(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator).to(p.dtype))


def square_under_autocast(model: nn.Module, dtype: torch.dtype) -> Any:
    def loss_fn(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            prediction = model(x)
        assert prediction.dtype == dtype
        loss: Tensor = prediction.float().square().mean()
        return loss

    return loss_fn


def gradients(model: nn.Module) -> dict[str, Tensor]:
    taken = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


@pytest.mark.parametrize("scale", [1024.0, 1000.0, 1 / 3])
def test_a_scaled_step_that_is_unscaled_is_the_step(scale: float) -> None:
    model, batches = build(), draw(8, 8, 3)
    corrector: GradientCorrector[Tensor]
    corrector = GradientCorrector(model, lambda x: model(x).square().mean(), Constant(0.7))
    corrector.refresh(batches)
    plain_full = corrector.full_gradient
    corrector.refresh(batches, scale=scale)
    for n, t in corrector.full_gradient.items():
        torch.testing.assert_close(t, plain_full[n], rtol=1e-5, atol=1e-6)
    move(model)
    corrector.backward(batches[0])
    plain = gradients(model)
    corrector.backward(batches[0], scale=scale)
    for n, t in gradients(model).items():
        torch.testing.assert_close(t / scale, plain[n], rtol=1e-5, atol=1e-6)


def test_a_power_of_two_changes_no_bit() -> None:
    model, batches = build(), draw(8, 8, 3)
    corrector = GradientCorrector(
        model, square_under_autocast(model, torch.bfloat16), Constant(0.7)
    )
    corrector.refresh(batches)
    plain_full = corrector.full_gradient
    corrector.refresh(batches, scale=1024.0)
    assert all(torch.equal(t, plain_full[n]) for n, t in corrector.full_gradient.items())
    move(model)
    corrector.backward(batches[0])
    plain = gradients(model)
    corrector.backward(batches[0], scale=1024.0)
    assert all(torch.equal(t / 1024.0, plain[n]) for n, t in gradients(model).items())


def test_a_loss_scale_saves_a_half_precision_full_gradient_from_underflow() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float16)

    def loss_fn(x: Tensor) -> Any:
        return model(x).float().mean() * 1e-9  # float16 ends at 6e-8

    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    batches = [torch.full((4, 1), v, dtype=torch.float16) for v in (1.0, 2.0)]
    corrector.refresh(batches)
    assert float(corrector.full_gradient["weight"]) == 0.0
    corrector.refresh(batches, scale=2.0**16)
    assert float(corrector.full_gradient["weight"]) == pytest.approx(1.5e-9, rel=1e-2)
    corrector.backward(batches[0], scale=2.0**16)
    assert model.weight.grad is not None
    assert float(model.weight.grad) / 2.0**16 == pytest.approx(1.5e-9, rel=1e-2)


def test_an_overflow_in_the_full_gradient_is_seen() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float16)
    corrector: GradientCorrector[Tensor]
    corrector = GradientCorrector(model, lambda x: 1000 * model(x).float().mean(), Constant(1.0))
    with pytest.warns(RuntimeWarning, match="lower the loss scale"):
        corrector.refresh([torch.full((4, 1), 100.0, dtype=torch.float16)], scale=2.0**16)
    assert corrector.coefficient_value == 0.0


def test_bfloat16_parameters_have_a_single_precision_full_gradient() -> None:
    """Summed in bfloat16, 300 equal gradients would stall at 256 times the first."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    corrector: GradientCorrector[Tensor]
    corrector = GradientCorrector(model, lambda x: model(x).mean(), Constant(1.0))
    corrector.refresh([torch.ones(1, 1, dtype=torch.bfloat16)] * 600)
    full = corrector.full_gradient["weight"]
    assert full.dtype == torch.float32
    assert float(full) == 1.0
    assert corrector.snapshot["weight"].dtype == torch.bfloat16
    corrector.backward(torch.full((1, 1), 3.0, dtype=torch.bfloat16))
    assert model.weight.grad is not None
    assert model.weight.grad.dtype == torch.bfloat16
    assert float(model.weight.grad) == 1.0


def test_double_precision_stays_double() -> None:
    model, batches = build(torch.float64), draw(5, 3, dtype=torch.float64)
    corrector: GradientCorrector[Tensor]
    corrector = GradientCorrector(model, lambda x: model(x).square().mean(), Constant(1.0))
    corrector.refresh(batches)
    corrector.backward(batches[0])
    for n, grad in gradients(model).items():
        assert grad.dtype == corrector.full_gradient[n].dtype == torch.float64
        torch.testing.assert_close(grad, corrector.full_gradient[n], rtol=1e-13, atol=1e-15)


def test_layers_of_different_precision_in_one_model() -> None:
    model = build()
    model[2].double()

    def loss_fn(x: Tensor) -> Any:
        return model[2](model[1](model[0](x)).double()).square().mean()

    batches = draw(5, 3)
    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    corrector.refresh(batches)
    corrector.backward(batches[0])
    for n, grad in gradients(model).items():
        torch.testing.assert_close(grad, corrector.full_gradient[n], rtol=1e-5, atol=1e-6)


def train_under_scaler(
    corrector: Corrector[Any], model: nn.Module, batches: list[Any], epochs: int
) -> list[float]:
    """The loop of mixed-precision training, with the corrector in the place of backward."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    losses = []
    for _ in range(epochs):
        scaler.scale(torch.ones(()))  # the scaler makes its scale when it is first used
        corrector.refresh(batches, scale=scaler.get_scale())
        for batch in batches:
            optimizer.zero_grad()
            losses.append(float(corrector.backward(batch, scale=scaler.get_scale())))
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() > 1024.0
    return losses


def regression(model: nn.Module) -> Any:
    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.mse_loss(model(batch[0]).float(), batch[1])

    return loss_fn


@pytest.mark.parametrize("constant", [None, 0.1, 1.0])
def test_a_loss_scaler_trains(constant: float | None) -> None:
    model = build()
    batches = [(x, x.sum(dim=1, keepdim=True)) for x in draw(8, 8, 8, 8)]
    loss_fn = regression(model)
    corrector: Corrector[Any]
    if constant is None:
        corrector = NoCorrection(model, loss_fn)
    else:
        corrector = GradientCorrector(model, loss_fn, Constant(constant))
    losses = train_under_scaler(corrector, model, batches, epochs=10)
    assert sum(losses[-4:]) < 0.1 * sum(losses[:4])


def test_a_new_gradient_that_is_infinite_makes_the_scaler_skip_the_step() -> None:
    model, batches = build(), draw(8, 8, 8)
    calls = iter(range(100))
    overflow_at = 3 + 2 * 1  # three calls of the refresh, two of the first step: the second step

    def loss_fn(x: Tensor) -> Any:
        loss = model(x).square().mean()
        return loss * math.inf if next(calls) == overflow_at else loss

    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    corrector.refresh(batches)
    moved, scales = [], []
    for x in batches:
        before = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        corrector.backward(x, scale=scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        moved.append(any(not torch.equal(v, before[k]) for k, v in model.state_dict().items()))
        scales.append(scaler.get_scale())
    assert moved == [True, False, True]
    assert scales == [1024.0, 512.0, 512.0]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_an_overflow_of_both_passes_is_left_to_the_scaler() -> None:
    """As a loss scale that is too large makes it happen: no warning, an infinite gradient."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float16)
    x = torch.full((4, 1), 100.0, dtype=torch.float16)
    corrector: GradientCorrector[Tensor]
    corrector = GradientCorrector(model, lambda x: model(x).float().mean(), Constant(1.0))
    corrector.refresh([x])
    corrector.backward(x, scale=2.0**16)
    assert model.weight.grad is not None
    assert not torch.isfinite(model.weight.grad)


def test_a_refresh_under_autocast_does_not_collect_casts_of_every_batch() -> None:
    model, batches = build(), draw(8, 8, 8)
    seen = []

    def loss_fn(x: Tensor) -> Any:
        seen.append(weakref.ref(model[0].weight))
        return model(x).float().square().mean()

    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        corrector.refresh(batches)
        corrector.backward(batches[0])
        gc.collect()
        alive = [weight() is not None for weight in seen]
    assert alive == [False, False, False, True, False]  # the one is the model's own


def test_the_whole_step_may_be_under_autocast() -> None:
    """The casts that autocast remembers belong to one set of parameters, not to both."""
    model, batches = build(), draw(8, 8)

    def loss_fn(x: Tensor) -> Any:
        return model(x).float().square().mean()

    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    inside = GradientCorrector(model, square_under_autocast(model, torch.bfloat16), Constant(1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        corrector.refresh(batches)
    inside.refresh(batches)
    move(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        corrector.backward(batches[0])
    whole = gradients(model)
    inside.backward(batches[0])
    assert all(torch.equal(t, whole[n]) for n, t in gradients(model).items())


def test_a_refresh_whose_loss_scale_overflows_goes_on_at_a_smaller_one() -> None:
    """Nothing skips a batch of a refresh, as a gradient scaler skips a step."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float16)
    batches = [torch.full((4, 1), value, dtype=torch.float16) for value in (100.0, 50.0)]
    corrector: GradientCorrector[Tensor]
    corrector = GradientCorrector(model, lambda x: model(x).float().mean(), Constant(1.0))
    corrector.refresh(batches, scale=2.0**16)
    assert corrector.full_gradient["weight"].item() == pytest.approx(75.0, rel=1e-3)
