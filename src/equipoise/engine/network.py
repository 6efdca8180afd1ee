"""A converted network."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from equipoise.engine.convolution import Way
from equipoise.engine.layers import SparseLayer, dense_layer, geometry_of
from equipoise.engine.program import Context, DenseWay, Program
from equipoise.engine.tracing import border_needs


@final
class EngineNetwork(nn.Module):
    """A network that runs on the kernels, with the module paths of the network it was made from.

    Sparse layers have ``values`` and ``index`` where the plain ones have ``weight``; all other
    parameters and buffers keep their names. `to_dense` gives back a plain network.

    The network's own code is followed once in training mode and once in evaluation mode. While
    some of its modules are in the other mode than the whole, that code is run itself, and each
    sparse layer changes the layout of its maps on its own. Attributes of the network that are no
    modules, parameters or buffers are those of the plain one only.

    Args:
        model: The network's modules, with sparse layers in place; its own code is not called.
        programs: What to do in training mode and in evaluation mode.
        dense: How the layers that keep a dense weight are run, by path.
        shell: The network's own modules without its layers, for the way back.
    """

    def __init__(
        self,
        model: nn.Module,
        programs: Mapping[bool, Program],
        dense: Mapping[str, DenseWay],
        shell: nn.Module,
    ) -> None:
        super().__init__()
        self._modules.update(model._modules)
        self._parameters.update(model._parameters)
        self._buffers.update(model._buffers)
        self._non_persistent_buffers_set = set(model._non_persistent_buffers_set)
        self.training = model.training
        # The children have names of the user's choice, so what is added here has names of its own.
        self._engine_programs = dict(programs)
        self._engine_dense = dict(dense)
        self._engine_shell = (shell,)  # in a tuple, so that it is not one of the modules
        self._engine_borders = {mode: self._engine_border(p) for mode, p in programs.items()}

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the original network returns."""
        if self._engine_is_mixed():
            return self._engine_layer_by_layer(*inputs, **named)
        program = self._engine_programs[self.training]
        if named:
            bound = inspect.signature(self._engine_shell[0].forward).bind(*inputs, **named)
            inputs = tuple(bound.arguments.values())
        if len(inputs) != len(program.arguments):
            raise TypeError(
                f"forward() got {len(inputs)} positional arguments, expected "
                f"{len(program.arguments)} ({', '.join(program.arguments)})."
            )
        context = Context(
            self.get_submodule,
            self._engine_attribute,
            self._engine_dense,
            self._engine_borders[self.training],
        )
        return program.run(dict(zip(program.arguments, inputs, strict=True)), context)

    def _engine_is_mixed(self) -> bool:
        """Whether code that was followed in one mode is in the other."""
        return any(
            module.training != self.training and not type(module).__module__.startswith("torch.nn")
            for module in self.modules()
        )

    def _engine_layer_by_layer(self, *inputs: Any, **named: Any) -> Any:
        """Runs the code of the network, with the present modules."""
        own = copy.copy(self._engine_shell[0])
        for name in ("_modules", "_parameters", "_buffers", "training"):
            own.__dict__[name] = self.__dict__[name]
        return own(*inputs, **named)

    def _engine_attribute(self, path: str) -> Any:
        """A parameter or buffer."""
        parent, _, name = path.rpartition(".")
        return getattr(self.get_submodule(parent), name)

    def _engine_border(self, program: Program) -> dict[str, int]:
        """Zeros around each value of a program."""
        needs = {}
        for step in program.steps:
            layer = getattr(step, "layer", None)
            if layer is not None:
                module = self.get_submodule(layer)
                assert isinstance(module, SparseLayer | nn.Conv2d | nn.Linear)
                needs[layer] = geometry_of(module).border
        return border_needs(program.steps, needs, program.arguments)


def rebuilt(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """The same network with other modules at some paths; the given one is not changed.

    Modules that contain no replaced one are shared. Parameters and buffers are shared too.

    Args:
        model: Any network.
        replacements: Modules by path.
    """
    made: dict[int, nn.Module] = {}

    def rebuild(module: nn.Module, path: str) -> nn.Module:
        if path in replacements:
            return replacements[path]
        if id(module) in made:
            return made[id(module)]
        prefix = f"{path}." if path else ""
        if not any(name.startswith(prefix) for name in replacements):
            return module
        twin = copy.copy(module)
        made[id(module)] = twin
        for name in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[name] = dict(module.__dict__[name])
        for name, child in module._modules.items():
            if child is not None:
                twin._modules[name] = rebuild(child, prefix + name)
        return twin

    return rebuild(model, "")


def to_dense(model: nn.Module) -> nn.Module:
    """A plain network with plain keys and the same numbers.

    Args:
        model: A converted network, or one that was left as it is, which is returned unchanged.

    Returns:
        The original kind of network. Layers have their dense weights back, zeros included; all
        other modules, parameters and buffers are shared with `model`.

    Example:
        >>> import torch
        >>> from equipoise import Topology, to_engine
        >>> network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> topology = Topology(network, sparsity=0.9)
        >>> engine = to_engine(network, topology, torch.zeros(4, 64), engine="sparse")
        >>> sorted(to_dense(engine).state_dict())
        ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    layers = {path: m for path, m in model.named_modules() if isinstance(m, SparseLayer)}
    dense: dict[str, nn.Module] = {}
    for path, layer in layers.items():
        dense[path] = made = dense_layer(layer)
        made.weight.requires_grad_(layer.values.requires_grad)
    if not isinstance(model, EngineNetwork):
        return rebuilt(model, dense) if dense else model
    others = {
        path: module
        for path, module in model.named_modules()
        if path and path not in dense and not _inside(path, layers)
    }
    leaves = {path: module for path, module in others.items() if not module._modules}
    plain = rebuilt(model._engine_shell[0], {**leaves, **dense})
    now = dict(model.named_modules())
    for path, module in plain.named_modules():
        twin = now.get(path)
        if path not in dense and twin is not None and twin is not module:
            module._parameters.update(twin._parameters)
            module._buffers.update(twin._buffers)
            module.training = twin.training
    return plain


def ways_of(network: nn.Module) -> dict[str, Way]:
    """How each layer that the kernels run is run, by its path; empty for a plain network."""
    sparse = {p: m.way for p, m in network.named_modules() if isinstance(m, SparseLayer)}
    if not isinstance(network, EngineNetwork):
        return sparse
    return {path: each.way for path, each in network._engine_dense.items()} | sparse


def runs_by_csr(network: nn.Module) -> bool:
    """Whether torch's CSR products run its sparse layers, in place of the kernels."""
    return any(way.csr for way in ways_of(network).values())


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with dense weights, from one of a converted network; others stay as they are.

    Args:
        state: With ``values``, ``index`` and ``shape`` for each sparse layer.

    Example:
        >>> import torch
        >>> state = {"a.values": torch.ones(1), "a.index": torch.tensor([2])}
        >>> plain_state(state | {"a.shape": torch.tensor([2, 2])})
        {'a.weight': tensor([[0., 0.],
                [1., 0.]])}
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")
        prefix = f"{path}." if path else ""
        parts = [state.get(prefix + part) for part in ("values", "index", "shape")]
        if any(part is None for part in parts) or kind not in ("values", "index", "shape"):
            plain[name] = tensor
        elif kind == "values":
            values, index, shape = (part for part in parts if part is not None)
            weight = values.new_zeros(int(shape.prod()))
            plain[prefix + "weight"] = weight.index_copy_(0, index, values).view(*shape.tolist())
    return plain


def _inside(path: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a path lies within one of the layers."""
    return any(path.startswith(f"{layer}.") for layer in layers)
