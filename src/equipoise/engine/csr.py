"""Linear layers by torch's compressed sparse rows (CSR): the way that needs no kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Pattern:
    """Where a matrix has active weights, as torch's products take it; made once for an index.

    Args:
        index: Ascending flat positions of the active weights; not kept.
        rows: Outputs of the layer.
        columns: Its inputs.

    Example:
        >>> pattern = Pattern(torch.tensor([1, 3]), 2, 3)
        >>> pattern.weight(torch.tensor([5.0, 7.0])).to_dense()
        tensor([[0., 5., 0.],
                [7., 0., 0.]])
    """

    def __init__(self, index: Tensor, rows: int, columns: int) -> None:
        _say_once_that_csr_is_beta()
        self.shape = (rows, columns)
        self._rows, self._columns = _small(index // columns), _small(index % columns)
        self._starts = _starts(self._rows, rows)

    def weight(self, values: Tensor) -> Tensor:
        """The matrix, outputs by inputs, with these active weights."""
        return _matrix(self._starts, self._columns, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """The same, inputs by outputs."""
        order, starts, rows = self._turned
        return _matrix(starts, rows, values[order], self.shape[::-1])

    @cached_property
    def _turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Order of the active weights by columns, where each column starts, and their rows."""
        order = torch.argsort(self._columns, stable=True)
        return order, _starts(self._columns, self.shape[1]), self._rows[order]


class _CsrLinear(torch.autograd.Function):
    """Products of transposed matrices (features x samples), as CSR wants them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        pattern: Pattern,
        gather: Callable[[Callable[[], Tensor]], None] | None,
    ) -> Tensor:
        columns = x.t().contiguous()
        ctx.pattern, ctx.gather = pattern, gather
        ctx.save_for_backward(columns, values)
        return (pattern.weight(values) @ columns).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        columns, values = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        dy = gradient.t().contiguous()
        for_x = for_values = None
        if ctx.needs_input_grad[1]:
            zeros = pattern.weight(torch.zeros_like(values))
            for_values = torch.sparse.sampled_addmm(zeros, dy, columns.t()).values()
            if ctx.gather is not None:
                ctx.gather(lambda: dy @ columns.t())
        if ctx.needs_input_grad[0]:
            for_x = (pattern.transposed(values) @ dy).t()
        return for_x, for_values, None, None


def csr_linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    gather: Callable[[Callable[[], Tensor]], None] | None = None,
) -> Tensor:
    r"""A linear layer by its active weights only.

    .. math:: y = x W^\top + b, \qquad
        \frac{\partial L}{\partial \text{values}} =
        \left(\frac{\partial L}{\partial y}^{\!\top} x\right)_{\text{index}}

    First derivatives only. The result lies in memory as features by samples, which is what the
    next such layer reads; elementwise functions and BatchNorm keep it so.

    Args:
        x: Shape (samples, inputs), of the dtype of `values`.
        values: The active weights, in the order of the pattern's index.
        bias: Shape (outputs,), or None.
        pattern: Where they are.
        gather: Is offered the dense weight gradient in the backward pass; None if nobody asks.

    Returns:
        Shape (samples, outputs).

    Raises:
        ValueError: `x` has another number of features than the layer.

    Example:
        >>> pattern = Pattern(torch.tensor([1, 3]), 2, 3)
        >>> csr_linear(torch.ones(1, 3), torch.tensor([5.0, 7.0]), None, pattern)
        tensor([[5., 7.]])
    """
    if x.shape[1] != pattern.shape[1]:
        raise ValueError(
            f"the input has {x.shape[1]} channels or features, expected {pattern.shape[1]}; "
            "give the layer what it was made for."
        )
    y: Tensor = _CsrLinear.apply(x, values, pattern, gather)
    return y if bias is None else y + bias


def _matrix(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A CSR matrix; the pattern is right by how it was made."""
    return torch.sparse_csr_tensor(starts, columns, values.detach(), shape, check_invariants=False)


def _starts(ids: Tensor, count: int) -> Tensor:
    """Where each of so many rows starts, in an order by rows."""
    ends = torch.bincount(ids, minlength=count).cumsum(0)
    return _small(torch.cat([ends.new_zeros(1), ends]))


def _small(numbers: Tensor) -> Tensor:
    """As 32-bit integers, which the products take as they are."""
    return numbers.to(torch.int32)


@cache
def _say_once_that_csr_is_beta() -> None:
    """Lets torch say it where nobody hears; it says so once a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nothing = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(nothing, nothing[:0], torch.zeros(0), (0, 1))
