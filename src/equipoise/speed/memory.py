"""How much memory a training step takes at its worst, each network in a process of its own.

Only the system sees all of it: tensors, the kernels' maps and index lists, and whatever the
libraries keep. A process is therefore started, and it reports itself in one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from equipoise.speed.steps import ArmKind, Case, build_training, optimizer_bytes, weight_bytes

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_STEPS = 3


@dataclass(frozen=True)
class Footprint:
    """Memory of one network in training, in bytes.

    Args:
        weights: Of parameters and buffers, the positions of active weights among them.
        optimizer: Of the optimizer's state.
        masks: Of the masks, one byte a weight, active or not.
        idle: Of the process before there was a network.
        peak: Of the process at the worst moment of a few training steps.
        preparing: Of the process at the worst moment before them; timing layers is part of it.
    """

    weights: int
    optimizer: int
    masks: int
    idle: int
    peak: int
    preparing: int


def measure_footprint(case: Case, kind: ArmKind, *, threads: int) -> Footprint:
    """Trains a few steps in a new process and tells what it took.

    Args:
        case: What is measured.
        kind: How it is run.
        threads: Processor threads.

    Raises:
        RuntimeError: The process failed, or this system does not tell the memory of a process.
    """
    if not _STATUS.exists():
        raise RuntimeError("peak memory is read from /proc, which this system does not have.")
    question = json.dumps({"case": asdict(case), "kind": kind, "threads": threads})
    done = subprocess.run(
        [sys.executable, "-m", __name__, question],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"measuring the memory of {case.model} ({kind}) failed: {last}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that this process holds while it works; Linux only.

    Args:
        work: Called once.
    """
    _CLEAR.write_text("5", encoding="ascii")  # the peak is from now on
    work()
    return _status("VmHWM")


def held_now() -> int:
    """Bytes that this process holds; Linux only."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """One line of what the system says about this process."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def _give_back() -> None:
    """Returns to the system what is not in use any more, so that only what is counts."""
    from equipoise.engine.memory import POOL

    gc.collect()
    POOL.release()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _report(question: dict[str, Any]) -> Footprint:
    """Measures in this process."""
    import torch

    torch.set_num_threads(question["threads"])
    warm = torch.nn.Conv2d(1, 1, 3)
    warm(torch.zeros(1, 1, 8, 8)).sum().backward()
    idle = held_now()
    preparing = 0
    made: list[Any] = []

    def prepare() -> None:
        made.append(build_training(Case(**question["case"]), question["kind"]))

    preparing = peak_of(prepare)
    (training,) = made
    _give_back()

    def steps() -> None:
        for _ in range(_STEPS):
            training.step()

    peak = peak_of(steps)
    return Footprint(
        weights=weight_bytes(training.network),
        optimizer=optimizer_bytes(training.optimizer),
        masks=sum(mask.numel() for mask in training.topology.masks.values()),
        idle=idle,
        peak=peak,
        preparing=preparing,
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_report(json.loads(sys.argv[1])))) + "\n")
