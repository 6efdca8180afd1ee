"""Stored gradients of the batches of one epoch: written by a refresh, read by its steps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.correction.batches import tensors_in
from equipoise.points import Named


class GradientCache:
    r"""One row of numbers a batch, in memory or in a file that is mapped into memory.

    .. math:: \text{bytes} = m \cdot d_a \cdot 4

    for m batches and :math:`d_a` stored entries (of masked and compact weights the active ones, of
    all others every one) in single precision. A row is found by a fingerprint of its batch, so
    that no batch ever gets the gradient of another.

    Args:
        file: Where the rows go; None keeps them in memory. The file is overwritten by every
            refresh and holds nothing that a run could not compute again.

    Example:
        >>> cache = GradientCache()
        >>> cache.append({"w": torch.tensor([1.0, 2.0])}, fingerprint(torch.ones(3)))
        >>> cache.read(fingerprint(torch.ones(3)))
        {'w': tensor([1., 2.])}
        >>> cache.num_bytes
        8
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._rows: list[Tensor] = []
        self._mapped: Tensor | None = None
        self._shapes: dict[str, list[int]] = {}
        self._prints: list[list[float]] = []
        self._dtype = torch.float32
        self._lost = False
        self._places: dict[tuple[float, ...], int] = {}

    def __len__(self) -> int:
        """Number of batches that were stored."""
        return len(self._prints)

    @property
    def num_bytes(self) -> int:
        """Size of all rows."""
        return len(self) * self._width * self._dtype.itemsize

    @property
    def _width(self) -> int:
        """Numbers in a row."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def clear(self) -> None:
        """Forgets everything."""
        self._rows, self._mapped, self._shapes, self._prints = [], None, {}, []
        self._lost = False
        self._places = {}

    def append(self, gradient: Named, batch_print: list[float]) -> None:
        """Stores the gradient of the next batch.

        Args:
            gradient: By name; the names and shapes of the first one are those of all.
            batch_print: `fingerprint` of its batch.

        Raises:
            ValueError: It has a name that the first gradient did not have.
        """
        if not self._prints:
            self._shapes = {name: list(tensor.shape) for name, tensor in gradient.items()}
            dtypes = {tensor.dtype for tensor in gradient.values()} | {torch.float32}
            self._dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        new = sorted(gradient.keys() - self._shapes.keys())
        if new:
            raise ValueError(
                f"the gradient of {new[0]} is there for some batches only, so batch gradients "
                "cannot be stored; leave the cache out."
            )
        row = self._as_row(gradient)
        if self._file is None:
            self._rows.append(row)
        else:
            self._write(row, new_file=not self._prints)
        self._places[tuple(batch_print)] = len(self._prints)
        self._prints.append(batch_print)

    def read(self, batch_print: list[float]) -> Named | None:
        """The gradient that was stored for one batch.

        Args:
            batch_print: `fingerprint` of the batch that is trained on.

        Returns:
            By name, not to be changed; None if the batch was not among those of the refresh, or
            if the file with the rows is not there any more.
        """
        position = self._places.get(tuple(batch_print))
        row = None if position is None else self._row(position)
        return None if row is None else self._as_gradient(row)

    def state_dict(self) -> dict[str, Any]:
        """What is stored; of a file, by what it is recognised."""
        return {
            "shapes": dict(self._shapes),
            "prints": list(self._prints),
            "dtype": self._dtype,
            "rows": list(self._rows),
            "token": self._token() if self._file is not None and self._prints else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Rows that lay in a file that is gone or was written again stay lost: `read` then says None,
        and what they held has to be computed again.
        """
        self.clear()
        self._shapes, self._prints = dict(state["shapes"]), list(state["prints"])
        self._dtype, self._rows = state["dtype"], list(state["rows"])
        self._places = {tuple(known): place for place, known in enumerate(self._prints)}
        if self._prints and not self._rows:
            self._lost = self._file is None or self._token() != state["token"]

    def _as_row(self, gradient: Named) -> Tensor:
        """All numbers behind each other, on the CPU; zeros for a name without a gradient."""
        parts = [
            gradient[name].detach().reshape(-1).to("cpu", self._dtype)
            if name in gradient
            else torch.zeros(math.prod(shape), dtype=self._dtype)
            for name, shape in self._shapes.items()
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=self._dtype)

    def _as_gradient(self, row: Tensor) -> Named:
        """The inverse of `_as_row`."""
        parts = row.split([math.prod(shape) for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def _write(self, row: Tensor, *, new_file: bool) -> None:
        """Adds a row to the file."""
        assert self._file is not None
        self._mapped = None
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if new_file:
            # Another file, so that a mapping of the old one keeps its own pages.
            self._file.unlink(missing_ok=True)
        with self._file.open("ab") as file:
            file.write(row.numpy().tobytes())

    def _row(self, position: int) -> Tensor | None:
        """One row, from memory or from the file."""
        if self._rows:
            return self._rows[position]
        if self._lost or self._file is None:
            return None
        if self._mapped is None:
            self._mapped = self._map()
        return None if self._mapped is None else self._mapped[position]

    def _map(self) -> Tensor | None:
        """The file as a matrix; None if it does not hold all rows."""
        assert self._file is not None
        shape = (len(self), self._width)
        size = math.prod(shape) * self._dtype.itemsize
        if not self._file.exists() or self._file.stat().st_size != size:
            return None
        flat = torch.from_file(
            str(self._file), shared=True, size=math.prod(shape), dtype=self._dtype
        )
        return flat.view(shape)

    def _token(self) -> str | None:
        """Tells rows from others: a digest of the first, of the last and of how many there are."""
        if self._mapped is None:
            self._mapped = self._map()
        if self._mapped is None:
            return None
        digest = hashlib.blake2b(repr(tuple(self._mapped.shape)).encode(), digest_size=16)
        for row in (self._mapped[0], self._mapped[-1]):
            digest.update(row.contiguous().numpy().tobytes())
        return digest.hexdigest()


def fingerprint(batch: Any) -> list[float]:
    """Numbers that tell a batch from another: the shape and the sum of each of its tensors.

    Example:
        >>> fingerprint((torch.ones(2, 3), torch.tensor([4, 5])))
        [2.0, 3.0, 6.0, 2.0, 9.0]
    """
    found: list[float] = []
    for tensor in tensors_in(batch):
        found += [float(side) for side in tensor.shape]
        found.append(float(tensor.sum(dtype=torch.float64)))
    return found
