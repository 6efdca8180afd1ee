"""The lists that the kernels follow: made from positions, or from the list before a rewiring."""

from __future__ import annotations

from ctypes import byref, c_int64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.engine.library import ListArgument, RequestArgument, kernels

if TYPE_CHECKING:
    from equipoise.engine.convolution import Geometry, Pair, Tiling

_MOST_ADDED = 0.25  # with a larger share of new weights, a list is made afresh as fast


@dataclass(frozen=True)
class SparseList:
    """A list of the kernels, the arrays that it points to, and the positions that it is for."""

    starts: Tensor
    slots: Tensor | None
    tap_rows: Tensor
    offsets: Tensor
    sources: Tensor
    last_row: int
    blocks: int
    group: int
    positions: Tensor
    repeats: bool  # whether a weight may stand in several entries

    @property
    def rows(self) -> int:
        """Rows, counted in groups."""
        return -(-self.last_row // self.group)

    def argument(self, scale: int) -> Any:
        """For the kernels; `scale` multiplies the offsets."""
        return byref(
            ListArgument(
                self.starts.data_ptr(),
                None if self.slots is None else self.slots.data_ptr(),
                self.tap_rows.data_ptr(),
                self.offsets.data_ptr(),
                self.sources.data_ptr(),
                self.rows,
                self.blocks,
                self.tap_rows.numel(),
                self.offsets.numel(),
                self.sources.numel(),
                self.group,
                scale,
                int(self.repeats),
            )
        )


@dataclass(frozen=True)
class Change:
    """How positions of active weights became others.

    Args:
        places: For each of the old ones its number among the new, or -1; int32.
        added: Positions that are new, int64, ascending.
        added_places: Their numbers, int32.
    """

    places: Tensor
    added: Tensor
    added_places: Tensor


def change_between(before: Tensor, now: Tensor) -> Change:
    """How some positions became others; both ascend, int64.

    Example:
        >>> change_between(torch.tensor([1, 4, 6]), torch.tensor([1, 5, 6])).places
        tensor([ 0, -1,  2], dtype=torch.int32)
    """
    places = torch.empty(before.numel(), dtype=torch.int32)
    added = torch.empty(now.numel(), dtype=torch.int64)
    added_places = torch.empty(now.numel(), dtype=torch.int32)
    number = kernels().compare(
        *(before.data_ptr(), before.numel(), now.data_ptr(), now.numel()),
        *(places.data_ptr(), added.data_ptr(), added_places.data_ptr()),
    )
    return Change(places, added[:number], added_places[:number])


class Changes:
    """How positions became what they are now; found once for all lists of a layer."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor, Change]] = {}

    def between(self, before: Tensor, now: Tensor) -> Change:
        """As `change_between`."""
        key = before.data_ptr(), now.data_ptr()
        if key not in self._known:  # the tensors are kept, so that their addresses stay theirs
            self._known[key] = before, now, change_between(before, now)
        return self._known[key][2]


class Former:
    """The lists of a plan before a rewiring; each is taken once.

    Args:
        lists: By their names in the plan.
        changes: Shared by the plans of a layer.
    """

    def __init__(self, lists: dict[str, SparseList], changes: Changes) -> None:
        self.lists = lists
        self._changes = changes

    def take(self, name: str, positions: Tensor) -> tuple[SparseList, Change] | None:
        """A list and how its positions became these; None if it is not worth following."""
        known = self.lists.pop(name, None)
        if known is None:
            return None
        change = self._changes.between(known.positions, positions)
        if not self.lists:
            self._changes = Changes()  # lets go of what nobody needs any more
        return (known, change) if self.worth_following(change, len(positions)) else None

    def worth_following(self, change: Change, active: int) -> bool:
        """Whether a list of so many weights is made faster from the one before the change."""
        return change.added.numel() <= _MOST_ADDED * active


def make_list(
    geometry: Geometry,
    positions: Tensor,
    strides: tuple[int, int, int],
    tiling: Tiling,
    *,
    transposed: bool = False,
    phase: Pair = (0, 0),
    maps: tuple[Pair, Pair] | None = None,
) -> SparseList:
    """A list over the active weights at `positions`.

    Args:
        geometry: The convolution.
        positions: Ascending flat positions in the logical weight, int64.
        strides: Of channel, row and column of the maps that are read.
        tiling: How it is cut.
        transposed: Whether it reads the output's gradient.
        phase: For transposed lists, which rows and columns of the input it writes.
        maps: Sizes of the read and the written maps; then the list has a row for every position.
    """
    request = _request(geometry, strides, tiling, transposed=transposed, phase=phase, maps=maps)
    rows = geometry.in_channels if transposed else geometry.out_channels
    channels = geometry.out_channels if transposed else geometry.in_channels
    rows *= _reach(maps)
    blocks, groups = -(-channels // request.block), -(-rows // tiling.group)
    starts, slots = _marks(blocks * groups * request.taps, tiling.group)
    tap_rows = torch.empty(request.taps, dtype=torch.int32)
    # As many entries as there can be: what one weight reaches is one position, or all of a map.
    most = positions.numel() * _reach(maps)
    offsets, sources = _entries(most, most * _width(tiling.group))
    number = kernels().make_list(
        *(geometry.argument(), byref(request), positions.data_ptr(), positions.numel()),
        *(groups, blocks, starts.data_ptr(), _address(slots), tap_rows.data_ptr()),
        *(offsets.data_ptr(), sources.data_ptr()),
    )
    offsets, sources = _used(number, offsets, sources, slots, tiling.group)
    return SparseList(
        *(starts, slots, tap_rows, offsets, sources, rows, blocks, tiling.group, positions),
        repeats=_reach(maps) > 1,
    )


def updated_list(
    known: SparseList,
    change: Change,
    geometry: Geometry,
    positions: Tensor,
    strides: tuple[int, int, int],
    tiling: Tiling,
    *,
    transposed: bool = False,
    phase: Pair = (0, 0),
    maps: tuple[Pair, Pair] | None = None,
) -> SparseList:
    """What `make_list` makes, in a fraction of the time, from the list of other positions.

    Args:
        known: Made for the same convolution and request; not changed.
        change: From its positions to these.
        geometry: As in `make_list`, like all that follows.
        positions: See there.
        strides: See there.
        tiling: See there.
        transposed: See there.
        phase: See there.
        maps: See there.
    """
    request = _request(geometry, strides, tiling, transposed=transposed, phase=phase, maps=maps)
    starts = torch.empty_like(known.starts)
    slots = None if known.slots is None else torch.empty_like(known.slots)
    added = change.added.numel()
    offsets, sources = _entries(
        known.offsets.numel() + added * _reach(maps),
        known.sources.numel() + added * _reach(maps) * _width(tiling.group),
    )
    number = kernels().update_list(
        *(geometry.argument(), byref(request), known.argument(1), change.places.data_ptr()),
        *(change.added.data_ptr(), change.added_places.data_ptr(), added),
        *(starts.data_ptr(), _address(slots), offsets.data_ptr(), sources.data_ptr()),
    )
    offsets, sources = _used(number, offsets, sources, slots, tiling.group)
    return SparseList(
        *(starts, slots, known.tap_rows, offsets, sources),
        *(known.last_row, known.blocks, known.group, positions, known.repeats),
    )


def _request(
    geometry: Geometry,
    strides: tuple[int, int, int],
    tiling: Tiling,
    *,
    transposed: bool,
    phase: Pair,
    maps: tuple[Pair, Pair] | None,
) -> RequestArgument:
    """Which list of a convolution, for the kernels."""
    channels = geometry.out_channels if transposed else geometry.in_channels
    read, written = maps if maps is not None else ((0, 0), (0, 0))
    block = min(tiling.block, channels) or channels
    taps = 1 if maps is not None else geometry.kernel[0]
    return RequestArgument(
        *(int(transposed), int(maps is not None), (c_int64 * 2)(*phase), block, tiling.group, taps),
        *(*strides, (c_int64 * 2)(*read), (c_int64 * 2)(*written)),
    )


def _reach(maps: tuple[Pair, Pair] | None) -> int:
    """The largest number of positions that one weight has an entry for."""
    return 1 if maps is None else maps[1][0] * maps[1][1]


def _width(group: int) -> int:
    """Weights of an entry: rows that share one have a weight each; of two, only those that do."""
    return group if group > 2 else 1


def _marks(buckets: int, group: int) -> tuple[Tensor, Tensor | None]:
    """Where parts of a list start among the entries, and for pairs among the weights too."""
    size = buckets * (3 if group == 2 else 1) + 1
    starts = torch.empty(size, dtype=torch.int32)
    return starts, torch.empty_like(starts) if group == 2 else None


def _entries(entries: int, weights: int) -> tuple[Tensor, Tensor]:
    """Room for offsets and sources."""
    return torch.empty(entries, dtype=torch.int32), torch.empty(weights, dtype=torch.int32)


def _used(
    number: int, offsets: Tensor, sources: Tensor, slots: Tensor | None, group: int
) -> tuple[Tensor, Tensor]:
    """The part that was written; most of the room goes back to the system where it is large."""
    if number < 0:
        raise MemoryError("there is not enough memory for the index of a sparse layer.")
    weights = number * _width(group) if slots is None else int(slots[-1])
    found = offsets[:number], sources[:weights]
    return found if 2 * number >= len(offsets) else (found[0].clone(), found[1].clone())


def _address(numbers: Tensor | None) -> int | None:
    return None if numbers is None else numbers.data_ptr()
