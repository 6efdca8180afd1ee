"""The rows of a gradient table, their exact mean, and how they follow a rewiring."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.correction.columns import Columns, Masked, columns_from, columns_of, grown, route
from equipoise.correction.rows import (
    Precision,
    check_precision,
    new_row,
    read_row,
    row_bytes,
    write_row_,
)
from equipoise.points import Named, position_owners, trainable

Key = int | str


class Stored(NamedTuple):
    """One row as it is read: numbers at the current columns, and where they mean something.

    Args:
        vector: Shape ``(num_padded,)``; zero where it means nothing.
        valid: Bool of the same shape; None for everywhere.
    """

    vector: Tensor
    valid: Tensor | None


@dataclass
class _Row:
    """A stored gradient and the version of the columns that it was stored with."""

    data: Tensor
    version: int


class Ledger:
    """Stored gradients by key.

    Rows are not touched by a rewiring: each remembers the columns that it was stored with and is
    carried to the current ones when it is read. Every column knows since when it has been active
    without a break; a row that is older means nothing there and does not enter the mean there. So
    over the rows that count, the differences from the mean add up to zero, column by column.

    Args:
        model: Whose gradients are stored.
        masks: Of that model, or None.
        precision: Of the entries.
        folder: For rows in files, or None.

    Raises:
        ValueError: The precision is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Masked | None,
        *,
        precision: Precision,
        folder: Path | None,
    ) -> None:
        check_precision(precision)
        self._model = model
        self._masks = masks
        self._precision: Precision = precision
        self._folder = folder
        self.dtype = _wide_dtype(model)
        self._columns: Columns | None = None
        self._seen: list[object] = []
        self._owners: list[tuple[nn.Module, str]] = []
        self._past: dict[int, Columns] = {}
        self._routes: dict[int, Tensor] = {}
        self._rows: dict[Key, _Row] = {}
        self._counts: Counter[int] = Counter()
        self._version = 0
        self._youngest = 0
        self._births = torch.zeros(0, dtype=torch.int64)
        self._sums = torch.zeros(0, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def columns(self) -> Columns:
        """The columns as of the last `follow`."""
        assert self._columns is not None
        return self._columns

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(row.data.numel() for row in self._rows.values())

    def clear(self) -> None:
        """Forgets all rows."""
        self._rows.clear()
        self._counts.clear()
        self._past.clear()
        self._routes.clear()
        self._births.fill_(self._version)
        self._youngest = self._version
        self._sums.zero_()

    def follow(self, parameters: Mapping[str, nn.Parameter] | None = None) -> Columns:
        """The columns of the model as it is now; after a rewiring, all that depends on them.

        Args:
            parameters: Those of the model that can be trained, where the caller has them.
        """
        known = trainable(self._model) if parameters is None else parameters
        now: list[object] = [*known.values()]
        if not _are(now, self._seen[: len(now)]):
            self._owners = position_owners(self._model)
        masks = {} if self._masks is None else self._masks.masks
        now += masks.values()
        now += [getattr(module, buffer) for module, buffer in self._owners]
        if self._columns is None or not _are(now, self._seen):
            self._seen = now
            self._take_(columns_of(self._model, masks))
        return self.columns

    def gather(self, gradients: Named) -> Tensor:
        """Gradients by name as one vector; overwritten by the next call."""
        room = self.columns.room("gathered", self.dtype)
        self.columns.gather_into(room, gradients)
        return room.vector

    def mean(self) -> Tensor:
        """Of the rows that count, column by column; zero where none does."""
        if not self._rows:
            return torch.zeros_like(self._sums, dtype=self.dtype)
        if self._is_settled():
            return (self._sums / len(self._rows)).to(self.dtype)
        per_birth = [0] * (self._version + 1)
        for version, count in self._counts.items():
            per_birth[version] = count
        for version in range(self._version, 0, -1):  # a row counts for all columns before it
            per_birth[version - 1] += per_birth[version]
        counts = torch.tensor(per_birth, dtype=torch.float64).clamp_min_(1.0)
        return (self._sums / counts.to(self._sums.device)[self._births]).to(self.dtype)

    def read(self, key: Key) -> Stored | None:
        """The row of a key at the current columns, or None."""
        row = self._rows.get(key)
        if row is None:
            return None
        vector = read_row(row.data, self._precision, self.dtype)
        if row.version == self._version:
            return Stored(vector, None)
        if row.version not in self._routes:
            self._routes[row.version] = route(self._past[row.version], self.columns)
        vector = vector[self._routes[row.version]]
        if self._youngest <= row.version:
            return Stored(vector.masked_fill_(self.columns.padding, 0.0), None)
        valid = (self._births <= row.version) & ~self.columns.padding
        # Not multiplied: what was stored where it means nothing may be anything.
        return Stored(vector.masked_fill_(~valid, 0.0), valid)

    @staticmethod
    def difference(stored: Stored, mean: Tensor) -> Tensor:
        """A row minus the mean, where it counts; zero elsewhere."""
        difference = stored.vector - mean
        return difference if stored.valid is None else difference.mul_(stored.valid)

    def store(self, key: Key, vector: Tensor, before: Stored | None) -> None:
        """Replaces the row of a key.

        Args:
            key: Of the row.
            vector: Shape ``(num_padded,)``, finite.
            before: What `read` gives for this key now.
        """
        row = self._rows.get(key)
        if row is None:
            data = new_row(
                row_bytes(self.columns.num_padded, self._precision, self.dtype),
                vector.device,
                self._file(len(self._rows)),
            )
            row = self._rows[key] = _Row(data, self._version)
        else:
            self._uncount_(row.version)
        written = write_row_(row.data, vector, self._precision)
        self._sums += written
        if before is not None:
            self._sums -= before.vector
        row.version = self._version
        self._counts[self._version] += 1

    def state_dict(self) -> dict[str, Any]:
        """Rows, their versions, columns, and the sums over the rows."""
        columns = {version: past.ids for version, past in self._past.items()}
        if self._columns is not None:
            columns[self._version] = self._columns.ids
        return {
            "precision": self._precision,
            "names": list(trainable(self._model)),
            "rows": {key: row.data for key, row in self._rows.items()},
            "versions": {key: row.version for key, row in self._rows.items()},
            "version": self._version,
            "columns": columns,
            "births": self._births,
            "sums": self._sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: The state is of another model or precision; then nothing of it is loaded.
        """
        if state["precision"] != self._precision:
            raise ValueError(
                f"the table was stored in {state['precision']}, expected {self._precision}; "
                "make it with the precision that it was saved with."
            )
        try:
            if state["names"] != list(trainable(self._model)):
                raise ValueError("other trainable parameters")
            columns = {int(v): columns_from(self._model, i) for v, i in state["columns"].items()}
            self._check(columns, state)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the stored gradients do not fit this model ({error}); "
                "load them into the model that they were saved from."
            ) from error
        self._version = int(state["version"])
        self._columns = columns.pop(self._version, None)
        self._past, self._routes, self._seen = columns, {}, []
        device = state["births"].device if self._columns is None else self._columns.places.device
        self._births = state["births"].to(device).clone()
        self._youngest = int(self._births.max()) if self._births.numel() else 0
        self._sums = state["sums"].to(device).clone()
        self._rows = {}
        for number, (key, data) in enumerate(state["rows"].items()):
            row = new_row(data.numel(), device, self._file(number))
            self._rows[key] = _Row(row.copy_(data), int(state["versions"][key]))
        self._counts = Counter(row.version for row in self._rows.values())

    def _check(self, columns: Mapping[int, Columns], state: Mapping[str, Any]) -> None:
        """Refuses rows of another length, or without the columns that they were stored with."""
        for key, data in state["rows"].items():
            version = state["versions"][key]
            if version not in columns:
                raise ValueError(f"row {key} has no columns")
            size = row_bytes(columns[version].num_padded, self._precision, self.dtype)
            if data.dtype != torch.uint8 or tuple(data.shape) != (size,):
                raise ValueError(f"row {key} has another length")

    def _file(self, number: int) -> Path | None:
        """Where a row is kept."""
        return None if self._folder is None else self._folder / f"row-{number:06d}.bin"

    def _is_settled(self) -> bool:
        """Whether every row counts in every column."""
        return min(self._counts) >= self._youngest

    def _uncount_(self, version: int) -> None:
        """A row of this version is about to be replaced; forgets columns that no row needs."""
        self._counts[version] -= 1
        if self._counts[version] == 0:
            del self._counts[version]
            if version != self._version:
                del self._past[version]
                self._routes.pop(version, None)

    def _take_(self, new: Columns) -> None:
        """Moves what belongs to columns to other ones."""
        old, self._columns = self._columns, new
        if old is not None and torch.equal(old.ids, new.ids) and old.same_form(new):
            return
        self._routes.clear()
        if old is not None:
            old.rest()
        device = new.places.device
        if old is None or not old.same_form(new):
            # Other parameters than before: nothing that was stored has a place.
            self.dtype = _wide_dtype(self._model)
            self._births = torch.full((new.num_padded,), self._version, device=device)
            self._sums = torch.zeros(new.num_padded, dtype=torch.float64, device=device)
            self.clear()
            return
        if self._counts[self._version]:
            self._past[self._version] = old
        else:
            del self._counts[self._version]
        self._version += 1
        source, missing = route(old, new), grown(old, new)
        self._births = self._births[source].masked_fill_(missing, self._version)
        self._births.masked_fill_(new.padding, 0)
        self._youngest = self._version if bool(missing.any()) else self._youngest
        self._sums = self._sums[source].masked_fill_(missing | new.padding, 0.0)


def _wide_dtype(model: nn.Module) -> torch.dtype:
    """In which gradients are computed: single precision, or double for double parameters."""
    kinds = {p.dtype for p in trainable(model).values()}
    return torch.float64 if torch.float64 in kinds else torch.float32


def _are(one: list[object], other: list[object]) -> bool:
    """Whether two lists hold the same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
