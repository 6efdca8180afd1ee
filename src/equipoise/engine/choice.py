"""The fastest way to run a layer on this machine: timed once, then remembered."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.engine.convolution import (
    Geometry,
    Plan,
    Tiling,
    Way,
    convolve,
    input_gradient,
    weight_gradient,
)
from equipoise.engine.library import kernels, library_path
from equipoise.engine.maps import Form, Maps, convert, new_maps, num_threads, restore

# Tiles worth trying, as (rows, columns); what the registers do not hold the kernels make smaller.
_SINGLE = ((1, 8), (1, 16), (2, 4), (2, 8), (4, 4), (1, 4), (1, 6), (2, 2))
_SHARED = ((1, 8, 2), (2, 4, 2), (2, 2, 4), (1, 4, 4), (2, 3, 4), (2, 2, 2), (1, 2, 2), (1, 1, 4))
_BLOCKS = (0, 16, 32)
_SHARED_FROM = 0.3  # density from which it can pay that rows share what they read
_TIMED_BATCH = 32
_REPEATS = 3
_FINALISTS = 4
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Timed:
    """The fastest way found for a layer, and what it took, per sample of a training batch.

    Args:
        way: How the kernels run it.
        seconds: Their forward pass, input gradient and weight gradient.
        torch_seconds: The same by torch with the dense weight, conversions of its maps included.
    """

    way: Way
    seconds: float
    torch_seconds: float


class Memory:
    """Ways that were found before on this machine, in a file of the user's cache.

    A file that is damaged or of another version is as good as none.

    Args:
        path: The file; None to remember for this object's life only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path is not None:
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                found = None
            if isinstance(found, dict):
                self._known = found

    def find(self, key: str) -> Timed | None:
        """What is remembered under a key, if it makes sense."""
        try:
            entry = self._known[key]
            times = float(entry["seconds"]), float(entry["torch_seconds"])
            return Timed(way_from(entry["way"]), *times)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def number(self, key: str) -> float | None:
        """A number that is remembered under a key."""
        value = self._known.get(key)
        return float(value) if isinstance(value, int | float) else None

    def keep(self, key: str, value: Timed | float) -> None:
        """Remembers; a file that cannot be written is no reason to stop."""
        self._known[key] = asdict(value) if isinstance(value, Timed) else value
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
            partial.write_text(json.dumps(self._known, indent=1) + "\n", encoding="utf-8")
            partial.replace(self._path)
        except OSError:
            self._path = None


def way_from(plain: Mapping[str, Any]) -> Way:
    """The inverse of `dataclasses.asdict`, for what was stored; the kernels trust a way.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is of another type.
        ValueError: No kernel can run it.
    """
    parts = {
        name: Tiling(**{k: int(v) for k, v in plain[name].items()})
        for name in ("forward", "input", "weight")
    }
    for tiling in parts.values():
        sizes = (tiling.block + 1, tiling.rows, tiling.columns)
        if tiling.group not in (1, 2, 4) or not all(1 <= size <= _LARGEST for size in sizes):
            raise ValueError(f"{tiling} is no way to run a layer; delete it to have one timed.")
    return Way(**parts, wide=bool(plain["wide"]))


def machine_memory() -> Memory:
    """The memory of this machine, this build of the kernels and this number of threads."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Memory(Path(root) / "equipoise" / f"ways-{_machine()}.json")


def _machine() -> str:
    """A short name that differs wherever timings would."""
    path = library_path()
    built = path.stat().st_mtime_ns if path is not None else 0
    facts = (kernels().instructions, _processor(), num_threads(), built, torch.__version__)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _processor() -> str:
    """Model of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def choose_way(
    geometry: Geometry, positions: Tensor, rows: int, columns: int, batch: int, memory: Memory
) -> Timed:
    """The fastest way to run a layer forward and backward.

    Args:
        geometry: The layer.
        positions: Of its active weights.
        rows: Height of its input maps.
        columns: Their width.
        batch: Samples in a training batch.
        memory: Asked first, told afterwards.
    """
    samples = max(1, min(batch, _TIMED_BATCH))
    density = positions.numel() / geometry.num_weights
    size = "x".join(map(str, (*geometry.weight_shape, *geometry.stride, *geometry.padding)))
    more = "x".join(map(str, (*geometry.dilation, geometry.groups, rows, columns)))
    key = f"{size}/{more}/{batch}/{round(4 * math.log2(max(density, 1e-9)))}"
    known = memory.find(key)
    if known is not None:
        return known
    found = [
        _fastest(geometry, positions, rows, columns, batch if wide else samples, density, wide)
        for wide in _orders(rows, columns)
    ]
    seconds, way = min(found, key=lambda pair: pair[0])
    best = Timed(way, seconds, _torch_seconds(geometry, rows, columns, samples))
    memory.keep(key, best)
    return best


def _orders(rows: int, columns: int) -> Iterator[bool]:
    """Whether maps of this size may lie wide, or must."""
    points = rows * columns
    if points > 1:
        yield False
    # A list for single positions has an entry for each of them, so it grows with the map.
    if points <= 4:
        yield True


def _tilings(rows: int, columns: int, *, density: float, channels: int, wide: bool) -> list[Tiling]:
    """Tilings worth timing for maps of this size."""
    blocks = [b for b in _BLOCKS if b < channels]
    if wide:
        tiles = [Tiling(b, 1, c) for b in blocks for c in (8, 4, 16)]
        shared = [Tiling(b, 1, c, g) for b in blocks for c, g in ((4, 4), (8, 2), (2, 4))]
    else:
        fitting = [t for t in _SINGLE if t[0] <= rows and t[1] <= columns] or [(1, 1)]
        tiles = [Tiling(b, *tile) for b in blocks for tile in fitting]
        groups = [t for t in _SHARED if t[0] <= rows and t[1] <= columns]
        shared = [Tiling(b, *tile) for b in blocks for tile in groups]
    return tiles + shared if density >= _SHARED_FROM else tiles


def _fastest(
    geometry: Geometry,
    positions: Tensor,
    rows: int,
    columns: int,
    samples: int,
    density: float,
    wide: bool,  # noqa: FBT001
) -> tuple[float, Way]:
    """The best tilings for one order in memory: all for one product, the best of those for two."""
    border = 0 if wide else geometry.border
    plan = Plan(
        *(geometry, positions, Way(wide=wide), rows, columns, border),
        0 if wide else geometry.gradient_border(rows, columns),
    )
    x = _noise(plan.in_form(samples))
    dy = _noise(plan.out_form(samples, plan.gradient_border))
    values = torch.full((positions.numel(),), 0.01)
    channels = max(geometry.in_channels, geometry.out_channels)
    tilings = _tilings(*plan.out, density=density, channels=channels, wide=wide)

    def run_forward(tiling: Tiling) -> Callable[[], object]:
        made = replace(plan, way=replace(plan.way, forward=tiling, weight=tiling))
        return lambda: convolve(made, values, x, 0)

    def run_input(tiling: Tiling) -> Callable[[], object]:
        made = replace(plan, way=replace(plan.way, input=tiling))
        return lambda: input_gradient(made, values, dy)

    def run_weight(tiling: Tiling) -> Callable[[], object]:
        made = replace(plan, way=replace(plan.way, forward=tiling, weight=tiling))
        return lambda: weight_gradient(made, x, dy)

    forward = _ranked(tilings, run_forward)
    finalists = [tiling for _, tiling in forward[:_FINALISTS]]
    single = [tiling for _, tiling in forward if tiling.group == 1][:_FINALISTS]
    backward = _ranked(finalists, run_input)
    weight = _ranked({*finalists, *single}, run_weight)
    way = Way(forward[0][1], backward[0][1], weight[0][1], wide)
    return (forward[0][0] + backward[0][0] + weight[0][0]) / samples, way


def _ranked(
    tilings: Iterable[Tiling], make: Callable[[Tiling], Callable[[], object]]
) -> list[tuple[float, Tiling]]:
    """Tilings by their shortest time; one that is far behind is not timed again."""
    found: list[tuple[float, Tiling]] = []
    best = math.inf
    for tiling in tilings:
        run = make(tiling)
        run()  # makes the list
        shortest = math.inf
        for _ in range(_REPEATS):
            start = time.perf_counter()
            run()
            shortest = min(shortest, time.perf_counter() - start)
            if shortest > 1.3 * best:
                break
        best = min(best, shortest)
        found.append((shortest, tiling))
    return sorted(found, key=lambda pair: pair[0])


def _torch_seconds(geometry: Geometry, rows: int, columns: int, samples: int) -> float:
    """Seconds per sample by torch, with the dense weight and the faster memory format."""
    out = geometry.output(rows, columns)
    plans = [
        (
            torch.rand(samples, geometry.in_channels, rows, columns).contiguous(memory_format=kind),
            torch.rand(samples, geometry.out_channels, *out).contiguous(memory_format=kind),
            torch.rand(geometry.weight_shape).contiguous(memory_format=kind),
        )
        for kind in (torch.contiguous_format, torch.channels_last)
    ]
    sides = (geometry.stride, geometry.padding, geometry.dilation)

    def run(x: Tensor, dy: Tensor, weight: Tensor) -> None:
        torch.conv2d(x, weight, None, *sides, geometry.groups)
        torch.ops.aten.convolution_backward(
            *(dy, x, weight, None, *sides, False, (0, 0), geometry.groups, (True, True, False))
        )

    inner, outer = (
        Form(samples, geometry.in_channels, rows, columns),
        Form(samples, geometry.out_channels, *out),
    )
    maps = _noise(inner), _noise(outer)

    def change_layout() -> None:
        for each in maps:
            convert(restore(each), each.form)

    best = min(_shortest(partial(run, *plan)) for plan in plans)
    return (best + _shortest(change_layout)) / samples


def _shortest(run: Callable[[], object]) -> float:
    """The least of a few timings, after a first call that does not count."""
    run()
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _noise(form: Form) -> Maps:
    """Maps with numbers that are neither zero nor denormal."""
    maps = new_maps(form)
    maps.data.fill_(0.5)
    if form.border:
        # The memory goes back to the pool, whose borders are zero.
        b = form.border
        for side in (slice(0, b), slice(-b, None)):
            maps.data[:, :, side] = 0.0
            maps.data[:, :, :, side] = 0.0
    return maps
