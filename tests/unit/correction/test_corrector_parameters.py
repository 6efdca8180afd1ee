"""Frozen, tied, unused, empty and sparse parameters, and models of unusual build."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from equipoise.correction import (
    Constant,
    Corrector,
    GradientCorrector,
    LossCovariance,
    NoCorrection,
)

Grads = dict[str, Tensor]
Loss = Callable[[nn.Module, Any], Any]


def move(model: nn.Module, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in filter(lambda p: p.requires_grad, model.parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def gradient_of(model: nn.Module, loss: Loss, batch: Any) -> Grads:
    other = copy.deepcopy(model)
    other.zero_grad()
    torch.autograd.backward(loss(other, batch))
    return {n: p.grad for n, p in other.named_parameters() if p.grad is not None}


def take_gradients(model: nn.Module) -> Grads:
    taken = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def close(a: Grads, b: Grads, tolerance: float = 1e-12) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[n], b[n], rtol=tolerance, atol=tolerance) for n in a
    )


def mean(gradients: list[Grads]) -> Grads:
    """Mean over equal batches; where a batch does not use a parameter its gradient is 0."""
    names = {n: t for g in gradients for n, t in g.items()}
    zero = {n: torch.zeros_like(t) for n, t in names.items()}
    return {n: sum((g.get(n, zero[n]) for g in gradients), zero[n]) / len(gradients) for n in zero}


def correct(model: nn.Module, loss: Loss, constant: float) -> GradientCorrector[Any]:
    return GradientCorrector(model, lambda batch: loss(model, batch), Constant(constant))


def assert_unbiased(model: nn.Module, loss: Loss, batches: list[Any], constant: float) -> None:
    """Over the batches of the refresh the corrected gradients average to the plain ones."""
    corrector = correct(model, loss, constant)
    corrector.refresh(batches)
    move(model)
    plain = [gradient_of(model, loss, batch) for batch in batches]
    corrected = []
    for batch in batches:
        corrector.backward(batch)
        corrected.append(take_gradients(model))
    assert close(mean(corrected), mean(plain))
    assert not all(close(c, p, 1e-6) for c, p in zip(corrected, plain, strict=True))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.mixing = nn.Linear(3, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.output(torch.tanh(self.mixing(self.embedding(tokens))))


def next_token(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:-1]), tokens[1:])


class Heads(nn.Module):
    """A trunk with three heads, of which a batch names one; the last is never named."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x: Tensor, head: int) -> Any:
        return self.heads.get_submodule(str(head))(torch.tanh(self.trunk(x)))


def headed(model: nn.Module, batch: tuple[Tensor, int]) -> Any:
    return model(*batch).square().mean()


def mean_square(model: nn.Module, x: Tensor) -> Any:
    return model(x).square().mean()


def draw(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in sizes]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()


@pytest.mark.parametrize("constant", [1.0, 0.3])
def test_tied_parameters_are_corrected_once(constant: float) -> None:
    torch.manual_seed(0)
    model = Tied().double()
    batches = [torch.randint(5, (9,)) for _ in range(3)]
    assert_unbiased(model, next_token, batches, constant)


def test_a_tied_parameter_is_at_the_snapshot_under_both_names() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    batches = [torch.randint(5, (9,)) for _ in range(3)]
    corrector = correct(model, next_token, 1.0)
    corrector.refresh(batches)
    assert sorted(corrector.snapshot) == ["embedding.weight", "mixing.bias", "mixing.weight"]
    old_model = copy.deepcopy(model)
    move(model)
    new = gradient_of(model, next_token, batches[0])
    old = gradient_of(old_model, next_token, batches[0])
    corrector.backward(batches[0])
    expected = {n: new[n] + corrector.full_gradient[n] - old[n] for n in new}
    assert close(take_gradients(model), expected)
    assert model.output.weight is model.embedding.weight


def test_a_parameter_that_is_never_used_keeps_no_gradient() -> None:
    torch.manual_seed(0)
    model = Heads().double()
    corrector = correct(model, headed, 1.0)
    batches = [(x, i % 2) for i, x in enumerate(draw(5, 5, 5, 5))]
    corrector.refresh(batches)
    corrector.backward(batches[0])
    assert model.heads[2].weight.grad is None
    assert "heads.2.weight" not in corrector.full_gradient
    assert model.heads[1].weight.grad is not None


@pytest.mark.parametrize("constant", [1.0, 0.3])
def test_parameters_that_only_some_batches_use_are_unbiased(constant: float) -> None:
    torch.manual_seed(0)
    batches = [(x, int(i == 0)) for i, x in enumerate(draw(5, 5, 5, 5))]
    assert_unbiased(Heads().double(), headed, batches, constant)


def test_a_correction_without_a_new_gradient_is_no_alias_of_the_full_gradient() -> None:
    torch.manual_seed(0)
    model = Heads().double()
    corrector = correct(model, headed, 1.0)
    batches = [(x, i % 2) for i, x in enumerate(draw(5, 5))]
    corrector.refresh(batches)
    full = corrector.full_gradient["heads.1.weight"].clone()
    corrector.backward(batches[0])
    grad = model.heads[1].weight.grad
    assert torch.equal(grad, full)  # type: ignore[arg-type]
    model.zero_grad(set_to_none=False)
    assert torch.equal(corrector.full_gradient["heads.1.weight"], full)


def test_a_parameter_that_no_reference_batch_used_is_left_uncorrected() -> None:
    torch.manual_seed(0)
    model = Heads().double()
    corrector = correct(model, headed, 1.0)
    (x,) = draw(5)
    corrector.refresh([(x, 0)])
    move(model)
    raw = gradient_of(model, headed, (x, 2))
    corrector.backward((x, 2))
    grads = take_gradients(model)
    assert torch.equal(grads["heads.2.weight"], raw["heads.2.weight"])
    assert not torch.allclose(grads["trunk.weight"], raw["trunk.weight"])


def test_frozen_parameters_are_left_alone() -> None:
    model, batches = small(), draw(5, 5, 5)
    weight = model.get_parameter("0.weight").requires_grad_(False)
    frozen = weight.clone()
    assert_unbiased(model, mean_square, batches, 0.7)
    assert torch.equal(weight, frozen)
    corrector = correct(model, mean_square, 1.0)
    corrector.refresh(batches)
    assert set(corrector.snapshot) == {"0.bias", "2.weight", "2.bias"}
    corrector.backward(batches[0])
    assert model[0].weight.grad is None


def test_a_parameter_that_is_frozen_after_the_refresh() -> None:
    """It gets no gradient; the others are corrected with it at the snapshot, as g~ was."""
    model, batches = small(), draw(5, 5, 5)
    corrector = correct(model, mean_square, 1.0)
    corrector.refresh(batches)
    old_model = copy.deepcopy(model)
    move(model)
    model[0].weight.requires_grad_(False)
    new = gradient_of(model, mean_square, batches[0])
    old = gradient_of(old_model, mean_square, batches[0])
    corrector.backward(batches[0])
    assert "0.weight" not in new
    expected = {n: new[n] + corrector.full_gradient[n] - old[n] for n in new}
    assert close(take_gradients(model), expected)


def test_a_parameter_that_is_thawed_after_the_refresh_is_plain_until_the_next() -> None:
    model, batches = small(), draw(5, 5, 5)
    model[2].requires_grad_(False)
    corrector = correct(model, mean_square, 1.0)
    corrector.refresh(batches)
    model[2].requires_grad_(True)
    raw = gradient_of(model, mean_square, batches[0])
    corrector.backward(batches[0])
    grads = take_gradients(model)
    assert torch.equal(grads["2.weight"], raw["2.weight"])
    assert close({"0.weight": grads["0.weight"]}, {"0.weight": corrector.full_gradient["0.weight"]})
    corrector.refresh(batches)
    corrector.backward(batches[0])
    assert close(take_gradients(model), corrector.full_gradient)


def test_agent_goes_on_when_a_parameter_is_thawed_between_refreshes() -> None:
    model, batches = small(), draw(5, 6, 7)
    model[2].requires_grad_(False)
    corrector: GradientCorrector[Any]
    corrector = GradientCorrector(model, lambda x: mean_square(model, x), LossCovariance())
    corrector.refresh(batches)
    model[2].requires_grad_(True)
    move(model)
    corrector.refresh(batches)
    assert set(corrector.full_gradient) == {n for n, _ in model.named_parameters()}
    assert corrector.coefficient_value != 0.0


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    model, batches = small().requires_grad_(False), draw(5)
    corrector = correct(model, mean_square, 1.0)
    with pytest.raises(ValueError, match="does not depend on the model's trainable parameters"):
        corrector.refresh(batches)
    with pytest.raises(ValueError, match="loss without a gradient"):
        corrector.backward(batches[0])


def test_parameters_without_elements() -> None:
    class Hollow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)
            self.none = nn.Parameter(torch.zeros(0, 4))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Any:
            return self.layer(x) * self.scale + F.linear(x, self.none).sum(dim=1, keepdim=True)

    torch.manual_seed(0)
    model, batches = Hollow().double(), draw(5, 5, 5)
    assert_unbiased(model, mean_square, batches, 0.7)
    corrector = correct(model, mean_square, 1.0)
    corrector.refresh(batches)
    corrector.backward(batches[0])
    assert model.none.grad is not None
    assert model.none.grad.shape == (0, 4)


class Bag(nn.Module):
    """Embeds integers sparsely, and takes floats as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 2, sparse=True)
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x if x.is_floating_point() else self.embedding(x))


def test_a_sparse_gradient_is_an_error_that_names_the_parameter() -> None:
    model = Bag()
    corrector = correct(model, mean_square, 1.0)
    with pytest.raises(ValueError, match=r"gradient of embedding\.weight is a sparse tensor"):
        corrector.refresh([torch.tensor([0, 1])])
    corrector.refresh([torch.ones(3, 2)])
    with pytest.raises(ValueError, match=r"gradient of embedding\.weight is a sparse tensor"):
        corrector.backward(torch.tensor([0, 1]))


def test_sparse_gradients_pass_where_there_is_no_correction() -> None:
    model, x = Bag(), torch.tensor([0, 1])
    without: Corrector[Any] = NoCorrection(model, lambda x: mean_square(model, x))
    for plain in (without, correct(model, mean_square, 0.0)):
        plain.refresh([x])
        plain.backward(x)
        grad = model.embedding.weight.grad
        assert grad is not None
        assert grad.is_sparse
        model.zero_grad()


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 1)),
        lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 1)),
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 2)),
            nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True),
        ),
    ],
    ids=["weight norm", "layer norm", "attention"],
)
def test_other_layers_are_unbiased(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert_unbiased(build().double(), mean_square, draw(5, 5, 5), 0.7)


def test_a_recurrent_layer_is_unbiased() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(2, 3, batch_first=True)
            self.head = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.lstm(x.reshape(-1, 2, 2))[0])

    torch.manual_seed(0)
    assert_unbiased(Recurrent().double(), mean_square, draw(5, 5, 5), 0.7)


def test_parameters_outside_the_model_get_their_plain_gradient() -> None:
    model, batches = small(), draw(5, 5)
    temperature = nn.Parameter(torch.ones((), dtype=torch.float64))

    def loss(model: nn.Module, x: Tensor) -> Any:
        return mean_square(model, x) * temperature

    corrector = correct(model, loss, 1.0)
    corrector.refresh(batches)
    assert temperature.grad is None
    corrector.backward(batches[0])
    expected = mean_square(model, batches[0]).detach()
    assert torch.allclose(temperature.grad, expected)  # type: ignore[arg-type]


def test_a_part_of_a_model_may_be_corrected() -> None:
    model, batches = small(), draw(5, 5, 5)
    part = model[0]
    corrector: GradientCorrector[Any]
    corrector = GradientCorrector(part, lambda x: mean_square(model, x), Constant(1.0))
    corrector.refresh(batches)
    assert set(corrector.full_gradient) == {"weight", "bias"}
    raw = gradient_of(model, mean_square, batches[0])
    corrector.backward(batches[0])
    grads = take_gradients(model)
    assert torch.allclose(grads["0.weight"], corrector.full_gradient["weight"], rtol=1e-12)
    assert torch.equal(grads["2.weight"], raw["2.weight"])
