"""From a model's code to a program: traced by torch.fx, then cut into fused steps."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from equipoise.engine.pooling import Window
from equipoise.engine.program import (
    Context,
    FlattenStep,
    PlainStep,
    PoolStep,
    Program,
    Step,
    UnitStep,
    Value,
    uses,
)

_SIDES = {"kernel": "_size", "stride": "", "padding": ""}
_RELU = {functional.relu, torch.relu, functional.relu_, torch.relu_}
_ADD = {operator.add, operator.iadd, torch.add}
_CHANGES = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


class UntraceableError(Exception):
    """The code of a model cannot be followed; the message says why."""


def trace(model: nn.Module, layers: Container[str]) -> Program:
    """The program of a model in its present mode.

    Args:
        model: A network of plain layers.
        layers: Paths of the layers that the kernels are to run.

    Raises:
        UntraceableError: Its forward pass depends on the values of tensors, or torch.fx fails.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # any code may stand in a forward, and fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UntraceableError(reason) from error
    if is_watched(model):
        raise UntraceableError("its calls are watched by hooks")
    modules = dict(model.named_modules(remove_duplicate=False))
    _read_what_was_changed(graph, modules)
    _skip_identities(graph, modules)
    return _Compiler(modules, graph, layers).program()


class _Tracer(fx.Tracer):
    """Does not look into modules that somebody watches: those are called as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called and not looked into."""
        return is_watched(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a value."""
        return _Value(node, self)


class _Value(fx.Proxy):
    """Knows the augmented assignments, which fx takes for assignments of new values."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._changed(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._changed(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._changed(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._changed(operator.itruediv, other)

    def _changed(self, by: Any, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", by, (self, other), {})


def is_watched(module: nn.Module) -> bool:
    """Whether hooks follow the calls of a module; a fused step would not call them."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks)


def _read_what_was_changed(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Lets those who read a value after it was changed in place read what it became.

    Steps make new values, so what a network does in place they do not.

    Raises:
        UntraceableError: Whether a value was changed depends on its type, which is not known.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and _changes_in_place(node, modules):
            later = [user for user in source.users if order[user] > order[node]]
            if later and node.target in _CHANGES:
                raise UntraceableError("it reads a value again that an assignment has changed")
            for reader in later:
                reader.replace_input_with(source, node)


def _skip_identities(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Takes out what hands on its input, for which maps would leave the kernels' layout."""
    for node in list(graph.nodes):
        if node.op != "call_module" or len(node.args) != 1:
            continue
        module = modules[str(node.target)]
        if type(module) is nn.Identity and not is_watched(module):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _changes_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node changes its first argument."""
    if node.op == "call_module":
        return getattr(modules[str(node.target)], "inplace", False) is True
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    named = name.endswith("_") and not name.endswith("__")
    if node.op != "call_function" or isinstance(target, str):
        return named and node.op == "call_method"
    if target in _CHANGES or getattr(target, "__module__", "") == "_operator":
        return target in _CHANGES  # and_, or_ and not_ make new values
    try:
        given = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return named
    return named or given.arguments.get("inplace") is True


class _Compiler:
    """Cuts one graph into steps."""

    def __init__(
        self, modules: Mapping[str, nn.Module], graph: fx.Graph, layers: Container[str]
    ) -> None:
        self._layers = layers
        self._modules = modules
        self._nodes = list(graph.nodes)
        self._taken: set[fx.Node] = set()
        self._ends: dict[fx.Node, UnitStep] = {}

    def program(self) -> Program:
        """The steps in order."""
        for node in self._nodes:
            if node not in self._taken and self._starts_unit(node):
                self._grow(node)
        steps: list[Step] = []
        arguments: list[str] = []
        results: tuple[str, ...] = ()
        returned: Any = None
        for node in self._nodes:
            if node.op == "placeholder":
                arguments.append(node.name)
                if node.args:
                    raise UntraceableError(f"argument {node.name} has a default")
            elif node.op == "output":
                returned = node.args[0]
                results = tuple(dict.fromkeys(n.name for n in node.all_input_nodes))
            elif node in self._ends:
                steps.append(self._ends[node])
            elif node not in self._taken:
                steps.append(self._single(node))
        ordered = tuple(steps)

        def result(values: Mapping[str, Value]) -> Any:
            return _own(fx.node.map_arg(returned, lambda n: values[n.name]))

        return Program(tuple(arguments), ordered, result, results, uses(ordered, results))

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls on one value; None if somebody watches its calls."""
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        module = self._modules[str(node.target)]
        return module if isinstance(node.args[0], fx.Node) and not is_watched(module) else None

    def _starts_unit(self, node: fx.Node) -> bool:
        return (
            self._is_layer(node) or self._is_norm(node) or self._is_relu(node) or self._adds(node)
        )

    def _is_layer(self, node: fx.Node) -> bool:
        module = self._module(node)
        return isinstance(module, nn.Conv2d | nn.Linear) and str(node.target) in self._layers

    def _is_norm(self, node: fx.Node) -> bool:
        return type(self._module(node)) in (nn.BatchNorm2d, nn.BatchNorm1d)

    def _is_relu(self, node: fx.Node) -> bool:
        if type(self._module(node)) is nn.ReLU:
            return True
        if node.op == "call_function" and node.target in _RELU:
            return set(node.kwargs) <= {"inplace"}
        return node.op == "call_method" and node.target in ("relu", "relu_")

    def _takes_maxima(self, node: fx.Node) -> bool:
        module = self._module(node)
        return isinstance(module, nn.MaxPool2d) and window_of(module) is not None

    def _adds(self, node: fx.Node) -> bool:
        """Whether a node adds two values, each of them traced."""
        named = node.op == "call_function" and node.target in _ADD and not node.kwargs
        method = node.op == "call_method" and node.target in ("add", "add_") and not node.kwargs
        both = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
        return (named or method) and both and node.args[0] is not node.args[1]

    def _grow(self, node: fx.Node) -> None:
        """Follows a chain of nodes that one fused step can do, and marks them as taken."""
        layer = norm = residual = None
        rectify = False
        source = node.args[0]
        end = node
        if self._is_layer(node):
            layer = str(node.target)
            end = self._next(node, self._is_norm)
            norm = str(end.target) if end is not node else None
        elif self._is_norm(node):
            norm = str(node.target)
        elif self._is_relu(node):
            rectify = True
        else:
            residual = node.args[1]
        if not rectify:
            if residual is None:
                joined = self._next(end, self._adds)
                if joined is not end:
                    residual = joined.args[1] if joined.args[0] is end else joined.args[0]
                    end = joined
            last = self._next(end, self._is_relu)
            rectify, end = last is not end, last
        assert isinstance(source, fx.Node)
        other = residual.name if isinstance(residual, fx.Node) else None
        pool = None
        if rectify and norm is not None and residual is None:
            pooled = self._next(end, self._takes_maxima)
            made = self._pooling(pooled) if pooled is not end else None
            pool, end = (made if isinstance(made, PoolStep) else None), pooled
        self._ends[end] = UnitStep(end.name, source.name, layer, norm, other, rectify, pool)
        self._taken.add(node)

    def _next(self, node: fx.Node, fits: Any) -> fx.Node:
        """The only reader of a node, if it fits and is free; else the node itself."""
        users = list(node.users)
        if len(users) != 1 or not fits(users[0]) or users[0] in self._taken:
            return node
        self._taken.add(node)
        self._taken.add(users[0])
        return users[0]

    def _single(self, node: fx.Node) -> Step:
        """A step of its own."""
        made = self._pooling(node) or self._flattening(node)
        return made or self._plain(node)

    def _pooling(self, node: fx.Node) -> Step | None:
        """Pooling layers, and means over rows and columns."""
        module = self._module(node)
        if node.args and isinstance(node.args[0], fx.Node):
            source = node.args[0].name
            window = None if module is None else window_of(module)
            if window is not None:
                return PoolStep(node.name, source, window, self._plain(node))
            if _is_global_mean(module):
                return PoolStep(node.name, source, None, self._plain(node))
            keeps = _mean_over_maps(node)
            if keeps is not None:
                return PoolStep(node.name, source, None, self._plain(node), flat=not keeps)
        return None

    def _flattening(self, node: fx.Node) -> Step | None:
        """Flattening all but the samples, and what changes nothing."""
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        source, module = node.args[0].name, self._module(node)
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return FlattenStep(node.name, source)
        function = node.op == "call_function" and node.target is torch.flatten
        method = node.op == "call_method" and node.target == "flatten"
        if (function or method) and node.args[1:] == (1,) and not node.kwargs:
            return FlattenStep(node.name, source)
        return None

    def _plain(self, node: fx.Node) -> PlainStep:
        """A step that calls the node's own code."""
        inputs = tuple(dict.fromkeys(n.name for n in node.all_input_nodes))
        target, args, kwargs, kind = node.target, node.args, dict(node.kwargs), node.op

        def call(values: Mapping[str, Value], context: Context) -> Value:
            given = fx.node.map_arg(args, lambda n: values[n.name])
            named = fx.node.map_arg(kwargs, lambda n: values[n.name])
            if kind == "get_attr":
                return context.attribute(str(target))
            if kind == "call_module":
                return context.module(str(target))(*given, **named)
            if kind == "call_method":
                return getattr(given[0], str(target))(*given[1:], **named)
            assert callable(target)
            return target(*given, **named)

        return PlainStep(node.name, inputs, call)


def _own(value: Any) -> Any:
    """The same containers as the caller's own; those of fx cannot be changed."""
    if isinstance(value, dict):
        return {key: _own(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_own(part) for part in value]
    return value


def window_of(module: nn.Module) -> Window | None:
    """The window of a pooling layer; None for other layers and for options without a kernel."""
    if type(module) not in (nn.MaxPool2d, nn.AvgPool2d) or module.ceil_mode:
        return None
    sides: Any = {name: _pair(getattr(module, name + more)) for name, more in _SIDES.items()}
    if isinstance(module, nn.MaxPool2d):
        plain = _pair(module.dilation) == (1, 1) and not module.return_indices
        return Window(largest=True, **sides) if plain else None
    assert isinstance(module, nn.AvgPool2d)
    if module.divisor_override is None:
        return Window(largest=False, **sides, count_padding=module.count_include_pad)
    return None


def border_needs(
    steps: tuple[Step, ...], needs: Mapping[str, int], arguments: tuple[str, ...]
) -> dict[str, int]:
    """Zeros that each value must have around it: the most that a reader asks for.

    Args:
        steps: Of a program.
        needs: Border that each layer reads, by its path.
        arguments: Values that are given from outside, which are plain.
    """
    borders: dict[str, int] = {}
    for step in steps:
        if isinstance(step, UnitStep) and step.layer is not None:
            name = step.input
            borders[name] = max(borders.get(name, 0), needs.get(step.layer, 0))
    return {name: border for name, border in borders.items() if name not in arguments}


def layers_used(steps: tuple[Step, ...]) -> Iterator[str]:
    """Paths of the layers that the kernels run."""
    for step in steps:
        if isinstance(step, UnitStep) and step.layer is not None:
            yield step.layer


def _is_global_mean(module: nn.Module | None) -> bool:
    if type(module) is not nn.AdaptiveAvgPool2d:
        return False
    size = module.output_size
    return size == 1 or size == (1, 1)


def _mean_over_maps(node: fx.Node) -> bool | None:
    """For a mean over rows and columns, whether it keeps the dimensions; None for other nodes."""
    function = node.op == "call_function" and node.target is torch.mean
    method = node.op == "call_method" and node.target == "mean"
    if not (function or method):
        return None
    given = dict(node.kwargs)
    dims = given.pop("dim", node.args[1] if len(node.args) == 2 else None)
    keeps = given.pop("keepdim", False)
    pair = isinstance(dims, list | tuple) and sorted(d % 4 for d in dims) == [2, 3]
    return bool(keeps) if pair and not given else None


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, list | tuple):
        return int(value[0]), int(value[1])
    return int(value), int(value)
