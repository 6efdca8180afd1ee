"""Networks for the tests of the conversion, and what those tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import Topology, to_engine
from equipoise.engine import convert
from equipoise.engine.choice import Memory, Timed
from equipoise.engine.convolution import Geometry, Way
from equipoise.engine.layers import SparseLayer
from equipoise.engine.library import VARIABLE

toy: Any = import_module("tests.unit.training.toy")

IMAGES = (6, 3, 8, 8)


@contextmanager
def settled(folder: Path) -> Iterator[None]:
    """One thread, a memory of its own, and nothing is timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment, toy.untimed():
        environment.setenv("XDG_CACHE_HOME", str(folder))
        yield
    torch.set_num_threads(before)


def cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


class Block(nn.Module):
    """A transformer block as it is written by hand."""

    def __init__(self, size: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        parts = (
            self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, size))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Shifted(nn.Sequential):
    """Has parameters and children."""

    def __init__(self, *children: nn.Module) -> None:
        super().__init__(*children)
        self.shift = nn.Parameter(torch.tensor(0.5))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        result: Tensor = super().forward(input) + self.shift
        return result


class Nested(nn.Module):
    """Modules in modules, a parameter and a buffer of the whole, and names that might clash."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.shell = Shifted(cnn()[:6], nn.Flatten())
        self._programs = nn.ModuleDict({"_dense": nn.Linear(96, 8)})
        self.shift = nn.Parameter(torch.full((8,), 0.25))
        self.register_buffer("scale", torch.tensor(2.0))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self._programs["_dense"](self.shell(x))
        return self.head(torch.relu(x + self.shift) * self.scale)


class Undecided(nn.Module):
    """Its code depends on what it sees, so it cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cnn()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.body(x) * scale if x.sum() > 0 else self.body(-x) * scale


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sequential": (cnn, IMAGES),
    "mlp": (mlp, (6, 12)),
    "nested": (Nested, IMAGES),
    "transformer block": (Block, (4, 5, 12)),
    "not followed": (Undecided, IMAGES),
}


def convert_it(
    model: nn.Module, *inputs: Tensor, sparsity: float = 0.7, **options: Any
) -> tuple[nn.Module, Topology]:
    topology = Topology(model, sparsity=sparsity, **options)
    example = inputs[0] if len(inputs) == 1 else inputs
    return to_engine(model, topology, example, engine="sparse"), topology


def sparse_layers(network: nn.Module) -> dict[str, SparseLayer]:
    return {path: m for path, m in network.named_modules() if isinstance(m, SparseLayer)}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def assert_same_gradients(network: nn.Module, model: nn.Module) -> None:
    expected = dict(model.named_parameters())
    for name, parameter in network.named_parameters():
        if name in expected:
            wanted: Any = expected[name].grad
        else:
            index = network.get_buffer(name.replace("values", "index"))
            weight = expected[name.replace("values", "weight")].grad
            wanted = None if weight is None else weight.flatten()[index]
        assert (parameter.grad is None) == (wanted is None), name
        if wanted is not None:
            assert parameter.grad is not None
            close(parameter.grad, wanted)


@contextmanager
def only_csr(*, layer: float = 2.0, step: float = 2.0, has_csr: bool = True) -> Iterator[None]:
    """There are no kernels, nothing is timed, and CSR makes all so many times as fast."""

    def choose(geometry: Geometry, positions: Tensor, batch: int, memory: Memory) -> Any:
        del geometry, positions, batch, memory
        return Timed(Way(csr=True), 1.0 / layer, 1.0) if has_csr else None

    with pytest.MonkeyPatch.context() as changed:
        changed.setenv(VARIABLE, "off")
        changed.setattr(convert, "choose_csr", choose)
        changed.setattr(convert, "too_small", lambda *passed: None)
        changed.setattr(convert, "speed_up", lambda *passed: step)
        yield
