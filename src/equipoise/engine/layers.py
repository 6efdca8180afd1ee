"""Layers that own their active weights only."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from equipoise.engine.convolution import Geometry, Plan, Tiling, Way
from equipoise.engine.csr import Pattern, csr_linear
from equipoise.engine.lists import Changes, Former
from equipoise.engine.maps import Form, Maps, from_maps, to_maps
from equipoise.engine.operations import Unit, unit_maps
from equipoise.topology.compact_weight import resize_

Dense = nn.Conv2d | nn.Linear

_MOST_NUMBERS = 2**31 - 1  # that kernels reach with the offsets of a list


class Plans:
    """The plans of a layer, made when first needed and dropped with the index that they are for.

    Those of an index that followed another are made from the lists of that one.
    """

    def __init__(self) -> None:
        self._by_index: Any = WeakIdKeyDictionary()
        self._formers: Any = WeakIdKeyDictionary()

    def find(self, geometry: Geometry, index: Tensor, way: Way, x: Maps) -> Plan:
        """The plan for maps of the form of `x`, by the weights at `index`."""
        form = x.form
        if form.channels != geometry.in_channels:
            raise ValueError(
                f"the input has {form.channels} channels or features, expected "
                f"{geometry.in_channels}; give the layer what it was made for."
            )
        known: dict[Any, Plan] = self._by_index.setdefault(index, {})
        key = (form.rows, form.columns, form.border, way)
        if key not in known:
            out = geometry.output(form.rows, form.columns)
            if min(out) < 1:
                raise ValueError(
                    f"maps of {form.rows} x {form.columns} are smaller than the kernel "
                    f"{geometry.kernel} with padding {geometry.padding}; give larger ones."
                )
            border = geometry.gradient_border(form.rows, form.columns)
            border = 0 if way.wide else border
            dy = Form(form.samples, geometry.out_channels, *out, border, way.wide)
            if max(form.numbers, dy.numbers) > _MOST_NUMBERS:
                raise ValueError(
                    f"maps of {form.rows} x {form.columns} with {form.channels} channels, or those "
                    "that a layer makes of them, are too large for the kernels; train with masks."
                )
            # A plan that held the index itself would keep it, and so itself, alive.
            positions = index.detach()
            former = self._formers.get(index, {}).get(key)
            known[key] = Plan(
                *(geometry, positions, way, form.rows, form.columns, form.border, border),
                former=former,
            )
        return known[key]

    def find_pattern(self, geometry: Geometry, index: Tensor) -> Pattern:
        """The pattern of a linear layer with weights at `index`."""
        known: dict[Any, Any] = self._by_index.setdefault(index, {})
        if "csr" not in known:
            known["csr"] = Pattern(index.detach(), geometry.out_channels, geometry.in_channels)
        pattern: Pattern = known["csr"]
        return pattern

    def follow(self, before: Tensor, now: Tensor) -> None:
        """An index takes the place of another, whose plans stay for whoever still has it."""
        plans: dict[Any, Any] = self._by_index.get(before, {})
        formers: dict[Any, Former] = self._formers.pop(before, {})
        changes = Changes()
        lists = {key: dict(former.lists) for key, former in formers.items()}
        for key, plan in plans.items():
            if isinstance(plan, Plan):
                lists[key] = lists.get(key, {}) | plan.made
        self._formers[now] = {k: Former(each, changes) for k, each in lists.items() if each}

    def __deepcopy__(self, memo: dict[int, Any]) -> Plans:
        """A copy of a layer makes plans of its own."""
        return Plans()

    def __reduce__(self) -> Any:
        """Nothing is stored."""
        return (Plans, ())


@final
class SparseLayer(nn.Module):
    r"""A convolution or linear layer that stores and computes its active weights only.

    .. math:: y = x * W, \qquad W_{\text{index}} = \text{values}, \quad 0 \text{ elsewhere}

    Optimizer state, snapshots and gradients of `values` have the size of the active weights. Its
    gradient is that of the active weights. First derivatives only; single precision; on the CPU.

    Args:
        geometry: The convolution; a linear layer has a kernel of 1.
        weight_shape: Shape of the logical weight: 4 numbers, or 2 of a linear layer.
        index: Ascending flat positions of the active weights, int64. Never changed in place.
        values: Their values, in that order.
        bias: Of the output channels, or None.
        way: How it is run.

    Example:
        >>> dense = nn.Linear(8, 4)
        >>> layer = compact_layer(dense, torch.tensor([0, 9, 31]))
        >>> layer(torch.ones(2, 8)).shape
        torch.Size([2, 4])
        >>> layer.values.shape
        torch.Size([3])
    """

    compact: ClassVar[Mapping[str, str]] = {"values": "index"}
    values: nn.Parameter
    bias: nn.Parameter | None
    index: Tensor
    shape: Tensor

    def __init__(
        self,
        geometry: Geometry,
        weight_shape: tuple[int, ...],
        index: Tensor,
        values: Tensor,
        bias: nn.Parameter | None,
        way: Way | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.weight_shape = weight_shape
        self.values = nn.Parameter(values)
        self.register_parameter("bias", bias)
        self.register_buffer("index", index)
        self.register_buffer("shape", torch.tensor(weight_shape))
        self.way = way or default_way(geometry, index.numel() / math.prod(weight_shape))
        self.gather_dense: Callable[[Callable[[], Tensor]], None] | None = None
        self.plans = Plans()

    @property
    def is_linear(self) -> bool:
        """Whether it stands for a linear layer."""
        return len(self.weight_shape) == 2

    def set_index_(self, index: Tensor) -> None:
        """Takes other positions; `values` are the caller's to change."""
        self.plans.follow(self.index, index)
        self.index = index

    def dense_weight(self) -> Tensor:
        """The logical weight, zeros included; detached."""
        weight = torch.zeros(math.prod(self.weight_shape), dtype=self.values.dtype)
        return weight.index_copy_(0, self.index, self.values.detach()).view(self.weight_shape)

    def plan_for(self, x: Maps) -> Plan:
        """How this layer is applied to maps of the form of `x`."""
        return self.plans.find(self.geometry, self.index, self.way, x)

    @property
    def gather(self) -> Callable[[Callable[[], Tensor]], None] | None:
        """Who is offered the dense gradient: nobody at a snapshot, whose values are swapped in."""
        told, shape = self.gather_dense, self.weight_shape
        if told is None or not isinstance(self.values, nn.Parameter):
            return None
        return lambda dense: told(lambda: dense().view(shape))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name that torch's layers use)
        """Plain tensors in and out, of the shapes of the layer that this one replaces."""
        x, lead = input, input.shape[:-1]
        if self.is_linear:
            x = x.reshape(-1, x.shape[-1])
        elif x.ndim == 3:
            x = x[None]
        elif x.ndim != 4:
            raise ValueError(
                f"the input of a convolution has {x.ndim} dimensions, expected 3 or 4; "
                "give maps of (samples, channels, rows, columns)."
            )
        if self.way.csr:
            return self._by_csr(x, lead).to(input.dtype)
        maps = to_maps(x, border=self.geometry.border, wide=self.way.wide)
        unit = Unit(self.plan_for(maps), None, rectify=False, border=0, gather=self.gather)
        out = from_maps(unit_maps(maps, unit, values=self.values, bias=self.bias)).to(x.dtype)
        if self.is_linear:
            return out.reshape(*lead, self.geometry.out_channels)
        return out[0] if len(lead) == 2 else out

    def _by_csr(self, x: Tensor, lead: torch.Size) -> Tensor:
        """A linear layer on rows of features."""
        pattern = self.plans.find_pattern(self.geometry, self.index)
        rows = x.to(self.values.dtype)
        out = csr_linear(rows, self.values, self.bias, pattern, self.gather)
        # Code that is written for torch's layers may view what has more dimensions.
        return out if len(lead) == 1 else out.reshape(*lead, self.geometry.out_channels)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLayer:
        """A copy with plans of its own, whose dense gradients nobody waits for."""
        bias = copy.deepcopy(self.bias, memo)
        index, values = self.index.clone(), self.values.detach().clone()
        twin = SparseLayer(self.geometry, self.weight_shape, index, values, bias, self.way)
        twin.values.requires_grad_(self.values.requires_grad)
        memo[id(self.values)] = twin.values
        return twin.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        """Without the closure of whoever waits for dense gradients."""
        return {**self.__dict__, "gather_dense": None}

    def extra_repr(self) -> str:
        """Shape and density."""
        density = self.values.numel() / max(1, math.prod(self.weight_shape))
        return f"{tuple(self.weight_shape)}, density={density:.4f}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Takes a saved index as a new tensor, because what is derived hangs on the old one."""
        index = state_dict.get(prefix + "index")
        shape = state_dict.get(prefix + "shape")
        errors: list[str] = rest[-1]
        if shape is not None and tuple(shape.tolist()) != tuple(self.weight_shape):
            errors.append(
                f"{prefix}shape is {tuple(shape.tolist())}, expected {tuple(self.weight_shape)}; "
                "load the state into the network that it was saved from."
            )
            return
        # Kernels read wherever the index points.
        if index is not None and not _are_positions(index, math.prod(self.weight_shape)):
            errors.append(
                f"{prefix}index holds no ascending positions in a weight of shape "
                f"{tuple(self.weight_shape)}; the state is damaged."
            )
            return
        if index is not None and not torch.equal(index, self.index):
            if index.numel() != self.values.numel():
                resize_(self.values, self.values.detach().new_zeros(index.numel()))
            self.set_index_(index.to(self.index.device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _are_positions(index: Tensor, num_weights: int) -> bool:
    """Whether a tensor can be the index of a layer with this many weights."""
    if index.dtype != torch.int64 or index.ndim != 1 or not bool((index.diff() > 0).all()):
        return False
    return index.numel() == 0 or (int(index[0]) >= 0 and int(index[-1]) < num_weights)


def geometry_of(module: SparseLayer | Dense) -> Geometry:
    """The convolution that a layer computes."""
    if isinstance(module, SparseLayer):
        return module.geometry
    if isinstance(module, nn.Linear):
        return Geometry(module.out_features, module.in_features)
    pairs = (module.kernel_size, module.stride, _padding(module), module.dilation)
    kernel, stride, padding, dilation = ((int(a), int(b)) for a, b in pairs)
    return Geometry(
        *(module.out_channels, module.in_channels, kernel, stride, padding, dilation),
        module.groups,
    )


def bias_of(module: SparseLayer | Dense) -> Any:
    """The bias of a layer or None, which torch's stubs do not know of."""
    return module.bias


def unsupported_because(module: nn.Module) -> str | None:
    """Why the kernels cannot run a layer; None if they can."""
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"{type(module).__name__} has no kernel"
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"padding_mode is {module.padding_mode!r}"
        if isinstance(module.padding, str) and module.padding == "same":
            reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            if any(r % 2 for r in reach):
                return "its padding differs from side to side"
    if module.weight.dtype != torch.float32:
        return f"its weights are {module.weight.dtype}"
    if module.weight.device.type != "cpu":
        return f"its weights are on {module.weight.device}"
    return None


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    """Padding in numbers."""
    if not isinstance(module.padding, str):
        return int(module.padding[0]), int(module.padding[1])
    if module.padding == "valid":
        return 0, 0
    a, b = (d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return a, b


def compact_layer(module: Dense, index: Tensor, way: Way | None = None) -> SparseLayer:
    """A layer with the weights of `module` at `index`; the bias is shared.

    Args:
        module: A convolution or linear layer that the kernels can run.
        index: Ascending flat positions of its active weights.
        way: How it is run; default: by its shape and density.
    """
    weight = module.weight.detach()
    # A logical order, whatever the memory format of the weight.
    values = weight.contiguous().view(-1)[index].clone()
    return SparseLayer(
        geometry_of(module), tuple(weight.shape), index, values, bias_of(module), way
    )


def dense_layer(layer: SparseLayer) -> Dense:
    """The plain layer with the same numbers; the bias is shared."""
    g = layer.geometry
    module: Dense
    has_bias = layer.bias is not None
    # On no device: initial weights would be drawn and thrown away.
    with torch.device("meta"):
        if layer.is_linear:
            module = nn.Linear(g.in_channels, g.out_channels, bias=has_bias)
        else:
            module = nn.Conv2d(
                *(g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, g.dilation),
                *(g.groups, has_bias),
            )
    module.weight = nn.Parameter(layer.dense_weight())
    module.register_parameter("bias", layer.bias)
    module.train(layer.training)
    return module


def default_way(geometry: Geometry, density: float, rows: int = 0) -> Way:
    """A good way without measuring; see docs for the measurements behind it.

    Args:
        geometry: The convolution.
        density: Share of its weights that is active.
        rows: Height of the maps, if known.
    """
    wide = geometry.kernel == (1, 1) and geometry.stride == (1, 1) and rows <= 1
    wide = wide or 0 < rows <= 2
    if wide:
        tiling = Tiling(0, 1, 8)
        return Way(tiling, tiling, tiling, wide=True)
    if density > 0.6:
        dense = Tiling(0, 2, 2, 4)
        return Way(dense, dense, Tiling(16, 1, 8), wide=False)
    block = 16 if density > 0.2 else 32 if density >= 0.05 else 0
    tiling = Tiling(block, 4, 4) if 0 < rows <= 4 else Tiling(block, 1, 8)
    return Way(tiling, tiling, tiling, wide=False)
