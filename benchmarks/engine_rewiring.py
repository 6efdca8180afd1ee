"""What a rewiring costs in the engine: lists made afresh or updated, and BSR-Net's steps.

    python benchmarks/engine_rewiring.py --sparsities 0.9 0.99

BSR-Net rewires after every step, so its steps are the hardest test. Both kinds of lists are made
for the same positions in turns; a step of the engine takes turns with one under masks in either
memory format. Times are those of the processor.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equipoise import to_engine
from equipoise.engine.convolution import Plan
from equipoise.engine.layers import SparseLayer
from equipoise.engine.lists import Changes, Former
from equipoise.models import create, model_names
from equipoise.speed.laps import Arm, Lap, interleaved, ratio, seconds
from equipoise.speed.machine import describe_machine, in_words, load_average
from equipoise.topology import ConnectivitySampling

RESULTS = Path(__file__).parent / "results"
CHANGES = (0.001, 0.01, 0.05, 0.3)
KINDS = ("engine", "masks", "masks, channels last")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=model_names(), default="vgg16")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9, 0.99])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    before, lines = load_average(), []
    for sparsity in chosen.sparsities:
        arms = {kind: training(chosen, sparsity, kind) for kind in KINDS}
        laps = interleaved(
            {kind: Arm(arm.step) for kind, arm in arms.items()},
            rounds=chosen.rounds,
            warmup=chosen.warmup,
        )
        lines.append(step_line(sparsity, laps))
        print(lines[-1], flush=True)
        arms["engine"].gradients()  # makes the lists of the last rewiring
        layers = [m for m in arms["engine"].model.modules() if isinstance(m, SparseLayer)]
        for share in CHANGES:
            lines.append(list_line(sparsity, share, layers, chosen.rounds))
            print(lines[-1], flush=True)
    out = chosen.out or RESULTS / f"{datetime.datetime.now(datetime.UTC).date()}-rewiring.md"
    head = f"{in_words(describe_machine())}, 1 thread; load average {before} before, "
    head += f"{load_average()} after.\n\n{chosen.model}, batch {chosen.batch_size}, BSR-Net's "
    head += f"connectivity; CPU time, medians of {chosen.rounds} rounds in turns.\n\n"
    out.write_text(head + "".join(f"- {line}\n" for line in lines), encoding="utf-8")


class Training(NamedTuple):
    """A network whose connections are sampled anew after every step."""

    model: nn.Module
    gradients: Callable[[], object]
    step: Callable[[], object]


def training(chosen: argparse.Namespace, sparsity: float, kind: str) -> Training:
    """The network, run in one of the three ways."""
    torch.manual_seed(0)
    model = create(chosen.model, num_classes=10)
    topology = ConnectivitySampling(
        model, sparsity=sparsity, total_steps=10_000, steps_per_epoch=390
    )
    x, y = torch.randn(chosen.batch_size, 3, 32, 32), torch.randint(10, (chosen.batch_size,))
    if kind == "engine":
        model = to_engine(model, topology, x, engine="sparse")
    elif kind != "masks":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    topology.attach(optimizer)

    def gradients() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()

    def step() -> None:
        gradients()
        optimizer.step()

    return Training(model, gradients, step)


def step_line(sparsity: float, laps: dict[str, list[Lap]]) -> str:
    """Steps of the engine against those of the faster memory format."""
    cpu = {kind: seconds(found, "cpu") for kind, found in laps.items()}
    faster = min(KINDS[1:], key=lambda kind: statistics.median(cpu[kind]))
    times = ratio(cpu[faster], cpu["engine"])
    masks, engine = (1e3 * statistics.median(cpu[kind]) for kind in (faster, "engine"))
    return (
        f"{100 * sparsity:g} %: a step takes {masks:.0f} ms with {faster}, {engine:.0f} ms in the "
        f"engine; {times.median:.2f} [{times.low:.2f}, {times.high:.2f}] times as fast"
    )


def list_line(sparsity: float, share: float, layers: list[SparseLayer], rounds: int) -> str:
    """All lists of the network after a rewiring of a share of the weights."""
    generator = torch.Generator().manual_seed(0)
    afresh: list[float] = []
    updated: list[float] = []
    for _ in range(rounds):
        pairs = [pair for layer in layers for pair in rewired(layer, share, generator)]
        for way, found in ((0, updated), (1, afresh)):
            start = time.process_time()
            for pair in pairs:
                make_lists(pair[way])
            found.append(1e3 * (time.process_time() - start))
    a, b = statistics.median(afresh), statistics.median(updated)
    return (
        f"{100 * sparsity:g} %, {100 * share:g} % of the weights rewired: lists take {a:.1f} ms "
        f"made afresh, {b:.1f} ms updated"
    )


def rewired(
    layer: SparseLayer, share: float, generator: torch.Generator
) -> Iterator[tuple[Plan, Plan]]:
    """For the plans of a layer: one of other positions that knows its lists, and one without."""
    size = layer.dense_weight().numel()
    now = changed(layer.index, size, share, generator)
    plans: dict[Any, Plan] = layer.plans._by_index[layer.index]
    for plan in plans.values():
        make_lists(plan)
        former = Former(dict(plan.made), Changes())
        afresh = replace(plan, positions=now, former=None)
        yield replace(plan, positions=now, former=former), afresh


def changed(index: Tensor, size: int, share: float, generator: torch.Generator) -> Tensor:
    """As many positions, a share of them others."""
    number = min(max(1, round(share * index.numel())), size - index.numel())
    flags = torch.zeros(size, dtype=torch.bool)
    flags[index] = True
    free = (~flags).nonzero().squeeze(1)
    flags[index[torch.randperm(index.numel(), generator=generator)[:number]]] = False
    flags[free[torch.randperm(free.numel(), generator=generator)[:number]]] = True
    return flags.nonzero().squeeze(1)


def make_lists(plan: Plan) -> Any:
    """Every list that a step needs."""
    return plan.forward_list, plan.weight_list, plan.phases


if __name__ == "__main__":
    main()
