"""What gradient correction does to robust sparse training: objectives x correctors, paired seeds.

Every arm is trained and then attacked (PGD, 50 steps from 10 random points unless told otherwise);
arms of one objective share initial weights, masks, data order and the random points of their
attacks. What is there already is not done again, so the work can be cut into several calls, for
example one for each seed; each ends with a table of all seeds it was asked for that are complete.

    python benchmarks/robust.py --out runs/robust --dataset cifar10 --model vgg16 --width 0.25 \
        --sparsity 0.9 --epochs 12 --seeds 0 1 2

writes robust.json and robust.md in that folder. The last two columns are the control for an
advantage of the published code: the same networks with BatchNorm statistics taken anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import torch
from scipy import stats

from equipoise import __version__
from equipoise.arguments import convert
from equipoise.attacks.settings import Attacking
from equipoise.settings import (
    CorrectorName,
    ObjectiveSettings,
    Run,
    setting_types,
    with_setting,
)
from equipoise.training.attacking import attack_network
from equipoise.training.hydra import HydraPlan, train_hydra
from equipoise.training.loop import train
from equipoise.training.manifest import versions
from equipoise.validation import validate


@dataclass(frozen=True)
class Arm:
    """One way to train: its name and the settings that make it."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()


CORRECTIONS = (
    Arm("none"),
    Arm("AGENT as published", (("corrector", "agent"), ("snapshot", "clean_noaug"))),
    # Attacked, where the objective attacks: the full gradient is the mean of the old gradients.
    Arm("AGENT, snapshot as trained", (("corrector", "agent"), ("snapshot", "adversarial"))),
    Arm("table", (("corrector", "table"),)),
)
"""Arms for every objective; the first is the baseline. Those that this version cannot train are
left out, and named."""
OBJECTIVES = ("standard", "at", "trades")
HYDRA = "HYDRA"


@dataclass(frozen=True)
class Result:
    """One trained and attacked network."""

    objective: str
    arm: str
    seed: int
    clean: float
    robust: float
    clean_refreshed: float
    robust_refreshed: float
    passes: float
    flops: float
    seconds: float
    flags: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/robust"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument(
        "--arms", nargs="+", default=[arm.name for arm in CORRECTIONS], help="by name; - for none"
    )
    parser.add_argument(
        "--hydra", action="store_true", help="with HYDRA, three phases of the same epochs in all"
    )
    parser.add_argument("--attack-samples", type=int, help="attack the first so many test images")
    parser.add_argument("--steps", type=int, default=50, help="of the attack after training")
    parser.add_argument("--restarts", type=int, default=10, help="of the attack after training")
    chosen, words = parser.parse_known_args()
    base = settings_from(words)
    arms = [arm for arm in CORRECTIONS if arm.name in chosen.arms]
    known, missing = split_known(arms)
    results = [
        measure(base, objective, arm, seed, chosen)
        for seed in chosen.seeds
        for objective in chosen.objectives
        for arm in [*known, *([Arm(HYDRA)] if chosen.hydra else [])]
    ]
    report = {
        "command": f"python benchmarks/robust.py {' '.join(sys.argv[1:])}",
        "machine": describe_machine(),
        "attack": f"PGD-{chosen.steps} x {chosen.restarts}",
        "attack_samples": chosen.attack_samples,
        "eps": base.robust.eps,
        "left_out": [arm.name for arm in missing],
        "results": [vars(result) for result in results],
    }
    write(chosen.out / "robust.json", json.dumps(report, indent=2) + "\n")
    text = as_markdown(report, results)
    write(chosen.out / "robust.md", text)
    print(text)


def settings_from(words: Sequence[str]) -> Run:
    """The run that all arms share: options of `equipoise train`, with BSR-Net's connectivity."""
    run = Run()
    usual = {
        "topology": "bsr",
        "optimizer": "sgdw",
        "learning_rate": 0.04,
        "weight_decay": 1e-3,
        "milestones": (0.25, 0.5),
        "drop_factors": (0.1, 0.05),
        "epochs": 12,
        "device": "cpu",
    }
    for name, value in usual.items():
        run = with_setting(run, name, value)
    kinds = setting_types()
    pairs = iter(words)
    for word in pairs:
        name = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or name not in kinds:
            raise SystemExit(f"{word} is no option of this script and no setting of a run")
        run = with_setting(run, name, convert(word, next(pairs, ""), kinds[name]))
    validate(run)
    return run


def split_known(arms: Sequence[Arm]) -> tuple[list[Arm], list[Arm]]:
    """Arms that this version can train, and those that it cannot."""
    correctors = {*get_args(CorrectorName), None}
    known = [arm for arm in arms if dict(arm.settings).get("corrector") in correctors]
    return known, [arm for arm in arms if arm not in known]


def measure(base: Run, objective: str, arm: Arm, seed: int, chosen: Any) -> Result:
    """Trains and attacks one network, or reads what an earlier call has left."""
    run = with_setting(with_setting(base, "objective", objective), "seed", seed)
    if objective == "standard":
        run = replace(run, robust=ObjectiveSettings())  # the radius is that of the attack alone
    for name, value in arm.settings:
        attacked = value != "adversarial" or objective != "standard"
        run = with_setting(run, name, value if attacked else "clean")
    folder = chosen.out / objective / arm.name.replace(" ", "-").replace(",", "") / f"seed{seed}"
    if arm.name == HYDRA:
        last = train_hydra(run, folder, hydra_plan(run)).records[-1]
    else:
        last = train(run, folder, label=arm.name).records[-1]
    cards = [card(folder, base, chosen, refreshed=refreshed) for refreshed in (False, True)]
    raised = {flag["name"] for each in cards for flag in each["flags"] if flag["raised"]}
    result = Result(
        objective,
        arm.name,
        seed,
        cards[0]["clean_accuracy"],
        cards[0]["robust_accuracy"],
        cards[1]["clean_accuracy"],
        cards[1]["robust_accuracy"],
        last.data_passes,
        last.training_flops,
        last.training_seconds,
        tuple(sorted(raised)),
    )
    print(
        f"seed {seed}, {objective}, {arm.name}: clean {100 * result.clean:.2f} %, robust "
        f"{100 * result.robust:.2f} %, {result.passes:.1f} passes, {result.seconds:.0f} s",
        flush=True,
    )
    return result


def hydra_plan(run: Run) -> HydraPlan:
    """The published shares of 100, 20 and 100 epochs, of as many epochs as the other arms have."""
    epochs = run.loop.epochs
    score = max(1, round(epochs * 20 / 220))
    pretrain = max(1, (epochs - score) // 2)
    return HydraPlan(
        pretrain_epochs=pretrain,
        score_epochs=score,
        finetune_epochs=max(1, epochs - score - pretrain),
    )


def card(folder: Path, base: Run, chosen: Any, *, refreshed: bool) -> dict[str, Any]:
    """The card of an attack on a run, made now or before."""
    attacking = Attacking(
        run=folder,
        data_dir=base.data.data_dir,
        device=base.loop.device,
        eps=base.robust.eps,
        norm=base.robust.norm,
        steps=chosen.steps,
        restarts=chosen.restarts,
        samples=chosen.attack_samples,
        refresh_batchnorm=refreshed,
    )
    path = folder / f"{attacking.name}.json"
    if not path.exists():
        attack_network(replace(attacking, out=path), command="benchmarks/robust.py")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def as_markdown(report: dict[str, Any], results: Sequence[Result]) -> str:
    """One table; differences are paired by seed and to the first arm of the same objective."""
    seeds = sorted({result.seed for result in results})
    samples = report["attack_samples"] or "all"
    lines = [
        f"Robust accuracy under {report['attack']}, eps {report['eps']:.4g}, {samples} test "
        f"images; n = {len(seeds)} paired seeds ({', '.join(map(str, seeds))}); mean and standard "
        "deviation; differences to the first arm of the objective with 95 % intervals.",
        "",
        f"`{report['command']}`",
        "",
        f"{report['machine']}",
        "",
        "| Objective | Arm | Clean % | Robust % | Difference clean | Difference robust | Passes | "
        "FLOPs | Seconds | Clean %, refreshed BN | Robust %, refreshed BN |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for objective in dict.fromkeys(result.objective for result in results):
        group = [result for result in results if result.objective == objective]
        names = list(dict.fromkeys(result.arm for result in group))
        baseline = {r.seed: r for r in group if r.arm == names[0]}
        for name in names:
            arm = [result for result in group if result.arm == name]
            paired = [(r, baseline[r.seed]) for r in arm if r.seed in baseline]
            first = name == names[0]
            clean = "" if first else difference([a.clean - b.clean for a, b in paired])
            robust = "" if first else difference([a.robust - b.robust for a, b in paired])
            cells = [
                *(objective, name, spread([r.clean for r in arm]), spread([r.robust for r in arm])),
                *(clean, robust, f"{mean(r.passes for r in arm):.1f}"),
                *(f"{mean(r.flops for r in arm):.3g}", f"{mean(r.seconds for r in arm):.0f}"),
                spread([r.clean_refreshed for r in arm]),
                spread([r.robust_refreshed for r in arm]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if report["left_out"]:
        lines += ["", f"Left out, because this version has them not: {report['left_out']}."]
    raised = sorted({(r.objective, r.arm, flag) for r in results for flag in r.flags})
    lines += ["", "Flags raised by the attacks: " + ("none." if not raised else "")]
    lines += [f"- {objective}, {arm}: {flag}" for objective, arm, flag in raised]
    return "\n".join([*lines, ""])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in per cent."""
    text = f"{100 * mean(values):.2f}"
    return f"{text} ± {100 * stdev(values):.2f}" if len(values) > 1 else text


def difference(values: Sequence[float]) -> str:
    """Mean of paired differences with the 95 % interval of Student's t, in points."""
    middle = 100 * mean(values)
    if len(values) < 2:
        return f"{middle:+.2f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * 100 * stdev(values) / len(values) ** 0.5
    return f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]"


def describe_machine() -> str:
    """What it ran on."""
    return (
        f"equipoise {__version__}, torch {versions()['torch']}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
