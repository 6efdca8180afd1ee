"""The fastest way to run a layer on this machine: timed once, then remembered."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from equipoise.engine.convolution import Geometry, Tiling, Way
from equipoise.engine.library import kernels, library_path, unavailable_because
from equipoise.engine.maps import num_threads
from equipoise.engine.trials import Trials, csr_seconds, fastest_tilings, orders, torch_seconds

_LARGEST = 1 << 20


@dataclass(frozen=True)
class Timed:
    """The fastest way found for a layer, and what it took, per sample of a training batch.

    Args:
        way: How the kernels, or torch's CSR products, run it.
        seconds: Their forward pass, input gradient and weight gradient.
        torch_seconds: The same by torch with the dense weight, conversions of its maps included.
    """

    way: Way
    seconds: float
    torch_seconds: float


Kept = TypeVar("Kept", Timed, float)


class Memory:
    """Ways that were found before on this machine, in a file of the user's cache.

    A file that is damaged or of another version is as good as none. Processes that run side by side
    share it: what one has found is not lost by what another writes, and the first to find the way
    of a layer decides for all, so that runs of one machine are computed alike.

    Args:
        path: The file; None to remember for this object's life only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Any] = self._stored()

    def find(self, key: str) -> Timed | None:
        """What is remembered under a key, if it makes sense."""
        try:
            entry = self._entry(key)
            times = float(entry["seconds"]), float(entry["torch_seconds"])
            return Timed(way_from(entry["way"]), *times)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def number(self, key: str) -> float | None:
        """A number that is remembered under a key, if it is above 0 and finite."""
        value = self._entry(key)
        sensible = isinstance(value, int | float) and 0.0 < value < math.inf
        return float(value) if sensible else None

    def keep(self, key: str, value: Kept) -> Kept:
        """Remembers, unless another process has meanwhile; a file need not be writable.

        Returns:
            What is remembered from now on.
        """
        ours = asdict(value) if isinstance(value, Timed) else value
        self._known |= {key: ours, **self._stored()}
        read = self.find if isinstance(value, Timed) else self.number
        found = cast("Kept | None", read(key))
        if found is None:  # what is stored there makes no sense
            self._known[key], found = ours, value
        self._write()
        return found

    def _entry(self, key: str) -> Any:
        """What this process knows, or else another has found meanwhile; None if nobody does."""
        if key not in self._known:
            self._known |= self._stored()
        return self._known.get(key)

    def _write(self) -> None:
        """All that is known, whole; a file that cannot be written is no reason to stop."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
            partial.write_text(json.dumps(self._known, indent=1) + "\n", encoding="utf-8")
            partial.replace(self._path)
        except OSError:
            self._path = None

    def _stored(self) -> dict[str, Any]:
        """What the file holds."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8")) if self._path else None
        except (OSError, ValueError):
            found = None
        return found if isinstance(found, dict) else {}


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
        known = tiling.group in (1, 2, 4) and tiling.ahead in (0, 1)
        if not known or not all(1 <= size <= _LARGEST for size in sizes):
            raise ValueError(f"{tiling} is no way to run a layer; delete it to have one timed.")
    # What was stored before there was the choice does not speak of it.
    return Way(**parts, wide=bool(plain["wide"]), csr=bool(plain.get("csr", False)))


def machine_memory() -> Memory:
    """The memory of this machine, this build of the kernels and this number of threads."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Memory(Path(root) / "equipoise" / f"ways-{_machine()}.json")


def _machine() -> str:
    """A short name that differs wherever timings would."""
    path = library_path()
    built = path.stat().st_mtime_ns if path is not None else 0
    instructions = kernels().instructions if unavailable_because() is None else None
    facts = (instructions, _processor(), num_threads(), built, torch.__version__)
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
    batch = max(1, batch)
    density = positions.numel() / geometry.num_weights
    size = "x".join(map(str, (*geometry.weight_shape, *geometry.stride, *geometry.padding)))
    more = "x".join(map(str, (*geometry.dilation, geometry.groups, rows, columns)))
    key = f"{size}/{more}/{batch}/{round(4 * math.log2(max(density, 1e-9)))}"
    known = memory.find(key)
    if known is not None:
        return known
    found = [
        fastest_tilings(Trials(geometry, positions, rows, columns, wide=wide), batch, density)
        for wide in orders(rows, columns)
    ]
    seconds, way = min(found, key=lambda pair: pair[0])
    best = Timed(way, seconds, torch_seconds(geometry, rows, columns, batch))
    return memory.keep(key, best)


def choose_csr(geometry: Geometry, positions: Tensor, batch: int, memory: Memory) -> Timed | None:
    """A linear layer without kernels: torch's CSR products, and what they take.

    Args:
        geometry: The layer.
        positions: Of its active weights.
        batch: Samples in a training batch.
        memory: Asked first, told afterwards.

    Returns:
        None if this torch has no such products.
    """
    batch = max(1, batch)
    size = "x".join(map(str, geometry.weight_shape[:2]))
    density = positions.numel() / geometry.num_weights
    key = f"csr/{size}/{batch}/{round(4 * math.log2(max(density, 1e-9)))}"
    known = memory.find(key)
    if known is not None:
        return known
    try:
        found = Timed(Way(csr=True), *csr_seconds(geometry, positions, batch))
    except RuntimeError:  # some builds of torch have them for some processors only
        return None
    return memory.keep(key, found)
