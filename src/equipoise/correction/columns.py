"""Which entries of which gradients one stored gradient consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from equipoise.points import Named, positions_of, trainable

BLOCK = 64
"""Entries that share a scale; a parameter begins at a multiple of it, so no block has two."""

_SPACE = 1 << 40  # more than a parameter has entries, so that numbers of two never meet


class Masked(Protocol):
    """Whoever knows which weights are active; a `Topology` is one."""

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Bool by name of the parameter, True = active; replaced, never changed in place."""
        ...  # pragma: no cover


@dataclass(frozen=True)
class Segment:
    """The entries of one parameter.

    Args:
        name: Of the parameter.
        start: Place of its first entry in a row, a multiple of `BLOCK`.
        size: Number of its entries.
        positions: Of the entries in the flattened parameter, ascending; None if it has no others.
    """

    name: str
    start: int
    size: int
    positions: Tensor | None


class Room:
    """Memory for one vector that is kept from step to step, and its parts, made once.

    Args:
        columns: Of the vector.
        dtype: Of its entries, which are 0 at first.
    """

    def __init__(self, columns: Columns, dtype: torch.dtype) -> None:
        self.vector = torch.zeros(columns.num_padded, dtype=dtype, device=columns.places.device)
        self.parts = columns.split(self.vector)
        self._shaped: list[Tensor] = list(self.parts)

    def shaped(self, number: int, shape: torch.Size) -> Tensor:
        """The entries of one segment, all of its parameter, in the shape of that."""
        part = self._shaped[number]
        if part.shape != shape:
            part = self._shaped[number] = self.parts[number].view(shape)
        return part


class Columns:
    """The active entries of all trainable parameters, as one padded vector.

    Immutable but for memory that is kept from one use to the next, until `rest`.

    Padding is zero in every vector, so sums over whole blocks are sums over entries.

    Args:
        segments: In order, without gaps but for the padding.
        ids: int64, for every entry a number that is the same whenever the same weight is active.
        device: Where the vectors lie.
    """

    def __init__(self, segments: tuple[Segment, ...], ids: Tensor, device: torch.device) -> None:
        self.segments = segments
        self.ids = ids
        self.num_entries = ids.numel()
        self.num_blocks = sum(_blocks(s.size) for s in segments)
        self.num_padded = BLOCK * self.num_blocks
        ranges = [torch.arange(s.start, s.start + s.size) for s in segments]
        self.places = (torch.cat(ranges) if ranges else ids.new_zeros(0)).to(device)
        self.padding = torch.ones(self.num_padded, dtype=torch.bool, device=device)
        self.padding[self.places] = False
        counts = torch.tensor([_blocks(s.size) for s in segments], dtype=torch.int64)
        self.group_of_block = torch.arange(len(segments)).repeat_interleave(counts).to(device)
        # What a parameter has, and the padding behind it.
        self._sizes = [n for s in segments for n in (s.size, BLOCK * _blocks(s.size) - s.size)]
        self._offsets: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._rooms: dict[tuple[str, torch.dtype], Room] = {}

    def same_form(self, other: Columns) -> bool:
        """Whether vectors of the two have their parameters at the same places."""
        key = [(s.name, s.start, s.size) for s in self.segments]
        return key == [(s.name, s.start, s.size) for s in other.segments]

    def room(self, purpose: str, dtype: torch.dtype) -> Room:
        """The memory for one purpose; its vector holds until the next one for it is made."""
        key = purpose, dtype
        if key not in self._rooms:
            self._rooms[key] = Room(self, dtype)
        return self._rooms[key]

    def rest(self) -> None:
        """Gives up the memory that is kept from one use to the next."""
        self._rooms.clear()
        self._offsets.clear()

    def gather(self, gradients: Named, dtype: torch.dtype) -> Tensor:
        """The entries of gradients by name; zero for a parameter without one.

        Returns:
            Shape ``(num_padded,)``.
        """
        room = Room(self, dtype)
        self.gather_into(room, gradients)
        return room.vector

    def gather_into(self, room: Room, gradients: Named) -> None:
        """The same, to memory that there is; overwrites all of it."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for number, segment in enumerate(self.segments):
            gradient = gradients.get(segment.name)
            if gradient is None:
                room.parts[number].zero_()
            elif segment.positions is None:
                targets.append(room.shaped(number, gradient.shape))
                sources.append(gradient)
            else:
                memory, offsets = self._in_memory(segment, gradient)
                targets.append(room.parts[number])
                sources.append(memory.index_select(0, offsets))
        if targets:
            torch._foreach_copy_(targets, sources)

    def put_(self, gradients: Named, room: Room) -> None:
        """Writes a vector into the gradients of some parameters, where they are active.

        Args:
            gradients: By name; overwritten where they are active, and left as they are elsewhere.
            room: Holds the vector.
        """
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for number, segment in enumerate(self.segments):
            gradient = gradients.get(segment.name)
            if gradient is None or segment.size == 0:
                continue
            if segment.positions is None:
                targets.append(gradient)
                sources.append(room.shaped(number, gradient.shape))
                continue
            memory, offsets = self._in_memory(segment, gradient)
            memory.scatter_(0, offsets, room.parts[number].to(gradient.dtype))
            if memory.data_ptr() != gradient.data_ptr():
                gradient.copy_(memory.view(gradient.shape))
        if targets:
            torch._foreach_copy_(targets, sources)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The entries of every parameter in a vector, as views of it."""
        return tuple(torch.split_with_sizes(vector, self._sizes)[::2])

    def _in_memory(self, segment: Segment, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """A gradient flat, in the order of its memory where it can be, and the places in that."""
        assert segment.positions is not None
        if gradient.is_contiguous():
            return gradient.view(-1), segment.positions
        if gradient.ndim != 4 or not gradient.is_contiguous(memory_format=torch.channels_last):
            return gradient.reshape(-1), segment.positions
        key = segment.name, tuple(gradient.shape)
        if key not in self._offsets:
            order = torch.arange(gradient.numel(), device=gradient.device)
            order = order.view(gradient.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            self._offsets[key] = order.reshape(-1)[segment.positions]
        return gradient.permute(0, 2, 3, 1).reshape(-1), self._offsets[key]

    def group_sums(self, blocks: Tensor) -> Tensor:
        """Sums of numbers by block over every parameter.

        Args:
            blocks: Shape ``(k, num_blocks)``.

        Returns:
            float64, shape ``(k, num_segments)``.
        """
        shape = len(blocks), len(self.segments)
        sums = torch.zeros(shape, dtype=torch.float64, device=blocks.device)
        return sums.index_add_(1, self.group_of_block, blocks.double())


def columns_of(model: nn.Module, masks: Mapping[str, Tensor]) -> Columns:
    """The active entries of a model as it is now.

    Args:
        model: Its trainable parameters are the segments, in their order.
        masks: By name; parameters without a mask of their shape are active everywhere. A
            parameter of which only the active entries exist needs none.

    Returns:
        Columns on the device of the parameters.

    Example:
        >>> columns = columns_of(nn.Linear(2, 2), {"weight": torch.eye(2).bool()})
        >>> columns.num_entries, columns.num_padded
        (4, 128)
    """
    compact = positions_of(model)
    segments, ids, start = [], [], 0
    device = torch.device("cpu")
    for number, (name, parameter) in enumerate(trainable(model).items()):
        device = parameter.device
        mask = masks.get(name)
        positions = None
        if mask is not None and mask.shape == parameter.shape and name not in compact:
            positions = mask.to(device).flatten().nonzero().squeeze(1)
        if positions is not None and positions.numel() == parameter.numel():
            positions = None
        size = parameter.numel() if positions is None else positions.numel()
        known = compact.get(name, positions)
        if known is None:
            known = torch.arange(size, device=device)
        segments.append(Segment(name, start, size, positions))
        ids.append(known + number * _SPACE)
        start += BLOCK * _blocks(size)
    together = torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64)
    return Columns(tuple(segments), together, device)


def columns_from(model: nn.Module, ids: Tensor) -> Columns:
    """The inverse of `Columns.ids`, for a model with the same trainable parameters.

    Raises:
        ValueError: The numbers are not those of this model.
    """
    segments, start, device = [], 0, torch.device("cpu")
    parameters, compact = trainable(model), positions_of(model)
    counts = torch.bincount(ids // _SPACE, minlength=len(parameters)).tolist()
    for number, ((name, parameter), size) in enumerate(
        zip(parameters.items(), counts, strict=True)
    ):
        device = parameter.device
        positions = (ids[ids // _SPACE == number] - number * _SPACE).to(device)
        whole = name in compact or size == parameter.numel()
        if not whole and size and int(positions[-1]) >= parameter.numel():
            raise ValueError(f"the table does not fit the parameter {name}")
        segments.append(Segment(name, start, size, None if whole else positions))
        start += BLOCK * _blocks(size)
    return Columns(tuple(segments), ids.to(device), device)


def route(old: Columns, new: Columns) -> Tensor:
    """For every place of `new`, the place in `old` of the same weight; 0 where there is none.

    Returns:
        int64, shape ``(new.num_padded,)``. A place without a counterpart is told apart by the
        caller, who knows when a weight was grown.
    """
    found = torch.searchsorted(old.ids, new.ids).clamp_(max=max(old.num_entries - 1, 0))
    places = torch.zeros(new.num_padded, dtype=torch.int64, device=new.places.device)
    places[new.places] = old.places[found]
    return places


def grown(old: Columns, new: Columns) -> Tensor:
    """Which places of `new` hold a weight that `old` has not; bool, shape ``(num_padded,)``."""
    missing = torch.zeros(new.num_padded, dtype=torch.bool, device=new.places.device)
    if old.num_entries == 0:
        missing[new.places] = True
        return missing
    found = torch.searchsorted(old.ids, new.ids).clamp_(max=old.num_entries - 1)
    missing[new.places] = old.ids[found] != new.ids
    return missing


def _blocks(size: int) -> int:
    """Blocks that so many entries need."""
    return -(-size // BLOCK)
