"""One corrected step: what is added to ``p.grad``, and what is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equipoise.correction import Constant, GradientCorrector, LinearDecay

Grads = dict[str, Tensor]


def build(*, dropout: float = 0.0, norm: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(4, 6)]
    layers += [nn.BatchNorm1d(6)] if norm else []
    layers += [nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1)]
    return nn.Sequential(*layers).double()


def draw(*sizes: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in sizes]


def mean_square(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).square().mean()


def take_gradients(model: nn.Module) -> Grads:
    """Gradients by name; afterwards the model has none."""
    taken = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def move(model: nn.Module, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def plain_gradient(model: nn.Module, x: Tensor) -> Grads:
    torch.autograd.backward(mean_square(model)(x))
    return take_gradients(model)


def combined(*terms: tuple[float, Grads]) -> Grads:
    names = terms[0][1]
    return {n: torch.stack([w * g[n] for w, g in terms]).sum(dim=0) for n in names}


def close(a: Grads, b: Grads, tolerance: float = 1e-12) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[n], b[n], rtol=tolerance, atol=tolerance) for n in a
    )


def refreshed(
    model: nn.Module, batches: list[Tensor], constant: float = 0.4
) -> GradientCorrector[Any]:
    corrector = GradientCorrector(model, mean_square(model), Constant(constant))
    corrector.refresh(batches)
    return corrector


@pytest.mark.parametrize("constant", [1.0, 0.4, -0.7])
def test_the_correction_is_the_formula(constant: float) -> None:
    model, batches = build(), draw(5, 5, 3)
    old_model = copy.deepcopy(model)
    corrector = refreshed(model, batches, constant)
    move(model)
    for x in batches:
        corrector.backward(x)
        expected = combined(
            (1.0, plain_gradient(copy.deepcopy(model), x)),
            (constant, corrector.full_gradient),
            (-constant, plain_gradient(old_model, x)),
        )
        assert close(take_gradients(model), expected)


def test_at_the_snapshot_the_gradient_is_a_mixture() -> None:
    model, batches = build(norm=True), draw(5, 5, 3)
    corrector = refreshed(model, batches, 0.4)
    for x in batches:
        expected = combined(
            (0.6, plain_gradient(copy.deepcopy(model), x)), (0.4, corrector.full_gradient)
        )
        corrector.backward(x)
        assert close(take_gradients(model), expected)


@pytest.mark.parametrize("norm", [False, True])
def test_dropout_is_the_same_in_both_passes(norm: bool) -> None:
    """At the snapshot the two gradients of a batch cancel, whatever the masks were."""
    model, batches = build(dropout=0.5, norm=norm), draw(5, 5, 3)
    corrector = refreshed(model, batches, 1.0)
    draws = []
    for x in batches * 2:
        draws.append(torch.get_rng_state())
        corrector.backward(x)
        assert close(take_gradients(model), corrector.full_gradient)
    assert not torch.equal(draws[0], draws[-1])


def test_the_random_stream_after_a_step_is_that_of_a_plain_step() -> None:
    model, (x,) = build(dropout=0.5), draw(5)
    corrector = refreshed(model, [x], 1.0)
    torch.manual_seed(7)
    mean_square(model)(x)
    expected = torch.get_rng_state()
    torch.manual_seed(7)
    corrector.backward(x)
    assert torch.equal(torch.get_rng_state(), expected)


def test_gradients_accumulate() -> None:
    model, batches = build(), draw(5, 3)
    corrector = refreshed(model, batches)
    move(model)
    separate = []
    for x in batches:
        corrector.backward(x)
        separate.append(take_gradients(model))
    for x in batches:
        corrector.backward(x)
    together = take_gradients(model)
    assert close(together, combined((1.0, separate[0]), (1.0, separate[1])))


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (5, 2, 1)])
def test_micro_batches_make_the_gradient_of_their_union(sizes: tuple[int, ...]) -> None:
    model, rest = build(), draw(8, 8, seed=3)
    parts = draw(*sizes)
    whole = torch.cat(parts)
    corrector = refreshed(model, [whole, *rest])
    move(model)
    corrector.backward(whole)
    expected = take_gradients(model)
    for part in parts:
        corrector.backward(part, scale=len(part) / len(whole))
    assert close(take_gradients(model), expected)


@pytest.mark.parametrize("scale", [1024.0, 0.25, 3.0, -1.0])
def test_a_scale_multiplies_the_corrected_gradient_and_not_the_loss(scale: float) -> None:
    model, batches = build(), draw(5, 3)
    corrector = refreshed(model, batches)
    move(model)
    plain_loss = corrector.backward(batches[0])
    expected = combined((scale, take_gradients(model)))
    scaled_loss = corrector.backward(batches[0], scale=scale)
    assert close(take_gradients(model), expected)
    assert torch.equal(plain_loss, scaled_loss)


def test_clipping_sees_the_corrected_gradient() -> None:
    model, batches = build(), draw(5, 3)
    corrector = refreshed(model, batches, 1.0)
    corrector.backward(batches[0])
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    full = nn.utils.get_total_norm(corrector.full_gradient.values())
    assert torch.allclose(norm, full, rtol=1e-12)
    clipped = combined((1e-3 / float(full), corrector.full_gradient))
    assert close(take_gradients(model), clipped, 1e-6)


def test_a_hook_on_the_accumulated_gradient_sees_the_raw_one() -> None:
    model, batches = build(), draw(5, 3)
    corrector = refreshed(model, batches)
    move(model)
    seen: Grads = {}
    for name, p in model.named_parameters():

        def remember(p: Tensor, name: str = name) -> None:
            assert p.grad is not None
            assert name not in seen, "the pass at the snapshot fired the hook"
            seen[name] = p.grad.clone()

        p.register_post_accumulate_grad_hook(remember)
    corrector.backward(batches[0])
    corrected = take_gradients(model)
    raw = plain_gradient(copy.deepcopy(model), batches[0])
    assert close(seen, raw)
    assert not close(corrected, raw, 1e-4)


def test_the_returned_loss_is_that_of_the_current_parameters() -> None:
    model, batches = build(norm=True), draw(5, 3)
    corrector = refreshed(model, batches)
    move(model)
    expected = mean_square(copy.deepcopy(model))(batches[0])
    loss = corrector.backward(batches[0])
    assert torch.equal(loss, expected.detach())
    assert not loss.requires_grad
    assert loss.shape == ()


def test_a_loss_with_one_element_is_returned_without_its_shape() -> None:
    model, (x,) = build(), draw(5)

    def loss_fn(x: Tensor) -> Any:
        return model(x).mean(dim=0)

    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    corrector.refresh([x])
    assert corrector.backward(x).shape == ()


def test_running_statistics_move_once_by_the_current_parameters() -> None:
    model, batches = build(norm=True), draw(5, 3)
    corrector = refreshed(model, batches)
    assert int(model[1].num_batches_tracked) == 0  # type: ignore[index]
    move(model)
    reference = copy.deepcopy(model)
    for i, x in enumerate(batches, start=1):
        corrector.backward(x)
        reference(x)
        assert int(model[1].num_batches_tracked) == i  # type: ignore[index]
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_frozen_batch_norm_stays_frozen_and_every_mode_stays() -> None:
    model, batches = build(norm=True, dropout=0.5), draw(5, 3)
    model[1].eval()  # type: ignore[index]
    modes = {n: m.training for n, m in model.named_modules()}
    buffers = [b.clone() for b in model.buffers()]
    corrector = refreshed(model, batches)
    corrector.backward(batches[0])
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_neither_the_snapshot_nor_the_full_gradient_follows_the_training() -> None:
    model, batches = build(), draw(5, 3)
    corrector = refreshed(model, batches)
    snapshot = {n: t.clone() for n, t in corrector.snapshot.items()}
    full = {n: t.clone() for n, t in corrector.full_gradient.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x in batches * 3:
        optimizer.zero_grad(set_to_none=False)
        corrector.backward(x)
        optimizer.step()
    assert close(corrector.snapshot, snapshot, 0.0)
    assert close(corrector.full_gradient, full, 0.0)
    assert not close(corrector.snapshot, {n: p.detach() for n, p in model.named_parameters()})


def test_before_the_first_refresh_a_step_is_plain() -> None:
    model, batches = build(), draw(5)
    corrector = GradientCorrector(model, mean_square(model), Constant(1.0))
    assert corrector.coefficient_value == 0.0
    corrector.backward(batches[0])
    assert close(take_gradients(model), plain_gradient(model, batches[0]), 0.0)


def test_when_the_coefficient_ends_the_snapshot_is_let_go() -> None:
    model, batches = build(), draw(5, 3)
    corrector = GradientCorrector(model, mean_square(model), LinearDecay(0.5, 2))
    corrector.refresh(batches)
    assert corrector.coefficient_value == 0.5
    assert corrector.snapshot
    corrector.refresh(batches)
    assert corrector.coefficient_value == 0.0
    assert corrector.snapshot == corrector.full_gradient == {}
    corrector.backward(batches[0])
    assert close(take_gradients(model), plain_gradient(model, batches[0]), 0.0)


def test_weight_decay_is_outside_the_correction() -> None:
    """Where every gradient is 0 the decay is all that is left, and no coefficient changes it."""
    outcomes = []
    for constant in (0.0, 1.0, 0.3):
        model, batches = build(), draw(5, 3)

        def loss_fn(x: Tensor, model: nn.Module = model) -> Any:
            return 0.0 * model(x).sum()

        corrector = GradientCorrector(model, loss_fn, Constant(constant))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        corrector.refresh(batches)
        for x in batches:
            optimizer.zero_grad()
            corrector.backward(x)
            optimizer.step()
        outcomes.append({n: p.detach() for n, p in model.named_parameters()})
    assert close(outcomes[0], outcomes[1], 0.0)
    assert close(outcomes[0], outcomes[2], 0.0)
    assert not close(outcomes[0], dict(build().named_parameters()))


def test_a_loss_may_call_the_model_more_than_once() -> None:
    """As an adversarial objective does: clean and perturbed, with the statistics of each."""
    model, batches = build(norm=True), draw(5, 4)

    def loss_fn(x: Tensor) -> Any:
        return (model(x) - model(x + 0.1)).square().mean() + model(x).square().mean()

    old_model = copy.deepcopy(model)
    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    corrector.refresh(batches)
    move(model)
    corrector.backward(batches[0])
    corrected = take_gradients(model)
    assert int(model[1].num_batches_tracked) == 3  # type: ignore[index]

    def gradient_of(other: nn.Module) -> Grads:
        x = batches[0]
        loss = (other(x) - other(x + 0.1)).square().mean() + other(x).square().mean()
        torch.autograd.backward(loss)
        return take_gradients(other)

    expected = combined(
        (1.0, gradient_of(copy.deepcopy(model))),
        (1.0, corrector.full_gradient),
        (-1.0, gradient_of(old_model)),
    )
    assert close(corrected, expected)


def test_activation_checkpoints_are_evaluated_at_the_snapshot() -> None:
    """Their forward pass runs again during backward, which must still be at the snapshot."""

    class Checkpointed(nn.Module):
        def __init__(self, *, wanted: bool) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
            self.last = nn.Linear(8, 1)
            self.wanted = wanted

        def forward(self, x: Tensor) -> Tensor:
            hidden = (
                checkpoint(self.first, x, use_reentrant=False) if self.wanted else self.first(x)
            )
            return torch.as_tensor(self.last(hidden))

    def gradients(*, wanted: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = Checkpointed(wanted=wanted)
        batches = list(torch.randn(3, 5, 4))
        corrector: GradientCorrector[Tensor]
        corrector = GradientCorrector(model, lambda x: model(x).square().mean(), Constant(1.0))
        corrector.refresh(batches)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        corrector.backward(batches[0])
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for plain, checkpointed in zip(gradients(wanted=False), gradients(wanted=True), strict=True):
        torch.testing.assert_close(checkpointed, plain)
