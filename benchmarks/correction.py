"""Every way to correct gradients on one sparse network, on paired seeds, at equal cost.

    python benchmarks/correction.py run             # train what is not trained yet, then write
    python benchmarks/correction.py render FILE     # the Markdown of a JSON file once more

Each member trains for the same number of epochs. Then plain training, with its whole schedule of
learning rates, is given as many epochs as make the passes of each member, and as many as fill its
seconds: those are the opponents at matched passes and at matched seconds. Runs that are complete
are not trained again, so the command can be stopped and given again. Files go to
`benchmarks/results`; its README explains them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from equipoise.arguments import Arm, parse_arm
from equipoise.records import RunRecords, read_run, write_atomically
from equipoise.reports.reaching import end_differences, median_reach
from equipoise.reports.statistics import PairedInterval, mean_and_deviation
from equipoise.settings import Run, changed_settings, with_setting
from equipoise.speed.machine import describe_machine, in_words, load_average
from equipoise.training.arms import plan, run_jobs
from equipoise.validation import validate

RESULTS = Path(__file__).parent / "results"
PLAIN = "plain"
MEMBERS: dict[str, str] = {
    PLAIN: "none",
    "agent": "agent",
    "svrg": "svrg",
    "fixed": "fixed",
    "no_gamma": "no_gamma",
    "reduce_lr": "reduce_lr",
    "alpha_svrg": "alpha_svrg",
    "mvr": "mvr,schedule=constant",
    "mvr_fixed": "mvr_fixed",
    # Its direction is a mean where momentum 0.9 is a sum ten times as long.
    "mvr_fixed_fast": "mvr_fixed,learning_rate=1.0",
    "agent_mvr": "agent_mvr",
    "agent_mvr_oracle": "agent_mvr_oracle",
    "ref_itop": "ref_itop",
    "ref_rigl": "ref_rigl",
    "ref_bsr": "ref_bsr",
    "svrg_cached": "svrg,correction_mode=cached",
    "no_gamma_cached": "no_gamma,correction_mode=cached",
    "alpha_svrg_cached": "alpha_svrg,correction_mode=cached",
    "agent_sub_sampled": "agent,refresh_samples=1024",
    "svrg_by_chance": "svrg,refresh_chance=0.01",
    "age": "age",
    "age_gated": "age,gate=true",
    "table": "table",
    "table_fixed": "table,partition_epochs=0",
    # Controls: what else the same effort, or the same smoothing, would have bought.
    "double_batch": "none,batch_size=128",
    "lower_rate": "none,learning_rate=0.03",
    "fixed_partition": "none,partition_epochs=0",
    "slow_partition": "none,partition_epochs=8",
}
"""Name of a member, and what follows the topology in an arm: corrector[,setting=value ...]."""

BASE: dict[str, Any] = {
    "dataset": "cifar10",
    "image_size": 16,
    "model": "small_cnn",
    "topology": "rigl",
    "sparsity": 0.98,
    "batch_size": 64,
    "learning_rate": 0.1,
    "epochs": 12,
    "device": "cpu",
    # For every member alike: test accuracy would else depend on how far the statistics lag behind.
    "batchnorm": "refreshed",
}
CLOSE = 0.05  # opponents whose epochs differ by less are the same runs


@dataclass(frozen=True)
class Reading:
    """What a member did, over its seeds.

    Args:
        name: Of the member.
        arm: How it is written in `equipoise compare`.
        n: Number of seeds.
        epochs: It was trained for.
        engine: Whether kernels for active weights ran it.
        passes_per_epoch: Mean.
        seconds_per_epoch: Mean, training only.
        accuracy: Test accuracy at the end, mean and sample deviation.
        loss: Training loss of the last epoch, likewise.
        reach_passes: Passes to plain's training loss at the end of its first learning rate, as a
            ratio to plain's; None where some seed never got there.
        reach_seconds: The same in seconds.
        against: Accuracy and loss against plain, paired, at equal epochs, passes and seconds.
    """

    name: str
    arm: str
    n: int
    epochs: int
    engine: bool
    passes_per_epoch: float
    seconds_per_epoch: float
    accuracy: tuple[float, float | None]
    loss: tuple[float, float | None]
    reach_passes: float | None
    reach_seconds: float | None
    against: dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "render"))
    parser.add_argument("file", type=Path, nargs="?", help="results to render")
    parser.add_argument("--members", nargs="+", choices=MEMBERS, default=list(MEMBERS))
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds, from 0 on")
    parser.add_argument("--set", nargs="*", default=[], metavar="setting=value", dest="changes")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/correction"))
    parser.add_argument("--workers", type=int, default=1, help="more than 1 disturbs the seconds")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    console = Console(width=200)
    if chosen.what == "render":
        if chosen.file is None:
            parser.error("render needs the file")
        text = markdown(json.loads(chosen.file.read_text()))
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        return
    load = load_average()
    base = base_run(chosen.changes, chosen.data_dir)
    members = list(dict.fromkeys([PLAIN, *chosen.members]))
    arms = {name: member_arm(name, MEMBERS[name], base) for name in members}
    folder = chosen.runs / with_setting(base, "seed", 0).identity
    known = train(list(arms.values()), chosen.seeds, folder, chosen.workers, console)
    opponents = plain_epochs(known, base.loop.epochs)
    more = [
        member_arm(plain_name(epochs), f"none,epochs={epochs}", base)
        for epochs in sorted(set(opponents.values()) - {base.loop.epochs})
    ]
    known |= train(more, chosen.seeds, folder, chosen.workers, console) if more else {}
    results = {
        "format": 1,
        "command": command(),
        "machine": describe_machine(),
        "load": {"before": load, "after": load_average()},
        "settings": {name: str(value) for name, value in changed_settings(base).items()},
        "seeds": chosen.seeds,
        "members": [
            asdict(read_member(name, arms[name], known, opponents, base)) for name in members
        ],
        "runs": [raw(run) for runs in known.values() for run in runs],
    }
    today = datetime.datetime.now(datetime.UTC).date()
    out = chosen.out or RESULTS / f"{today}-correction.json"
    write_atomically(out, json.dumps(results, indent=1) + "\n")
    write_atomically(out.with_suffix(".md"), markdown(results) + "\n")
    console.print(markdown(results), highlight=False, markup=False, soft_wrap=True)
    console.print(f"Wrote {out} and {out.with_suffix('.md')}.", highlight=False)


def base_run(changes: Sequence[str], data_dir: Path | None) -> Run:
    """The settings that all members share."""
    run = Run()
    for name, value in BASE.items():
        run = with_setting(run, name, value)
    if changes:
        run = parse_arm(",".join([run.sparse.topology, *changes]), run).run
    return with_setting(run, "data_dir", data_dir)


def member_arm(name: str, text: str, base: Run) -> Arm:
    """One arm of the comparison, checked."""
    arm = parse_arm(f"{name}:{base.sparse.topology}+{text}", base)
    validate(arm.run)
    return arm


def plain_name(epochs: int) -> str:
    """Plain training of another length."""
    return f"{PLAIN}_{epochs}_epochs"


def train(
    arms: Sequence[Arm], num_seeds: int, folder: Path, workers: int, console: Console
) -> dict[str, list[RunRecords]]:
    """The runs of every arm by its name, seed by seed; trains those that are not there yet."""
    jobs = plan(arms, range(num_seeds), folder)
    if not run_jobs(jobs, console, workers=workers):
        sys.exit("stopped; give the same command again to go on")
    found: dict[str, list[RunRecords]] = {}
    for job in jobs:
        found.setdefault(job.label, []).append(read_run(job.folder))
    return found


def plain_epochs(known: Mapping[str, Sequence[RunRecords]], epochs: int) -> dict[str, int]:
    """For every member and cost, how many epochs of plain training cost as much."""
    wanted: dict[str, float] = {}
    for name, runs in known.items():
        for cost in ("data_passes", "training_seconds"):
            each = [
                total(run, cost) / (total(plain, cost) / epochs)
                for run, plain in zip(runs, known[PLAIN], strict=True)
            ]
            wanted[f"{name}/{cost}"] = statistics.median(each)
    chosen: list[int] = [epochs]
    for length in sorted(wanted.values()):
        whole = max(1, round(length))
        if not any(abs(whole - known_one) <= CLOSE * known_one for known_one in chosen):
            chosen.append(whole)
    return {
        key: min(chosen, key=lambda one, length=length: abs(one - length))  # type: ignore[misc]
        for key, length in wanted.items()
    }


def total(run: RunRecords, cost: str) -> float:
    """What a whole run cost."""
    return float(getattr(run.epochs[-1], cost))


def read_member(
    name: str,
    arm: Arm,
    known: Mapping[str, Sequence[RunRecords]],
    opponents: Mapping[str, int],
    base: Run,
) -> Reading:
    """A member against plain training."""
    runs, epochs = known[name], base.loop.epochs

    def plain_of(length: int) -> Sequence[RunRecords]:
        return known[PLAIN if length == epochs else plain_name(length)]

    lengths = {
        "epochs": epochs,
        "passes": opponents[f"{name}/data_passes"],
        "seconds": opponents[f"{name}/training_seconds"],
    }
    accuracy = mean_and_deviation(100 * run.epochs[-1].test_accuracy for run in runs)
    loss = mean_and_deviation(run.epochs[-1].train_loss for run in runs)
    assert accuracy.mean is not None
    assert loss.mean is not None
    return Reading(
        name=name,
        arm=f"{base.sparse.topology}+{MEMBERS[name]}",
        n=len(runs),
        epochs=arm.run.loop.epochs,
        engine=all(bool(run.manifest["engine"]["used"]) for run in runs),
        passes_per_epoch=statistics.mean(total(r, "data_passes") / len(r.epochs) for r in runs),
        seconds_per_epoch=statistics.mean(
            total(r, "training_seconds") / len(r.epochs) for r in runs
        ),
        accuracy=(accuracy.mean, accuracy.deviation),
        loss=(loss.mean, loss.deviation),
        reach_passes=median_reach(runs, known[PLAIN], "data_passes"),
        reach_seconds=median_reach(runs, known[PLAIN], "training_seconds"),
        against={cost: differences(runs, plain_of(n), n) for cost, n in lengths.items()},
    )


def differences(
    runs: Sequence[RunRecords], plain: Sequence[RunRecords], plain_length: int
) -> dict[str, Any]:
    """Ends of paired runs: accuracy in points and training loss, with 95 % intervals."""
    points, losses = end_differences(runs, plain)
    return {"plain_epochs": plain_length, "accuracy": bounds(points), "loss": bounds(losses)}


def bounds(interval: PairedInterval) -> dict[str, float | None]:
    """An interval as JSON values."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def raw(run: RunRecords) -> dict[str, Any]:
    """What of a run is kept: where it ended and what it cost, epoch by epoch."""
    names = ("train_loss", "test_accuracy", "coefficient", "data_passes", "training_seconds")
    return {
        "label": run.label,
        "seed": run.seed,
        "identity": run.manifest["identity"],
        "engine": run.manifest["engine"]["used"],
        **{name: [getattr(record, name) for record in run.epochs] for name in names},
    }


def command() -> str:
    """This command, without folders of the machine."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word in ("--data-dir", "--runs", "--out"):
            next(words, None)
        elif not word.startswith(("--data-dir=", "--runs=", "--out=")):
            kept.append(word)
    return shlex.join(["python", "benchmarks/correction.py", *kept])


def markdown(results: Mapping[str, Any]) -> str:
    """The table of a file."""
    load = results["load"]
    before, after = (load[when][0] if load[when] else "unknown" for when in ("before", "after"))
    settings = ", ".join(f"{k} {v}" for k, v in results["settings"].items())
    lines = [
        f"{in_words(results['machine'])}; load average {before} before and {after} after.",
        "",
        f"`{results['command']}`: {settings}; n = {results['seeds']} paired seeds.",
        "",
        "Differences are the member less plain training, mean [95 % interval], of the test "
        "accuracy in points and of the training loss of the last epoch. At matched passes and "
        "seconds plain training has as many epochs (in brackets) as cost the same. Reach: passes "
        "and seconds to plain's training loss at the end of its first learning rate, as a ratio "
        "to plain's.",
        "",
        "| Member | Passes an epoch | Seconds an epoch | Accuracy | Training loss | Reach, passes "
        "| Reach, seconds | Equal epochs | Matched passes | Matched seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for member in results["members"]:
        cells = [
            member["name"] + ("" if member["engine"] else " (masks)"),
            f"{member['passes_per_epoch']:.2f}",
            f"{member['seconds_per_epoch']:.2f}",
            spread(member["accuracy"], 2),
            spread(member["loss"], 4),
            "never" if member["reach_passes"] is None else f"{member['reach_passes']:.2f}",
            "never" if member["reach_seconds"] is None else f"{member['reach_seconds']:.2f}",
            *(against(member["against"][cost]) for cost in ("epochs", "passes", "seconds")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(pair: Sequence[float | None], digits: int) -> str:
    """Mean and deviation."""
    mean, deviation = pair
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def against(row: Mapping[str, Any]) -> str:
    """Both differences in a cell."""
    points, loss = interval(row["accuracy"], 2), interval(row["loss"], 4)
    return f"{points}; loss {loss} ({row['plain_epochs']})"


def interval(row: Mapping[str, float | None], digits: int) -> str:
    """Mean and interval."""
    text = f"{row['mean']:+.{digits}f}"
    if row["low"] is None:
        return text
    return f"{text} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:  # no data, or a setting that cannot be
        sys.exit(str(error))
