"""From a masked network to one that computes its active weights only."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from equipoise.engine.checks import (
    batch_of,
    few_samples,
    modes_kept,
    same_numbers,
    unreached,
)
from equipoise.engine.choice import Memory, Timed, choose_csr, choose_way, machine_memory
from equipoise.engine.convolution import Way
from equipoise.engine.fallback import csr_in_words, in_place_of_kernels, no_kernels, not_by_csr
from equipoise.engine.layers import (
    Dense,
    SparseLayer,
    compact_layer,
    geometry_of,
    unsupported_because,
)
from equipoise.engine.memory import POOL
from equipoise.engine.network import EngineNetwork, rebuilt, runs_by_csr, ways_of
from equipoise.engine.program import Program, dense_way
from equipoise.engine.timing import speed_up, too_small
from equipoise.engine.tracing import UntraceableError, is_watched, layers_used, trace
from equipoise.points import preserved
from equipoise.topology import MaskOwner
from equipoise.topology.compact_weight import CompactWeight
from equipoise.topology.masked_weight import MaskedWeight
from equipoise.topology.store import Store

Inputs: TypeAlias = Tensor | tuple[Any, ...]

_LEAST_GAIN = 1.02
_SLOWER = "torch is faster"


@dataclass(frozen=True)
class LayerChoice:
    """What becomes of one layer.

    Args:
        path: Of the layer in the network.
        shape: Of its weight.
        density: Share of its weights that is active.
        timed: The fastest way found; None if only torch with its dense weight can run it.
        reason: Why torch runs it with its dense weight; None if it does not.
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
        fault: Why nothing is converted after all, and `network` is the given one; None if all is
            well.
    """

    network: nn.Module
    layers: tuple[LayerChoice, ...]
    untraced: str | None
    fault: str | None = None


class Choice(NamedTuple):
    """The network to train, and why the engine is not used; None if it is, or was not asked."""

    network: nn.Module
    reason: str | None


def to_engine(
    model: nn.Module,
    topology: MaskOwner,
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
    The numbers agree with torch's to rounding. No random number is drawn. The kernels work on 16
    samples at a time, so a batch takes as long as one of the next multiple of 16.

    Where there are no kernels, linear layers that torch's CSR products run faster than the dense
    weight are converted to those, and all else stays as it is.

    Args:
        model: On the CPU, single precision.
        topology: Of this model; not attached to an optimizer.
        example_batch: Inputs of the forward pass, of the shape of a training batch: one tensor,
            or a tuple of all positional arguments.
        engine: "auto" returns `model` itself, and says why in one warning, if the kernels cannot
            run or are not faster (nor CSR in their place, which is said in a warning too);
            "sparse" converts whatever can be converted, or raises.

    Returns:
        The network to train. `to_dense` turns it into a plain one again.

    Raises:
        ValueError: The topology is that of another model, or attached; with "sparse", also if no
            layer can be converted, with the reason. Nothing is changed then.

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
        (torch.Size([300]), 474)
    """
    if engine not in ("auto", "sparse"):
        raise ValueError(f"engine is 'auto' or 'sparse'; got {engine!r}.")
    inputs = example_batch if isinstance(example_batch, tuple) else (example_batch,)
    own = {id(parameter) for parameter in model.parameters()}
    for name, parameter in topology.parameters.items():
        if id(parameter) not in own:
            raise ValueError(
                f"the topology masks {name}, which is no weight of this {type(model).__name__}; "
                "pass the model that the topology was made with."
            )
    if engine == "auto":
        network, reason = choose_network(model, topology, inputs)
        if reason is not None:
            message = f"the engine is not used: {reason}; training goes on with masks."
            warnings.warn(message, UserWarning, stacklevel=2)
        elif runs_by_csr(network):
            warnings.warn(f"{csr_in_words()}.", UserWarning, stacklevel=2)
        return network
    reason = refusal(model, inputs)
    if reason is None:
        conversion = prepare(model, topology, inputs, machine_memory(), always=True)
        reason = in_place_of_kernels(_nothing_converted(conversion))
    if reason is not None:
        raise ValueError(f"the engine cannot run this network: {reason}; use masks instead.")
    follow_(topology, conversion.network)
    return conversion.network


def convert_as_before(
    model: nn.Module, topology: MaskOwner, inputs: tuple[Any, ...], ways: Mapping[str, Way]
) -> Choice:
    """Converts the layers that were converted before, and runs them in the same ways.

    So the parameters have the same names, and all sums the same order, whatever is timed or
    remembered now. The topology follows the result.

    Args:
        model: With masks.
        topology: Of this model.
        inputs: Of the forward pass, of the shape of a training batch.
        ways: From `ways_of` the network that was converted before.
    """
    reason = refusal(model, inputs)
    if reason is None and not all(way.csr for way in ways.values()):
        reason = no_kernels()
    if reason is None:
        conversion = prepare(model, topology, inputs, Memory(None), ways=ways)
        reason = _nothing_converted(conversion)
        if reason is None and ways_of(conversion.network).keys() != ways.keys():
            reason = "other layers can be converted than before"
    if reason is not None:
        return Choice(model, reason)
    follow_(topology, conversion.network)
    return Choice(conversion.network, None)


def choose_network(
    model: nn.Module,
    topology: MaskOwner,
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
    reason = refusal(model, inputs)
    if reason is not None:
        return Choice(model, reason)
    memory = machine_memory()
    reason = in_place_of_kernels(too_small(model, inputs, memory))
    if reason is not None:
        return Choice(model, reason)
    conversion = prepare(model, topology, inputs, memory, on_layer=on_layer)
    reason = _nothing_converted(conversion)
    if reason is None:
        gain = speed_up(model, conversion, inputs, memory)
        if on_gain is not None:
            on_gain(conversion, gain)
        if gain < _LEAST_GAIN:
            reason = f"a step would take {1 / gain:.2f} times as long as with masks"
            if gain > 1.0:
                reason = f"a step would be only {100 * (gain - 1):.1f} % faster than with masks"
    if reason is not None:
        return Choice(model, in_place_of_kernels(reason))
    follow_(topology, conversion.network)
    return Choice(conversion.network, None)


def _nothing_converted(conversion: Conversion) -> str | None:
    """Why there is no sparse layer in a conversion; None if there is one."""
    if conversion.fault is not None:
        return conversion.fault
    if any(isinstance(m, SparseLayer) for m in conversion.network.modules()):
        return None
    masked = [c for c in conversion.layers if c.density < 1.0]
    if not masked:
        return "no layer has inactive weights"
    if any(c.reason == _SLOWER for c in masked):
        return "no layer gains from the kernels on this machine"
    path, reason = masked[0].path, str(masked[0].reason)
    return f"of the layer {path}, {reason}" if path else reason


def refusal(model: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Why a network cannot be converted, found without running it; None if it may be.

    Without kernels there is CSR, for linear layers.
    """
    missing = no_kernels()
    if missing is not None and not any(isinstance(m, nn.Linear) for m in model.modules()):
        return missing
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if not any(x.ndim >= 2 for x in tensors):
        return "its inputs are neither images nor rows of features"
    elsewhere = [str(x.device) for x in tensors if x.device.type != "cpu"]
    if elsewhere:
        return f"its inputs are on {elsewhere[0]}, and the kernels run on the cpu"
    if any(isinstance(module, SparseLayer) for module in model.modules()):
        return "it is converted already"
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
    topology: MaskOwner,
    inputs: tuple[Any, ...],
    memory: Memory,
    *,
    always: bool = False,
    ways: Mapping[str, Way] | None = None,
    on_layer: Callable[[LayerChoice], object] | None = None,
) -> Conversion:
    """Converts a network; neither it nor the topology is changed.

    Args:
        model: Of the topology.
        topology: Whose masks say what is active.
        inputs: Of the forward pass, of the shape of a training batch.
        memory: Of the fastest ways.
        always: Converts sparse layers that torch runs faster too.
        ways: Converts exactly these layers, to be run in these ways; default: what was timed.
        on_layer: Told what becomes of each layer, as soon as that is known.
    """
    sizes = _input_sizes(model, inputs)
    choices: list[LayerChoice] = []
    found = (
        _choose(model, topology, sizes, batch_of(inputs), memory)
        if ways is None
        else _choose_as_before(model, topology, ways)
    )
    for choice in found:
        choices.append(choice)
        if on_layer is not None:
            on_layer(choice)
    chosen = {
        c.path: c
        for c in choices
        if c.timed is not None
        # CSR stands in for the kernels where it is faster, and is not what was asked for.
        and (c.reason is None or (always and c.density < 1.0 and not c.timed.way.csr))
    }
    conversion = _build(model, topology, choices, chosen)
    if conversion.untraced is not None:
        paths = [p for p in chosen if isinstance(conversion.network.get_submodule(p), SparseLayer)]
        stray = unreached(model, conversion.network, paths, inputs)
        reason = "its calls are not followed"
        choices = [replace(c, reason=reason) if c.path in stray else c for c in choices]
        kept = {path: c for path, c in chosen.items() if path not in stray}
        conversion = _build(model, topology, choices, kept) if stray else conversion
    fault = same_numbers(model, conversion.network, inputs)
    return conversion if fault is None else replace(conversion, network=model, fault=fault)


def _build(
    model: nn.Module,
    topology: MaskOwner,
    choices: list[LayerChoice],
    chosen: Mapping[str, LayerChoice],
) -> Conversion:
    """A conversion with these layers in place."""
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
            sparse[path] = layer = compact_layer(module, index, choice.timed.way)
            layer.values.requires_grad_(module.weight.requires_grad)
            layer.train(module.training)
    network = rebuilt(model, sparse)
    if no_kernels() is not None or any(c.timed and c.timed.way.csr for c in chosen.values()):
        return Conversion(network, tuple(choices), "torch CSR takes plain tensors")
    try:
        programs = _programs(model, chosen)
        followed = set().union(*(layers_used(p.steps) for p in programs.values()))
        if not sparse.keys() <= followed:
            raise UntraceableError("some layers are called in a way that is not followed")
    except UntraceableError as error:
        return Conversion(network, tuple(choices), str(error))
    shell = rebuilt(model, {path: nn.Identity() for path in sparse})
    return Conversion(EngineNetwork(network, programs, dense, shell), tuple(choices), None)


def _programs(model: nn.Module, layers: Container[str]) -> dict[bool, Program]:
    """What a network does in training mode and in evaluation mode."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(p.kind in several for p in inspect.signature(model.forward).parameters.values()):
        raise UntraceableError("it takes any number of arguments")
    programs = {}
    with modes_kept(model):
        for training in (True, False):
            model.train(training)
            programs[training] = trace(model, layers)
    return programs


def follow_(topology: MaskOwner, network: nn.Module) -> None:
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
    POOL.release()  # what the timings used is not what the network will use


def _choose(
    model: nn.Module,
    topology: MaskOwner,
    sizes: dict[str, tuple[int, int]],
    batch: int,
    memory: Memory,
) -> Iterator[LayerChoice]:
    """What becomes of every convolution and linear layer."""
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    paths = [p for p, _ in model.named_modules(remove_duplicate=False)]
    repeated = Counter(id(model.get_submodule(p)) for p in paths)
    without = no_kernels() is not None
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
        if reason is None and without:
            reason = not_by_csr(module, density)
        timed = None
        if reason is None:
            geometry, positions = geometry_of(module), _positions(module, mask)
            if without:
                timed = choose_csr(geometry, positions, batch, memory)
            else:
                timed = choose_way(geometry, positions, *sizes[path], batch, memory)
            if timed is None:
                reason = "this torch has no CSR products"
            elif timed.seconds > timed.torch_seconds:
                reason = _SLOWER
        yield LayerChoice(path, shape, density, timed, reason)


def _choose_as_before(
    model: nn.Module, topology: MaskOwner, ways: Mapping[str, Way]
) -> Iterator[LayerChoice]:
    """The same layers in the same ways."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        mask = topology.masks.get(f"{path}.weight" if path else "weight")
        density = 1.0 if mask is None else int(mask.sum()) / mask.numel()
        known = path in ways
        timed = Timed(ways[path], 0.0, 0.0) if known else None
        reason = None if known else "it was not converted before"
        yield LayerChoice(path, tuple(module.weight.shape), density, timed, reason)


def _positions(module: Dense, mask: Tensor | None) -> Tensor:
    """Positions of the active weights."""
    if mask is None:
        return torch.arange(module.weight.numel())
    return mask.flatten().nonzero().squeeze(1)


def _input_sizes(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[int, int]]:
    """Rows and columns of the maps that every layer first gets, by its path."""
    sizes: dict[str, tuple[int, int]] = {}

    def watch(path: str) -> Any:
        def see(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = (*given, *named.values())[0]
            is_image = isinstance(module, nn.Conv2d)
            sizes.setdefault(path, (int(x.shape[-2]), int(x.shape[-1])) if is_image else (1, 1))

        return see

    handles = [
        module.register_forward_pre_hook(watch(path), with_kwargs=True)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    few = few_samples(inputs, 1)
    try:
        with modes_kept(model), preserved(torch.device("cpu")), torch.no_grad():
            model.eval()
            model(*few)
    finally:
        for handle in handles:
            handle.remove()
    return sizes
