"""One tensor as the entries of a file, and back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from equipoise.shipping.positions import (
    ENCODINGS,
    decode_positions,
    encode_positions,
    encoded_sizes,
)
from equipoise.shipping.sparse_tensor import SparseTensor, as_bits

# Modules cannot have empty names, so no key of a module's state contains two dots in a row.
VALUES = "..values"
POSITIONS = "..positions"

# Encodings of sparse tensors that are stored dense, because that takes less room.
STORED_DENSE = ("all", "nonzero")

# About what one more entry takes in the header; a few zeros are not worth that.
_ENTRY_BYTES = 128


def chosen_encoding(tensor: SparseTensor) -> str:
    """The encoding in which a tensor takes the least room.

    "all" and "nonzero" are stored dense: every entry is active, or exactly those that are not
    zero, bit for bit. The others are those of `encode_positions`.

    Args:
        tensor: On the CPU.

    Returns:
        One of `STORED_DENSE` and `ENCODINGS`.

    Example:
        >>> [chosen_encoding(SparseTensor.from_dense(torch.eye(size))) for size in (2, 100)]
        ['nonzero', 'delta8']
    """
    if tensor.num_active == tensor.num_entries:
        return "all"
    itemsize = tensor.dtype.itemsize
    sizes: dict[str, int] = {}
    # A dense tensor tells its active entries by themselves, if none of them is zero.
    if bool((as_bits(tensor.values) != 0).all()):
        sizes["nonzero"] = tensor.num_entries * itemsize
    values = tensor.num_active * itemsize
    for name, positions in encoded_sizes(tensor.positions, tensor.num_entries).items():
        sizes[name] = values + positions + _ENTRY_BYTES
    return min(sizes, key=sizes.__getitem__)


def pack(value: Tensor | SparseTensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What stands in a file for one tensor; the tensor is not changed.

    Args:
        value: Dense or sparse, on the CPU.

    Returns:
        JSON values that say how to read it back, and its entries by the suffix of their names.

    Example:
        >>> pack(torch.ones(2))
        ({'encoding': 'plain'}, {'': tensor([1., 1.])})
    """
    if isinstance(value, Tensor):
        return {"encoding": "plain"}, {"": value}
    encoding = chosen_encoding(value)
    layout: dict[str, Any] = {"encoding": encoding}
    for packed in ENCODINGS:
        if encoding == packed:
            positions = encode_positions(value.positions, value.num_entries, packed)
            layout["shape"] = list(value.shape)
            return layout, {VALUES: value.values, POSITIONS: positions}
    return layout, {"": value.dense()}


def unpack(name: str, layout: dict[str, Any], entries: dict[str, Tensor]) -> Tensor | SparseTensor:
    """The inverse of `pack`; takes nothing on trust.

    Args:
        name: Of the tensor.
        layout: What `pack` said about it.
        entries: All that are left of the file; those of this tensor are taken out.

    Returns:
        The tensor, dense or sparse.

    Raises:
        ValueError: The parts contradict each other.
        KeyError: One of them is missing.

    Example:
        >>> unpack("weight", {"encoding": "plain"}, {"weight": torch.ones(2)})
        tensor([1., 1.])
    """
    encoding = layout["encoding"]
    if encoding == "plain":
        return entries.pop(name)
    if encoding in STORED_DENSE:
        dense = entries.pop(name)
        mask = torch.ones_like(dense, dtype=torch.bool) if encoding == "all" else None
        return SparseTensor.from_dense(dense, mask)
    if encoding not in ENCODINGS:
        raise ValueError(f"{name!r} has the unknown encoding {encoding!r}")
    shape = tuple(layout["shape"])
    whole = all(type(length) is int and length >= 0 for length in shape)
    # Also with lengths of zero left out, or torch could not make the tensor.
    if not whole or math.prod(max(length, 1) for length in shape) >= 2**63:
        raise ValueError(f"{name!r} has the impossible shape {shape}")
    values, positions = entries.pop(name + VALUES), entries.pop(name + POSITIONS)
    try:
        decoded = decode_positions(positions, math.prod(shape), values.numel(), encoding)
    except ValueError as error:
        raise ValueError(f"{name!r} has {error}") from error
    return SparseTensor(shape, decoded, values)
