r"""Stored gradients: few bits an entry, in memory or in files.

A row in ``int8`` or ``int4`` is rounded to the nearest of equally spaced numbers,

.. math:: T_j = s_{\lfloor j / 64 \rfloor}\, q_j, \qquad
          s_k = \max_{j \in k} |x_j| \,/\, q_{\max}

with one scale for every block of 64 entries. Whatever a row holds, the correction is unbiased as
long as the mean is that of what the rows hold; rounding only costs correlation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from equipoise.correction.columns import BLOCK

Precision = Literal["int4", "int8", "bf16", "fp32"]

_LEVELS = {"int8": 127, "int4": 7}


def check_precision(precision: str) -> None:
    """Refuses what is no precision.

    Raises:
        ValueError: With the names that there are.
    """
    if precision not in get_args(Precision):
        raise ValueError(
            f"precision is one of {', '.join(get_args(Precision))}; got {precision!r}; "
            "int8 keeps nearly all of the correlation."
        )


def row_bytes(num_padded: int, precision: Precision, dtype: torch.dtype = torch.float32) -> int:
    r"""Bytes of one stored gradient.

    .. math:: 4 d,\quad 2 d,\quad d + d/32,\quad d/2 + d/32

    for fp32, bf16, int8 and int4, where :math:`d` counts the active entries of all trainable
    parameters, those of every parameter rounded up to a multiple of 64. With double-precision
    parameters, fp32 means their own precision and takes :math:`8 d`.

    Args:
        num_padded: The number :math:`d`.
        precision: Of the entries.
        dtype: In which gradients are computed.

    Example:
        >>> [row_bytes(128_000, precision) for precision in ("fp32", "bf16", "int8", "int4")]
        [512000, 256000, 132000, 68000]
    """
    if precision == "fp32":
        return num_padded * dtype.itemsize
    if precision == "bf16":
        return num_padded * 2
    values = num_padded if precision == "int8" else num_padded // 2
    return values + num_padded // BLOCK * 2


def new_row(num_bytes: int, device: torch.device, file: Path | None) -> Tensor:
    """An empty row, in memory or mapped from a file that is made for it.

    Args:
        num_bytes: From `row_bytes`.
        device: Where the row lies; a file needs the CPU.
        file: None for memory.

    Returns:
        uint8, shape ``(num_bytes,)``.
    """
    if file is None:
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    return torch.from_file(str(file), shared=True, size=num_bytes, dtype=torch.uint8)


def write_row_(row: Tensor, vector: Tensor, precision: Precision) -> Tensor:
    """Stores a vector.

    Args:
        row: From `new_row`; overwritten.
        vector: Shape ``(num_padded,)``, finite.
        precision: As the row was made for.

    Returns:
        What `read_row` will read, in the dtype of `vector`.

    Example:
        >>> row = new_row(row_bytes(64, "int8"), torch.device("cpu"), None)
        >>> vector = torch.zeros(64)
        >>> vector[:2] = torch.tensor([1.0, 0.3])
        >>> [round(x, 3) for x in write_row_(row, vector, "int8")[:2].tolist()]
        [1.0, 0.299]
    """
    if precision == "fp32":
        row.view(vector.dtype).copy_(vector)
        return vector
    if precision == "bf16":
        stored = row.view(torch.bfloat16)
        stored.copy_(vector)
        return stored.to(vector.dtype)
    levels = _LEVELS[precision]
    blocks = vector.view(-1, BLOCK)
    scales = (blocks.abs().amax(dim=1) / levels).to(torch.bfloat16)
    wide = scales.to(vector.dtype).unsqueeze(1)
    # A block of zeros has scale 0; its entries are 0 / tiny = 0.
    numbers = (blocks / wide.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    numbers.clamp_(-levels, levels)
    _put_numbers_(row, numbers, scales, precision)
    return numbers.mul_(wide).view(-1)


def read_row(row: Tensor, precision: Precision, dtype: torch.dtype) -> Tensor:
    """The vector that was stored, as `write_row_` returned it; a new tensor.

    Args:
        row: From `write_row_`; not changed.
        precision: As it was written.
        dtype: Of the result; that of the vector that was stored.

    Returns:
        Shape ``(num_padded,)``.
    """
    if precision == "fp32":
        return row.view(dtype).clone()
    if precision == "bf16":
        return row.view(torch.bfloat16).to(dtype)
    per_block = BLOCK + 2 if precision == "int8" else BLOCK // 2 + 2
    num_blocks = row.numel() // per_block
    scales = row[-2 * num_blocks :].view(torch.bfloat16).to(dtype).unsqueeze(1)
    packed = row[: -2 * num_blocks].view(num_blocks, -1)
    if precision == "int8":
        numbers = packed.view(torch.int8).to(dtype)
    else:
        numbers = torch.cat([packed & 15, packed >> 4], dim=1).to(dtype).sub_(8)
    return numbers.mul_(scales).view(-1)


def _put_numbers_(row: Tensor, numbers: Tensor, scales: Tensor, precision: Precision) -> None:
    """Whole numbers, packed, and after them the scales of their blocks."""
    row[-2 * len(scales) :].view(torch.bfloat16).copy_(scales)
    if precision == "int8":
        row[: -2 * len(scales)].view(torch.int8).view_as(numbers).copy_(numbers)
        return
    unsigned = numbers.add(8).to(torch.uint8)
    low, high = unsigned[:, : BLOCK // 2], unsigned[:, BLOCK // 2 :]
    row[: -2 * len(scales)].view(len(scales), -1).copy_(low | (high << 4))
