"""What a corrected step, a refresh and the masks cost, as ratios to a plain step.

All variants run interleaved in one process, so that a slow moment of the machine hits them alike;
each figure is the median of the ratios of its rounds.

    python benchmarks/step_cost.py --model vgg16 --width 0.25 --rounds 15
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from equipoise import Constant, GradientCorrector, LossCovariance, NoCorrection, Topology, rigl
from equipoise.models import create, model_names

Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=model_names(), default="vgg16")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    batch = (torch.randn(chosen.batch_size, 3, 32, 32), torch.randint(10, (chosen.batch_size,)))
    variants = {
        name: build(chosen.model, chosen.width, batch)
        for name, build in (
            ("plain step", plain_step),
            ("step through NoCorrection", uncorrected_step),
            ("corrected step (SVRG)", corrected_step),
            ("refresh, per batch (AGENT)", refresh_batch),
            ("plain step with masks (RigL, 90 %)", masked_step),
        )
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(chosen.rounds + 2):
        for name, work in variants.items():
            start = time.process_time()
            work()
            if round_number >= 2:  # the first rounds warm caches and allocators
                times[name].append(time.process_time() - start)
    base = times["plain step"]
    print(
        f"{chosen.model}, width {chosen.width:g}, batch {chosen.batch_size}, "
        f"{chosen.threads} thread(s), torch {torch.__version__}, {chosen.rounds} rounds"
    )
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, base, strict=True)]
        low, high = min(ratios), max(ratios)
        print(
            f"{name:36s} {statistics.median(ratios):5.2f}  [{low:.2f}, {high:.2f}]  "
            f"median {1000 * statistics.median(found):7.1f} ms of CPU"
        )


def parts(model: str, width: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = create(model, num_classes=10, width=width)
    return net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)


def plain_step(model: str, width: float, batch: Batch) -> Callable[[], None]:
    net, optimizer = parts(model, width)

    def work() -> None:
        optimizer.zero_grad()
        cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()

    return work


def uncorrected_step(model: str, width: float, batch: Batch) -> Callable[[], None]:
    net, optimizer = parts(model, width)
    corrector = NoCorrection(net, lambda b: cross_entropy(net(b[0]), b[1]))

    def work() -> None:
        optimizer.zero_grad()
        corrector.backward(batch)
        optimizer.step()

    return work


def corrected_step(model: str, width: float, batch: Batch) -> Callable[[], None]:
    net, optimizer = parts(model, width)
    corrector = GradientCorrector(net, lambda b: cross_entropy(net(b[0]), b[1]), Constant(1.0))
    corrector.refresh([batch])

    def work() -> None:
        optimizer.zero_grad()
        corrector.backward(batch)
        optimizer.step()

    return work


def refresh_batch(model: str, width: float, batch: Batch) -> Callable[[], None]:
    net, _ = parts(model, width)
    coefficient = LossCovariance()
    coefficient.smoothed = 0.5
    corrector = GradientCorrector(net, lambda b: cross_entropy(net(b[0]), b[1]), coefficient)
    two = [(x, y) for x, y in zip(batch[0].chunk(2), batch[1].chunk(2), strict=True)]
    corrector.refresh(two)

    def work() -> None:
        corrector.refresh(two)

    return work


def masked_step(model: str, width: float, batch: Batch) -> Callable[[], None]:
    net, optimizer = parts(model, width)
    topology = Topology(net, sparsity=0.9, rewiring=rigl(1_000_000))
    topology.attach(optimizer)

    def work() -> None:
        optimizer.zero_grad()
        cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()

    return work


if __name__ == "__main__":
    main()
