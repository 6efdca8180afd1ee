"""The state of a network as a small file, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from equipoise.shipping.container import damaged, read_container, write_container
from equipoise.shipping.packing import STORED_DENSE, chosen_encoding, pack, unpack
from equipoise.shipping.sparse_tensor import SparseTensor


@dataclass(frozen=True, kw_only=True)
class SparseFileSummary:
    """What a file came to.

    Args:
        bytes: Of the file.
        dense_bytes: Of the same tensors, dense and in their own types, tied ones once.
        num_sparse: Tensors of which only the active entries are kept as such.
        num_active: Active entries of those.

    Example:
        >>> SparseFileSummary(bytes=25, dense_bytes=100, num_sparse=1, num_active=2).share
        0.25
    """

    bytes: int
    dense_bytes: int
    num_sparse: int
    num_active: int

    @property
    def share(self) -> float:
        """Bytes of the file per byte of the dense tensors; infinite where there are none."""
        return self.bytes / self.dense_bytes if self.dense_bytes else math.inf


@final
@dataclass(frozen=True, eq=False)
class SparseState:
    """The state of a network as a file holds it.

    Args:
        tensors: By name in the order of the state that was saved: dense, or active entries only.
            Names that were tied share one object.
        metadata: What was saved along with them.

    Example:
        >>> tensor = SparseTensor((3,), torch.tensor([1]), torch.tensor([4.0]))
        >>> SparseState({"weight": tensor}, {}).dense()["weight"]
        tensor([0., 4., 0.])
    """

    tensors: Mapping[str, Tensor | SparseTensor]
    metadata: Mapping[str, Any]

    def dense(self) -> dict[str, Tensor]:
        """The state that was saved, dense, bit for bit: for ``Module.load_state_dict``.

        Returns:
            By name; names that were tied share one tensor. Tensors that are dense here already
            are not copied.
        """
        made: dict[int, Tensor] = {}
        for value in self.tensors.values():
            if id(value) not in made:
                made[id(value)] = value.dense() if isinstance(value, SparseTensor) else value
        return {name: made[id(value)] for name, value in self.tensors.items()}

    def masks(self) -> dict[str, Tensor]:
        """The masks of the sparse tensors by name, Bool, True = active."""
        return {n: v.mask() for n, v in self.tensors.items() if isinstance(v, SparseTensor)}


def save_sparse(
    path: Path,
    state: Mapping[str, Tensor | SparseTensor],
    *,
    masks: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SparseFileSummary:
    """Saves the state of a sparse network in a small safetensors file.

    Of a sparse tensor the values of the active entries are kept, in their own type and bit for
    bit, and their positions in whichever encoding is the smallest for it: a bitmask, or gaps of 8
    or 16 bits. Where that would not be smaller, or every entry is active, the tensor is stored
    dense and read back as the same sparse tensor. Dense tensors stand under their own names, so
    that any reader of safetensors sees them; sparse ones under ``NAME..values`` and
    ``NAME..positions``. Every byte is under a checksum; the file is written whole or not at all,
    and the same state makes the same file. Tied tensors are stored once. Nothing given is changed.

    Args:
        path: The file; its folder is made if needed.
        state: Dense tensors, as from ``Module.state_dict``, or `SparseTensor`, on any device.
        masks: Bool, by name in `state`, True = active. Exactly these tensors become sparse, and
            active zeros stay active. None: every tensor of two dimensions and more that takes
            less room so, with its non-zero entries (bit for bit: -0.0 is one).
        metadata: JSON values that are kept along with it.

    Returns:
        Sizes of the file and of the dense tensors.

    Raises:
        ValueError: A mask does not fit, a value outside a mask is not zero, names clash, or
            something cannot be stored.

    Example:
        >>> import tempfile
        >>> state = {"weight": torch.eye(100), "bias": torch.zeros(100)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = save_sparse(Path(folder) / "eye.safetensors", state)
        ...     loaded = load_sparse(Path(folder) / "eye.safetensors")
        >>> summary.num_active, round(summary.share, 2)
        (100, 0.04)
        >>> all(torch.equal(loaded.dense()[name], state[name]) for name in state)
        True
    """
    path = Path(path)
    given = _with_masks(state, masks)
    entries: dict[str, Tensor] = {}
    layout: dict[str, dict[str, Any]] = {}
    first: dict[Any, str] = {}
    kept: list[Tensor | SparseTensor] = []
    for name, value in given.items():
        original = first.setdefault(_identity(state[name]), name)
        if original != name:
            layout[name] = {"same_as": original}
            continue
        kept.append(value)
        layout[name], parts = pack(value)
        for suffix, tensor in parts.items():
            if name + suffix in entries or (suffix and name + suffix in state):
                raise ValueError(
                    f"{name + suffix!r} is the name of two tensors in the file; rename one."
                )
            entries[name + suffix] = tensor
    sparse = [value for value in kept if isinstance(value, SparseTensor)]
    contents = {"tensors": layout, "metadata": dict(metadata or {})}
    return SparseFileSummary(
        bytes=write_container(path, entries, contents),
        dense_bytes=sum(math.prod(value.shape) * value.dtype.itemsize for value in kept),
        num_sparse=len(sparse),
        num_active=sum(value.num_active for value in sparse),
    )


def load_sparse(path: Path) -> SparseState:
    """Loads what `save_sparse` saved, onto the CPU; never executes anything that is in the file.

    No dense tensor is made of a sparse one before `SparseState.dense` is called, and nothing is
    taken on trust: checksums, shapes, positions and values must agree first.

    Args:
        path: The file.

    Returns:
        Tensors in memory of their own, and the metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another kind or version, or damaged.

    Example:
        >>> load_sparse(Path("nowhere.safetensors"))
        Traceback (most recent call last):
        FileNotFoundError: there is no file nowhere.safetensors; check the path.
    """
    path = Path(path)
    entries, contents = read_container(path)
    tensors: dict[str, Tensor | SparseTensor] = {}
    try:
        for name, layout in contents["tensors"].items():
            tied = "same_as" in layout
            tensors[name] = tensors[layout["same_as"]] if tied else unpack(name, layout, entries)
        metadata = dict(contents["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ValueError) else repr(error)
        raise damaged(path, f"its parts contradict each other: {reason}") from error
    if entries:
        raise damaged(path, f"nothing says what {next(iter(entries))!r} is")
    return SparseState(tensors, metadata)


def _with_masks(
    state: Mapping[str, Tensor | SparseTensor], masks: Mapping[str, Tensor] | None
) -> dict[str, Tensor | SparseTensor]:
    """The state with its sparse tensors found, everything on the CPU."""
    for name, value in state.items():
        _check_value(name, value)
    chosen: dict[Any, Tensor] = {}
    for name, mask in (masks or {}).items():
        masked = state.get(name)
        if not isinstance(masked, Tensor):
            what = "is sparse already" if name in state else "is not in the state"
            raise ValueError(f"{name!r} has a mask but {what}; leave its mask out.")
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"the mask of {name!r} is of type {type(mask).__name__}, expected a tensor of "
                "torch.bool; pass what Topology.masks gives."
            )
        if not torch.equal(chosen.setdefault(_identity(masked), mask), mask):
            raise ValueError(f"{name!r} is tied to a tensor with another mask; pass one of them.")
    found: dict[str, Tensor | SparseTensor] = {}
    made: dict[Any, Tensor | SparseTensor] = {}
    for name, value in state.items():
        identity = _identity(value)
        if identity not in made:
            made[identity] = _sparse_or_not(
                name, value, chosen.get(identity), without_mask=masks is None
            )
        found[name] = made[identity]
    return found


def _sparse_or_not(
    name: str, value: Tensor | SparseTensor, mask: Tensor | None, *, without_mask: bool
) -> Tensor | SparseTensor:
    """One value on the CPU, sparse if it has a mask or, where none is needed, gains by it."""
    if isinstance(value, SparseTensor):
        return SparseTensor(value.shape, value.positions.cpu(), value.values.detach().cpu())
    value = value.detach().resolve_conj().resolve_neg().cpu()
    if mask is None and (not without_mask or value.ndim < 2):
        return value
    try:
        sparse = SparseTensor.from_dense(value, None if mask is None else mask.cpu())
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be saved: {error}") from error
    return value if mask is None and chosen_encoding(sparse) in STORED_DENSE else sparse


def _check_value(name: str, value: object) -> None:
    """Refuses what is not a tensor with entries in memory."""
    parts = [value.values, value.positions] if isinstance(value, SparseTensor) else [value]
    for part in parts:
        if not isinstance(part, Tensor):
            raise ValueError(
                f"{name!r} is of type {type(part).__name__}, expected a tensor; leave it out, or "
                "put it into the metadata."
            )
        if part.layout != torch.strided or part.is_meta or part.is_quantized:
            raise ValueError(
                f"{name!r} has no dense entries in memory (layout {part.layout}, device "
                f"{part.device}, {part.dtype}); convert it first."
            )


def _identity(value: Tensor | SparseTensor) -> Any:
    """Equal for values that are the same memory, seen the same way."""
    if isinstance(value, SparseTensor):
        return (value.shape, _identity(value.positions), _identity(value.values))
    if value.numel() == 0:
        return id(value)
    pointer = value.untyped_storage().data_ptr()
    facts = (value.storage_offset(), tuple(value.shape), value.stride(), value.dtype)
    return (value.device, pointer, *facts, value.is_conj(), value.is_neg())
