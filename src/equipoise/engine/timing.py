"""How long steps take on this machine, and what that says about the engine; remembered."""

from __future__ import annotations

import hashlib
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equipoise.engine.checks import batch_of, few_samples, modes_kept, tensors_in
from equipoise.engine.choice import Memory
from equipoise.engine.network import ways_of
from equipoise.points import preserved, trainable, value_and_gradient_at

if TYPE_CHECKING:
    from equipoise.engine.convert import Conversion

_WORTH_SECONDS = 0.005  # a step that is shorter than this has nothing to gain
_DECISION_SAMPLES = 64


def speed_up(
    model: nn.Module, conversion: Conversion, inputs: tuple[Any, ...], memory: Memory
) -> float:
    """How many times faster a training step is converted than with masks, on this machine."""
    batch = min(batch_of(inputs), _DECISION_SAMPLES)
    converted = ways_of(conversion.network).keys()
    layers = [
        (c.path, c.shape, round(4 * math.log2(max(c.density, 1e-9))), c.path in converted)
        for c in conversion.layers
    ]
    facts = (layers, conversion.untraced)
    key = _key("step", facts, inputs, batch)
    known = memory.number(key)
    if known is not None:
        return known
    few = few_samples(inputs, batch)
    plain, engine = math.inf, math.inf
    for _ in range(3):  # in turns, so that both meet the same disturbances
        plain = min(plain, step_seconds(model, few))
        engine = min(engine, step_seconds(conversion.network, few))
    return memory.keep(key, plain / engine)


def step_seconds(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Seconds of one forward and backward pass in training mode; nothing of the model changes."""
    point = {name: p.detach() for name, p in trainable(model).items()}
    with modes_kept(model), preserved(torch.device("cpu")):
        model.train()
        start = time.perf_counter()
        value_and_gradient_at(model, point, lambda: _scalar(model(*inputs)))
        return time.perf_counter() - start


def too_small(model: nn.Module, inputs: tuple[Any, ...], memory: Memory) -> str | None:
    """Whether steps are so short that nothing can be gained; remembered like all that is timed."""
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    key = _key("masked", shapes, inputs, batch_of(inputs))
    seconds = memory.number(key)
    if seconds is None:
        seconds = memory.keep(key, min(step_seconds(model, inputs) for _ in range(2)))
    if seconds >= _WORTH_SECONDS:
        return None
    return f"a step takes {1e3 * seconds:.1f} ms, too little to gain from"


def _key(kind: str, facts: Any, inputs: tuple[Any, ...], batch: int) -> str:
    """Under what a time of a whole step is remembered."""
    shapes = [tuple(x.shape[1:]) for x in inputs if isinstance(x, Tensor)]
    told = repr((facts, shapes, batch))
    return f"{kind}/{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _scalar(output: Any) -> Tensor:
    """Any number that depends on everything that a network returns."""
    means = [part.float().mean() for part in tensors_in(output) if part.is_floating_point()]
    if not means:
        raise ValueError(
            f"the network returns a {type(output).__name__} without numbers to train on, so its "
            "steps cannot be timed; return tensors, or leave the engine out."
        )
    return torch.stack(means).mean()
