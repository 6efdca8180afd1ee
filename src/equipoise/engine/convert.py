"""From a masked network to one that computes its active weights only."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from equipoise.engine.choice import Memory, Timed, choose_way, machine_memory
from equipoise.engine.layers import (
    Dense,
    SparseLayer,
    compact_layer,
    geometry_of,
    unsupported_because,
)
from equipoise.engine.library import unavailable_because
from equipoise.engine.maps import num_threads
from equipoise.engine.network import EngineNetwork, rebuilt
from equipoise.engine.program import dense_way
from equipoise.engine.tracing import UntraceableError, is_watched, layers_used, trace
from equipoise.points import preserved, trainable, value_and_gradient_at
from equipoise.topology import Topology
from equipoise.topology.compact_weight import CompactWeight
from equipoise.topology.masked_weight import MaskedWeight
from equipoise.topology.store import Store

Inputs: TypeAlias = Tensor | tuple[Any, ...]

_WORTH_SECONDS = 0.005  # a step that is shorter than this has nothing to gain
_LEAST_GAIN = 1.02
_DECISION_SAMPLES = 64


@dataclass(frozen=True)
class LayerChoice:
    """What becomes of one layer.

    Args:
        path: Of the layer in the network.
        shape: Of its weight.
        density: Share of its weights that is active.
        timed: The fastest way found; None if the kernels cannot run it.
        reason: Why torch runs it with its dense weight; None if the kernels run it.
    """

    path: str
    shape: tuple[int, ...]
    density: float
    timed: Timed | None
    reason: str | None


@dataclass(frozen=True)
class Conversion:
    """A network prepared for the kernels, beside the one that it was made from.

    Args:
        network: The converted network; the topology does not follow it yet.
        layers: What became of every convolution and linear layer.
        untraced: Why the layers are converted one by one, each with its own change of layout;
            None if the whole network stays in the kernels' layout.
    """

    network: nn.Module
    layers: tuple[LayerChoice, ...]
    untraced: str | None


class Choice(NamedTuple):
    """The network to train, and why the engine is not used; None if it is, or was not asked."""

    network: nn.Module
    reason: str | None


def to_engine(
    model: nn.Module,
    topology: Topology,
    example_batch: Inputs,
    *,
    engine: Literal["auto", "sparse"] = "auto",
) -> nn.Module:
    r"""Converts a network so that training and evaluation do only the work that the masks ask for.

    Convolutions and linear layers keep their active weights in a 1-D parameter ``values`` with
    their positions in ``index``; everything that follows a weight (optimizer state, snapshots)
    has that size too. Feature maps stay in the layout of the kernels from layer to layer. Each
    layer is timed once on this machine, and the fastest way is remembered.

    Call it after the `Topology` and before the optimizer, and go on with what it returns: the
    topology follows that network, and all that is not replaced (BatchNorm, biases) is shared with
    `model`. Names of modules, and of parameters other than ``weight`` of a sparse layer, stay.
    The numbers agree with torch's to rounding. No random number is drawn.

    Args:
        model: On the CPU, single precision.
        topology: Of this model; not attached to an optimizer.
        example_batch: Inputs of the forward pass, of the shape of a training batch: one tensor,
            or a tuple of all positional arguments.
        engine: "auto" returns `model` itself, and says why in one warning, if the kernels cannot
            run or are not faster; "sparse" converts whatever can be converted, or raises.

    Returns:
        The network to train. `to_dense` turns it into a plain one again.

    Raises:
        ValueError: With "sparse", if no layer can be converted; with the reason.

    Example:
        >>> from equipoise import Topology
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> topology = Topology(model, sparsity=0.9)
        >>> model = to_engine(model, topology, torch.zeros(32, 64), engine="sparse")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> _ = topology.attach(optimizer)
        >>> model(torch.ones(32, 64)).sum().backward()
        >>> optimizer.step()
        >>> model.get_submodule("0").values.shape, topology.num_active
        (torch.Size([417]), 473)
    """
    if engine not in ("auto", "sparse"):
        raise ValueError(f"engine is 'auto' or 'sparse'; got {engine!r}.")
    inputs = example_batch if isinstance(example_batch, tuple) else (example_batch,)
    if engine == "auto":
        network, reason = choose_network(model, topology, inputs)
        if reason is not None:
            message = f"the engine is not used: {reason}; training goes on with masks."
            warnings.warn(message, UserWarning, stacklevel=2)
        return network
    reason = refusal(model, inputs)
    if reason is None:
        conversion = prepare(model, topology, inputs, machine_memory(), always=True)
        reason = _nothing_converted(conversion)
    if reason is not None:
        raise ValueError(f"the engine cannot run this network: {reason}; use masks instead.")
    follow_(topology, conversion.network)
    return conversion.network


def choose_network(
    model: nn.Module,
    topology: Topology,
    inputs: tuple[Any, ...],
    *,
    on_layer: Callable[[LayerChoice], object] | None = None,
    on_gain: Callable[[Conversion, float], object] | None = None,
) -> Choice:
    """The faster one of a network with masks and its conversion, which the topology then follows.

    Args:
        model: With masks.
        topology: Of this model.
        inputs: Of the forward pass, of the shape of a training batch.
        on_layer: Told what becomes of each layer, as soon as that is known.
        on_gain: Told of the conversion, and how many times as fast a step is with it.
    """
    reason = refusal(model, inputs) or _too_small(model, inputs)
    if reason is not None:
        return Choice(model, reason)
    memory = machine_memory()
    conversion = prepare(model, topology, inputs, memory, on_layer=on_layer)
    reason = _nothing_converted(conversion)
    if reason is None:
        gain = speed_up(model, conversion, inputs, memory)
        if on_gain is not None:
            on_gain(conversion, gain)
        if gain < _LEAST_GAIN:
            reason = f"a step would take {1 / gain:.2f} times as long as with masks"
    if reason is not None:
        return Choice(model, reason)
    follow_(topology, conversion.network)
    return Choice(conversion.network, None)


def _nothing_converted(conversion: Conversion) -> str | None:
    """Why there is no sparse layer in a conversion; None if there is one."""
    if any(isinstance(m, SparseLayer) for m in conversion.network.modules()):
        return None
    return "no layer gains from the kernels on this machine"


def refusal(model: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Why the kernels cannot run a network at all, found without running it; None if they can."""
    missing = unavailable_because()
    if missing is not None:
        return missing.rstrip(".")
    if not any(isinstance(x, Tensor) and x.ndim in (2, 4) for x in inputs):
        return "its inputs are neither images nor rows of features"
    reasons = [
        unsupported_because(module)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    if not reasons:
        return "it has no convolution or linear layer"
    return None if None in reasons else f"of the first layer, {reasons[0]}"


def prepare(
    model: nn.Module,
    topology: Topology,
    inputs: tuple[Any, ...],
    memory: Memory,
    *,
    always: bool = False,
    on_layer: Callable[[LayerChoice], object] | None = None,
) -> Conversion:
    """Converts a network; neither it nor the topology is changed.

    Args:
        model: Of the topology.
        topology: Whose masks say what is active.
        inputs: Of the forward pass, of the shape of a training batch.
        memory: Of the fastest ways.
        always: Converts sparse layers that torch runs faster too.
        on_layer: Told what becomes of each layer, as soon as that is known.
    """
    sizes = _input_sizes(model, inputs)
    choices: list[LayerChoice] = []
    for choice in _choose(model, topology, sizes, _batch(inputs), memory):
        choices.append(choice)
        if on_layer is not None:
            on_layer(choice)
    chosen = {
        c.path: c
        for c in choices
        if c.timed is not None and (c.reason is None or (always and c.density < 1.0))
    }
    sparse, dense = {}, {}
    for path, choice in chosen.items():
        module = model.get_submodule(path)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        assert choice.timed is not None
        mask = topology.masks.get(f"{path}.weight" if path else "weight")
        if mask is None or choice.density == 1.0:
            dense[path] = dense_way(module, choice.timed.way)
        else:
            index = mask.flatten().nonzero().squeeze(1)
            sparse[path] = compact_layer(module, index, choice.timed.way)
            sparse[path].train(module.training)
    network = rebuilt(model, sparse)
    try:
        with _modes(model):
            programs = {}
            for training in (True, False):
                model.train(training)
                programs[training] = trace(model, chosen)
        followed = set().union(*(layers_used(p.steps) for p in programs.values()))
        if not sparse.keys() <= followed:
            raise UntraceableError("some layers are called in a way that is not followed")
    except UntraceableError as error:
        return Conversion(network, tuple(choices), str(error))
    shell = rebuilt(model, {path: nn.Identity() for path in sparse})
    return Conversion(EngineNetwork(network, programs, dense, shell), tuple(choices), None)


def follow_(topology: Topology, network: nn.Module) -> None:
    """Makes the topology follow a converted network."""
    modules = dict(network.named_modules())
    stores: dict[str, Store] = {}
    for name, parameter in topology.parameters.items():
        layer = modules.get(name.rpartition(".")[0])
        if isinstance(layer, SparseLayer):
            stores[name] = CompactWeight(layer)
        else:
            stores[name] = MaskedWeight(parameter, topology.masks[name])
    topology.rebind_(stores, model=network)


def speed_up(
    model: nn.Module, conversion: Conversion, inputs: tuple[Any, ...], memory: Memory
) -> float:
    """How many times faster a training step is converted than with masks, on this machine."""
    batch = min(_batch(inputs), _DECISION_SAMPLES)
    facts = [
        (c.path, c.shape, round(4 * math.log2(max(c.density, 1e-9)))) for c in conversion.layers
    ]
    shapes = [tuple(x.shape[1:]) for x in inputs if isinstance(x, Tensor)]
    told = repr((facts, shapes, batch, num_threads(), conversion.untraced is None))
    key = f"step/{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    known = memory.number(key)
    if known is not None:
        return known
    few = tuple(x[:batch] if isinstance(x, Tensor) else x for x in inputs)
    plain, engine = math.inf, math.inf
    for _ in range(3):  # in turns, so that both meet the same disturbances
        plain = min(plain, step_seconds(model, few))
        engine = min(engine, step_seconds(conversion.network, few))
    memory.keep(key, plain / engine)
    return plain / engine


def step_seconds(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Seconds of one forward and backward pass in training mode; nothing of the model changes."""
    point = {name: p.detach() for name, p in trainable(model).items()}
    with _modes(model), preserved(torch.device("cpu")):
        model.train()
        start = time.perf_counter()
        value_and_gradient_at(model, point, lambda: _scalar(model(*inputs)))
        return time.perf_counter() - start


def _too_small(model: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Whether steps are so short that nothing can be gained."""
    seconds = min(step_seconds(model, inputs) for _ in range(2))
    if seconds >= _WORTH_SECONDS:
        return None
    return f"a step takes {1e3 * seconds:.1f} ms, too little to gain from"


def _choose(
    model: nn.Module,
    topology: Topology,
    sizes: dict[str, tuple[int, int]],
    batch: int,
    memory: Memory,
) -> Iterator[LayerChoice]:
    """What becomes of every convolution and linear layer."""
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    paths = [p for p, _ in model.named_modules(remove_duplicate=False)]
    repeated = Counter(id(model.get_submodule(p)) for p in paths)
    for path, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        mask = topology.masks.get(f"{path}.weight" if path else "weight")
        density = 1.0 if mask is None else int(mask.sum()) / mask.numel()
        shape = tuple(module.weight.shape)
        reason = unsupported_because(module)
        if is_watched(module):
            reason = "its calls are watched by hooks"
        if owners[id(module.weight)] > 1 or repeated[id(module)] > 1:
            reason = "its weight is shared with another layer"
        if path not in sizes:
            reason = "it is not called on the example batch"
        if path == "":
            reason = "it is the whole network"
        timed = None
        if reason is None:
            timed = choose_way(
                geometry_of(module), _positions(module, mask), *sizes[path], batch, memory
            )
            if timed.seconds > timed.torch_seconds:
                reason = "torch is faster"
        yield LayerChoice(path, shape, density, timed, reason)


def _positions(module: Dense, mask: Tensor | None) -> Tensor:
    """Positions of the active weights."""
    if mask is None:
        return torch.arange(module.weight.numel())
    return mask.flatten().nonzero().squeeze(1)


def _input_sizes(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[int, int]]:
    """Rows and columns of the maps that every layer first gets, by its path."""
    sizes: dict[str, tuple[int, int]] = {}

    def watch(path: str) -> Any:
        def see(module: nn.Module, given: tuple[Any, ...]) -> None:
            size = (1, 1)
            if isinstance(module, nn.Conv2d):
                size = (int(given[0].shape[-2]), int(given[0].shape[-1]))
            sizes.setdefault(path, size)

        return see

    handles = [
        module.register_forward_pre_hook(watch(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    few = tuple(x[:1] if isinstance(x, Tensor) else x for x in inputs)
    try:
        with _modes(model), preserved(torch.device("cpu")), torch.no_grad():
            model.eval()
            model(*few)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _batch(inputs: tuple[Any, ...]) -> int:
    """Samples of a batch."""
    return next((len(x) for x in inputs if isinstance(x, Tensor) and x.ndim > 0), 1)


def _scalar(output: Any) -> Tensor:
    """Any number that depends on everything that a network returns."""
    if isinstance(output, Tensor):
        return output.float().mean()
    parts = output.values() if isinstance(output, dict) else output
    return torch.stack([_scalar(part) for part in parts]).mean()


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    """Afterwards every submodule has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
