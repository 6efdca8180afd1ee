"""Whole training steps with the engine against masks on dense tensors, for the record.

    python benchmarks/engine_steps.py table         # the sparsities and networks that are quoted
    python benchmarks/engine_steps.py never-slower  # left to itself, at any sparsity
    python benchmarks/engine_steps.py render FILE   # the Markdown of a JSON file once more

Both measurements are what `equipoise bench` does, with fixed settings. Files go to
`benchmarks/results`; its README explains them.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from rich.console import Console

from equipoise.speed.bench import run_bench
from equipoise.speed.machine import load_average
from equipoise.speed.results import markdown
from equipoise.speed.showing import print_head, print_row
from equipoise.speed.steps import LINEAR, Case

RESULTS = Path(__file__).parent / "results"
MODELS = ("vgg16", "resnet18", LINEAR, "wrn_28_4", "vgg_c")
SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)
ANY_SPARSITY = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999)
NEVER_SLOWER = ("vgg16", "resnet18", LINEAR)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "never-slower", "render"))
    parser.add_argument("file", type=Path, nargs="?", help="results to render")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--sparsities", type=float, nargs="+")
    parser.add_argument("--distribution", default="erk")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    console = Console(width=160)
    if chosen.what == "render":
        if chosen.file is None:
            parser.error("render needs the file")
        console.print(markdown(json.loads(chosen.file.read_text())), highlight=False, markup=False)
        return
    table = chosen.what == "table"
    cases = [
        Case(
            model=model,
            sparsity=sparsity,
            distribution=chosen.distribution,
            width=chosen.width,
            batch_size=chosen.batch_size,
            engine="sparse" if table else "auto",
        )
        for model in chosen.models or (MODELS if table else NEVER_SLOWER)
        for sparsity in chosen.sparsities or (SPARSITIES if table else ANY_SPARSITY)
    ]
    today = datetime.datetime.now(datetime.UTC).date()
    out = chosen.out or RESULTS / f"{today}-steps-{chosen.what}.json"
    print_head(console, load=load_average())
    run_bench(
        cases,
        threads=chosen.threads,
        rounds=chosen.rounds,
        memory=table,
        out=out,
        on_row=lambda row: print_row(row, console),
    )
    console.print(f"Wrote {out} and {out.with_suffix('.md')}.", highlight=False)


if __name__ == "__main__":
    main()
