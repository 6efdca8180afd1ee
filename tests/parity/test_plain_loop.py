"""With a coefficient of 0 a corrected loop is the plain loop, bit for bit, for any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from equipoise.correction import (
    AgentRecursion,
    Constant,
    Corrector,
    FixedRecursion,
    GradientCache,
    GradientCorrector,
    LinearDecay,
    LossCovariance,
    MomentumCorrector,
    NoCorrection,
)

Loss = Callable[[Any], Tensor]
MakeCorrector = Callable[[nn.Module, Loss], Corrector[Any]]
EPOCHS = 3


class BusyZero:
    """A coefficient of 0 that does not say so beforehand: every refresh makes all its passes."""

    value, idle, needs_losses = 0.0, False, True

    def __init__(self) -> None:
        self.num_observations = 0

    def advance(self) -> None:
        pass

    def observe(self, current: Tensor, previous: Tensor, sizes: Tensor) -> None:
        self.num_observations += 1

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class ZeroAfterAll(BusyZero):
    """The same without losses, so that the very first refresh makes its pass already."""

    needs_losses = False


CORRECTORS: dict[str, MakeCorrector] = {
    "NoCorrection": NoCorrection,
    "MVR without memory": partial(MomentumCorrector, recursion=FixedRecursion(1.0)),
    "MVR of AGENT(0)": lambda m, f: MomentumCorrector(
        m, f, AgentRecursion(LossCovariance(scaling=0.0))
    ),
    "evaluated, cached": lambda m, f: GradientCorrector(
        m, f, ZeroAfterAll(), cache=GradientCache()
    ),
    "Constant(0)": partial(GradientCorrector, coefficient=Constant(0.0)),
    "LossCovariance(0)": lambda m, f: GradientCorrector(m, f, LossCovariance(scaling=0.0)),
    "LinearDecay(0)": lambda m, f: GradientCorrector(m, f, LinearDecay(0.0, EPOCHS)),
    "evaluated, with losses": lambda m, f: GradientCorrector(m, f, BusyZero()),
    "evaluated, without losses": lambda m, f: GradientCorrector(m, f, ZeroAfterAll()),
}
IDLE = [name for name in CORRECTORS if not name.startswith("evaluated")]


def _with_defaults(optimizer: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: optimizer(model.parameters())


def _for_matrices(optimizer: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: optimizer([p for p in model.parameters() if p.ndim == 2])


def _optimizers() -> dict[str, Callable[[nn.Module], Optimizer]]:
    """Every optimizer of this torch that takes dense gradients, and variants of SGD."""
    sgd = torch.optim.SGD
    table: dict[str, Callable[[nn.Module], Optimizer]] = {
        "SGD": lambda m: sgd(m.parameters(), lr=0.1),
        "SGD heavy-ball": lambda m: sgd(m.parameters(), lr=0.1, momentum=0.9, dampening=0.1),
        "SGD Nesterov": lambda m: sgd(
            m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        "SGD maximize": lambda m: sgd(m.parameters(), lr=0.01, maximize=True),
        "AdamW amsgrad": lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True),
        "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3),
    }
    matrices_only = {"Muon"}
    for name, value in sorted(vars(torch.optim).items()):
        is_optimizer = isinstance(value, type) and issubclass(value, Optimizer)
        if not is_optimizer or value in (Optimizer, torch.optim.SparseAdam) or name in table:
            continue
        if name in matrices_only:
            table[name] = _for_matrices(value)
        else:
            table[name] = _with_defaults(value)
    return table


OPTIMIZERS = _optimizers()


class Outcome(NamedTuple):
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random_state: Tensor
    losses: list[Tensor]


def build() -> tuple[nn.Module, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 16, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    data = TensorDataset(torch.randn(11, 1, 4, 4), torch.randint(3, (11,)))
    return model, DataLoader(data, batch_size=4, shuffle=True)  # the last batch has 3


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def plain_gradient(loss_fn: Loss, batch: Any) -> Tensor:
    loss = loss_fn(batch)
    torch.autograd.backward(loss)
    return loss.detach()


def step(optimizer: Any, gradient: Callable[[], Tensor]) -> Tensor:
    """One step, with a closure only for the optimizer that needs one."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        return gradient()

    if isinstance(optimizer, torch.optim.LBFGS):
        return torch.as_tensor(optimizer.step(closure))
    loss = closure()
    optimizer.step()
    return loss


def train(
    make_optimizer: Callable[[nn.Module], Optimizer], make_corrector: MakeCorrector | None
) -> Outcome:
    """A plain loop, or the same loop with the two calls of a corrector in it."""
    model, loader = build()
    optimizer = make_optimizer(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    loss_fn = partial(cross_entropy, model)
    corrector = None if make_corrector is None else make_corrector(model, loss_fn)
    losses = []
    for _ in range(EPOCHS):
        if corrector is not None:
            corrector.refresh(loader)
        for batch in loader:
            if corrector is None:
                losses.append(step(optimizer, partial(plain_gradient, loss_fn, batch)))
            else:
                losses.append(step(optimizer, partial(corrector.backward, batch)))
        scheduler.step()
    return Outcome(
        model.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state(), losses
    )


@cache
def plain(optimizer: str) -> Outcome:
    return train(OPTIMIZERS[optimizer], None)


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Paths at which two nested states differ in any bit."""
    if isinstance(a, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a, b):
            yield path
    elif isinstance(a, Mapping):
        if list(a) != list(b):
            yield f"{path}: keys"
        for key in a:
            yield from differences(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{path}: length"
        for i, (left, right) in enumerate(zip(a, b, strict=False)):
            yield from differences(left, right, f"{path}[{i}]")
    elif a != b:
        yield path


def test_the_table_has_the_optimizers_that_matter() -> None:
    expected = {"AdamW", "Adam", "RMSprop", "NAdam", "RAdam", "Adagrad", "Adadelta", "Adamax"}
    expected |= {"ASGD", "Rprop", "Adafactor", "Muon", "LBFGS", "SGD", "SGD Nesterov"}
    assert expected <= set(OPTIMIZERS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_plain_loop_itself_moves_and_is_finite(optimizer: str) -> None:
    model, _ = build()
    trained = plain(optimizer)
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, trained.model[k])]
    assert "5.weight" in moved  # a matrix, which every optimizer of the table is given
    assert all(bool(torch.isfinite(v).all()) for v in trained.model.values())


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_coefficient_of_zero_is_the_plain_loop(optimizer: str, corrector: str) -> None:
    corrected = train(OPTIMIZERS[optimizer], CORRECTORS[corrector])
    assert list(differences(plain(optimizer)._asdict(), corrected._asdict())) == []


def test_the_comparison_sees_a_correction() -> None:
    corrected = train(
        OPTIMIZERS["SGD"], lambda m, f: GradientCorrector(m, f, Constant(constant=1e-3))
    )
    differing = list(differences(plain("SGD")._asdict(), corrected._asdict()))
    assert ".model.0.weight" in differing
    assert ".random_state" not in differing


def test_the_busy_coefficients_do_make_their_passes() -> None:
    model, loader = build()
    coefficient = BusyZero()
    corrector = GradientCorrector(model, partial(cross_entropy, model), coefficient)
    for _ in range(2):
        corrector.refresh(loader)
    assert coefficient.num_observations == 1
    assert corrector.full_gradient.keys() == dict(model.named_parameters()).keys()
    corrector = GradientCorrector(model, partial(cross_entropy, model), ZeroAfterAll())
    corrector.refresh(loader)
    assert corrector.full_gradient.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("corrector", IDLE)
def test_an_idle_coefficient_does_not_touch_the_batches(corrector: str) -> None:
    class Untouchable:
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("the batches were iterated")

    def uncalled(batch: Any) -> Tensor:
        raise AssertionError("the loss was evaluated")

    made = CORRECTORS[corrector](build()[0], uncalled)
    for _ in range(EPOCHS):
        made.refresh(Untouchable())
    assert made.coefficient_value == 0.0


def test_the_first_epoch_of_loss_covariance_is_plain() -> None:
    outcomes: list[Any] = []
    for corrected in (False, True):
        model, loader = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        corrector = GradientCorrector(model, partial(cross_entropy, model))
        if corrected:
            corrector.refresh(loader)
        for batch in loader:
            optimizer.zero_grad()
            if corrected:
                corrector.backward(batch)
            else:
                plain_gradient(corrector.loss_fn, batch)
            optimizer.step()
        outcomes.append([model.state_dict(), torch.get_rng_state()])
    assert list(differences(*outcomes)) == []


@pytest.mark.parametrize("coefficient", [Constant(1.0), LossCovariance(), LinearDecay(0.5, 9)])
def test_a_corrected_epoch_leaves_the_buffers_and_random_stream_of_a_plain_one(
    coefficient: Any,
) -> None:
    """At a learning rate of 0 nothing but the corrector's own passes could make a difference."""
    still = partial(torch.optim.SGD, lr=0.0)

    def make_optimizer(model: nn.Module) -> Optimizer:
        return still(model.parameters())

    make = partial(GradientCorrector, coefficient=coefficient)
    plainly, corrected = train(make_optimizer, None), train(make_optimizer, make)
    assert list(differences(plainly._asdict(), corrected._asdict())) == []
    assert int(corrected.model["1.num_batches_tracked"]) == 3 * EPOCHS


@pytest.mark.parametrize("scale", [1.0, 0.25, 1024.0])
@pytest.mark.parametrize("corrector", CORRECTORS)
def test_a_scale_multiplies_the_plain_gradient(corrector: str, scale: float) -> None:
    gradients: list[Any] = []
    for corrected in (False, True):
        model, loader = build()
        loss_fn = partial(cross_entropy, model)
        batch = next(iter(loader))
        if corrected:
            CORRECTORS[corrector](model, loss_fn).backward(batch, scale=scale)
        else:
            torch.autograd.backward(loss_fn(batch) * scale)
        gradients.append([p.grad for p in model.parameters()])
    assert list(differences(*gradients)) == []


def test_a_plain_loop_under_autocast_is_the_same() -> None:
    outcomes: list[Any] = []
    for corrected in (False, True):
        model, loader = build()

        def loss_fn(batch: Any, model: nn.Module = model) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return cross_entropy(model, batch)

        optimizer = torch.optim.AdamW(model.parameters())
        corrector = GradientCorrector(model, loss_fn, BusyZero())
        for _ in range(EPOCHS):
            if corrected:
                corrector.refresh(loader)
            for batch in loader:
                optimizer.zero_grad()
                if corrected:
                    corrector.backward(batch)
                else:
                    plain_gradient(loss_fn, batch)
                optimizer.step()
        outcomes.append([model.state_dict(), torch.get_rng_state()])
    assert list(differences(*outcomes)) == []
