"""What a step corrected by a gradient table costs, as a ratio to the plain masked step.

All variants run in turns in one process, so that a slow moment of the machine hits them alike;
each figure is the median of the ratios of its rounds. Every round rewires nothing, but the columns
are looked for as they always are.

    python benchmarks/table_cost.py --model vgg16 --width 0.25 --rounds 15
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch.nn.functional import cross_entropy

from equipoise import GradientTable, Topology
from equipoise.correction.rows import Precision
from equipoise.models import create, model_names

KEYS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=model_names(), default="vgg16")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1, help="in a row, in every round")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    variants = {"plain": build(chosen, None)}
    variants |= {name: build(chosen, name) for name in get_args(Precision)}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(chosen.rounds + 2 * KEYS):
        for name, step in variants.items():
            start = time.perf_counter()
            for _ in range(chosen.steps):
                step()
            if number >= 2 * KEYS:  # by then the table is full and in use
                times[name].append((time.perf_counter() - start) / chosen.steps)
    print(
        f"{chosen.model}, width {chosen.width:g}, batch {chosen.batch_size}, sparsity "
        f"{chosen.sparsity:g}, {chosen.threads} thread(s), torch {torch.__version__}, "
        f"{chosen.rounds} rounds"
    )
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, times["plain"], strict=True)]
        print(
            f"{name:8s} {statistics.median(ratios):6.3f}  [{min(ratios):.3f}, {max(ratios):.3f}]  "
            f"median {1000 * statistics.median(found):8.2f} ms"
        )


def build(chosen: Any, precision: Precision | None) -> Callable[[], None]:
    """One training step of a network of its own, with a table or without."""
    torch.manual_seed(0)
    size = chosen.image_size
    net = create(chosen.model, num_classes=10, width=chosen.width, image_size=size)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    topology = Topology(net, sparsity=chosen.sparsity)
    topology.attach(optimizer)
    batches = [
        (torch.randn(chosen.batch_size, 3, size, size), torch.randint(10, (chosen.batch_size,)))
        for _ in range(KEYS)
    ]
    table = None
    if precision is not None:
        table = GradientTable(
            net, lambda b: cross_entropy(net(b[0]), b[1]), masks=topology, precision=precision
        )
    count = 0

    def step() -> None:
        nonlocal count
        key = count % KEYS
        count += 1
        optimizer.zero_grad()
        if table is None:
            torch.autograd.backward(cross_entropy(net(batches[key][0]), batches[key][1]))
        else:
            table.backward(batches[key], key)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
