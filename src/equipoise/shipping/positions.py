"""Positions of active entries, packed: pure functions in both directions.

A bitmask spends one bit on every entry. The two delta encodings spend one code on every active
entry instead, the number of inactive entries before it, and so win where few are active.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Encoding = Literal["bitmask", "delta8", "delta16"]

ENCODINGS: tuple[Encoding, ...] = ("bitmask", "delta8", "delta16")

_CODES: dict[str, torch.dtype] = {"delta8": torch.uint8, "delta16": torch.uint16}
# The largest code is an escape: so many inactive entries, and then no active one.
_ESCAPES: dict[str, int] = {"delta8": 2**8 - 1, "delta16": 2**16 - 1}


def encoded_sizes(positions: Tensor, num_entries: int) -> dict[Encoding, int]:
    r"""Bytes that the positions take in every encoding, found without encoding them.

    With :math:`n` entries, and gaps :math:`g_i` of inactive entries before every active one and
    at the end, a bitmask takes :math:`\lceil n / 8 \rceil` bytes, and codes of :math:`b` bits
    take :math:`\frac{b}{8} \sum_i \bigl(1 + \lfloor g_i / (2^b - 1) \rfloor\bigr)`.

    Args:
        positions: Ascending, in [0, `num_entries`), int64, one dimension.
        num_entries: Of the whole tensor, active or not.

    Returns:
        Bytes by name of the encoding.

    Example:
        >>> encoded_sizes(torch.tensor([2, 300]), 1000)
        {'bitmask': 125, 'delta8': 6, 'delta16': 6}
    """
    gaps = _gaps(positions, num_entries)
    sizes: dict[Encoding, int] = {"bitmask": -(-num_entries // 8)}
    for name in ENCODINGS[1:]:
        num_codes = gaps.numel() + int((gaps // _ESCAPES[name]).sum())
        sizes[name] = num_codes * _CODES[name].itemsize
    return sizes


def encode_positions(positions: Tensor, num_entries: int, encoding: Encoding) -> Tensor:
    """Packs the positions of the active entries of a flattened tensor.

    "bitmask" packs eight entries in a byte, the first in the lowest bit, and fills up with
    zeros. "delta8" and "delta16" write the number of inactive entries before every active one,
    and at last the number after all of them, as unsigned codes of 8 and 16 bits; the largest
    code stands for as many inactive entries that another code follows. So the codes also say how
    many entries there are, and a wrong shape is found out.

    Args:
        positions: Ascending, in [0, `num_entries`), int64, one dimension, on the CPU.
        num_entries: Of the whole tensor, active or not.
        encoding: One of `ENCODINGS`.

    Returns:
        One dimension: uint8 for "bitmask" and "delta8", uint16 for "delta16".

    Example:
        >>> encode_positions(torch.tensor([0, 2, 9]), 10, "bitmask")
        tensor([5, 2], dtype=torch.uint8)
        >>> encode_positions(torch.tensor([2, 300]), 1000, "delta8")
        tensor([  2, 255,  42, 255, 255, 189], dtype=torch.uint8)
    """
    if encoding == "bitmask":
        mask = np.zeros(num_entries, dtype=np.bool_)
        mask[positions.numpy()] = True
        return torch.from_numpy(np.packbits(mask, bitorder="little"))
    escape = _ESCAPES[encoding]
    gaps = _gaps(positions, num_entries)
    num_escapes = gaps // escape
    last = (num_escapes + 1).cumsum(0) - 1
    codes = torch.full((int(last[-1]) + 1,), escape)
    codes[last] = gaps - escape * num_escapes
    return codes.to(_CODES[encoding])


def decode_positions(
    encoded: Tensor, num_entries: int, num_active: int, encoding: Encoding
) -> Tensor:
    """The inverse of `encode_positions`; takes nothing on trust.

    Args:
        encoded: What was packed, on the CPU.
        num_entries: Of the whole tensor; memory is taken only for what `encoded` bears out.
        num_active: How many positions there must be.
        encoding: One of `ENCODINGS`.

    Returns:
        Positions, ascending, int64, shape (`num_active`,).

    Raises:
        ValueError: `encoded` is not what `encode_positions` makes of `num_active` positions
            among `num_entries` entries; the message says in a few words why.

    Example:
        >>> packed = encode_positions(torch.tensor([2, 300]), 1000, "delta16")
        >>> decode_positions(packed, 1000, 2, "delta16")
        tensor([  2, 300])
    """
    wanted = torch.uint8 if encoding == "bitmask" else _CODES[encoding]
    if encoded.dtype != wanted or encoded.ndim != 1:
        raise ValueError(
            f"a {encoding} of {encoded.ndim} dimensions and {encoded.dtype}, expected 1 "
            f"and {wanted}"
        )
    if encoding == "bitmask":
        positions = _from_bitmask(encoded, num_entries)
    else:
        positions = _from_codes(encoded, num_entries, _ESCAPES[encoding])
    if positions.numel() != num_active:
        raise ValueError(f"{positions.numel()} positions for {num_active} values")
    return positions


def _gaps(positions: Tensor, num_entries: int) -> Tensor:
    """Inactive entries before every active one, and after the last."""
    before = torch.full((1,), -1)
    return torch.cat([before, positions, torch.full((1,), num_entries)]).diff() - 1


def _from_bitmask(packed: Tensor, num_entries: int) -> Tensor:
    """Positions of the ones."""
    if packed.numel() != -(-num_entries // 8):
        raise ValueError(f"a bitmask of {packed.numel()} bytes for {num_entries} entries")
    bits = np.unpackbits(packed.numpy(), bitorder="little")
    if bits[num_entries:].any():
        raise ValueError("a bitmask that goes on after its last entry")
    return torch.from_numpy(np.flatnonzero(bits[:num_entries]))


def _from_codes(encoded: Tensor, num_entries: int, escape: int) -> Tensor:
    """Positions of the active entries, after a look at where the codes end."""
    codes = encoded.to(torch.int64)
    ends = codes != escape
    # What ends a gap adds an entry of its own, the virtual one after the last included.
    reached = (codes + ends).cumsum(0)[ends] - 1
    if codes.numel() == 0 or not bool(ends[-1]) or int(reached[-1]) != num_entries:
        raise ValueError(f"gaps that do not add up to {num_entries} entries")
    return reached[:-1]
