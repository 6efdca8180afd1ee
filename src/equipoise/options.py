"""Options of the commands, beside the settings of a run.

The docstring under a field is its help on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from equipoise.experiments.store import STORE
from equipoise.experiments.values import Scale
from equipoise.recipes import RecipeName

AlongTraining = Literal["gradient_correlation", "gradient_norms"]


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where results go."""

    recipe: RecipeName | None = None
    """Published settings to start from; what is given beside it wins."""
    out: Path | None = None
    """Folder of the run; default: runs/ and a name made from the settings."""
    overwrite: bool = False
    """Start again, whatever is in the folder."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints within an epoch."""
    tensorboard: bool = False
    """Write TensorBoard event files too."""
    measure: tuple[AlongTraining, ...] = ()
    """Measure gradients after every epoch, or in every step; training ends bit for bit as without
    it, and its seconds are not charged."""
    threads: int | None = None
    """Processor threads; default: torch's choice."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared."""

    arms: tuple[str, ...] = ("rigl", "rigl+agent")
    """Each [name:]topology[+corrector][,setting=value ...], for example big:rigl,batch_size=256;
    the first is the baseline."""
    recipe: RecipeName | None = None
    """Published settings to start from; what is given beside it wins."""
    num_seeds: int = 3
    """Paired seeds, from --seed on; pairs share initial weights, masks and data order."""
    workers: int | None = None
    """Processes side by side; default: one a core on CPU, one on an accelerator."""
    out: Path | None = None
    """Folder of the comparison; default: runs/ and a name made from the settings."""
    overwrite: bool = False
    """Start every run again."""
    tensorboard: bool = False
    """Write TensorBoard event files too."""
    threads: int | None = None
    """Processor threads for all processes together; default: torch's choice."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated."""

    run: Path
    """Folder of a run, or a file that export wrote."""
    data_dir: Path | None = None
    """Folder with the files; default: $EQUIPOISE_DATA, then the usual places."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    refresh_batchnorm: bool = False
    """Take BatchNorm statistics anew over the training images first; no weight is changed."""


@dataclass(frozen=True, kw_only=True)
class Exporting:
    """What is exported."""

    run: Path
    """Folder of a run."""
    out: Path | None = None
    """File to write; default: model.safetensors in that folder."""
    overwrite: bool = False
    """Replace the file if it is there already."""


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """What is reported."""

    runs: Path | None = None
    """A run, a comparison, or a folder of them; not with --paper."""
    out: Path | None = None
    """HTML file to write, with PNG files beside it; default: report.html in that folder. With
    --paper the folder of all files; default: runs/paper-report-SCALE."""
    baseline: str | None = None
    """Arm that the others are compared with; default: as the comparison says."""
    paper: bool = False
    """All tables, figures and claims of the paper, from what `equipoise reproduce` trained."""
    scale: Scale = "cpu"
    """With --paper: which runs."""
    store: Path = STORE
    """With --paper: folder of the runs; those of results/paper are looked for as well."""
    num_seeds: int = 3
    """With --paper: seeds, from 0 on."""
    claims: Path | None = None
    """With --paper: also write the ledger of claims, at all scales, to this Markdown file."""

    @property
    def folder(self) -> Path:
        """The folder with runs; a sentence where none was given."""
        if self.runs is None:
            raise ValueError(
                "`equipoise report` needs a folder with runs: equipoise report FOLDER; or --paper."
            )
        return self.runs


@dataclass(frozen=True, kw_only=True)
class Diagnosing:
    """On what it is measured."""

    folder: Path | None = None
    """A run to look at, as its last checkpoint left it; default: the settings below, trained."""
    warm_up: int = 2
    """Epochs that these settings are trained for first, at least 0."""
    batches: int = 24
    """Batches that gradients are compared on, at least 4."""
    out: Path | None = None
    """HTML file to write, with JSON beside it; default: diagnosis.html in the folder, or here."""
    threads: int | None = None
    """Processor threads; default: torch's choice."""


@dataclass(frozen=True, kw_only=True)
class Planning:
    """On what it is planned."""

    recipe: RecipeName | None = None
    """Published settings to start from; what is given beside it wins."""
    threads: int | None = None
    """Processor threads; default: torch's choice."""


Analysis = Literal["gradients", "correlation", "norms", "reach", "theorem-1", "parabola"]
_FOLDER = frozenset({"folder", "out"})
_THEIRS: dict[str, frozenset[str]] = {
    "gradients": _FOLDER
    | {"data_dir", "device", "batches", "batch_size", "deviation", "replicates"}
    | {"batchnorm", "threads"},
    "correlation": _FOLDER,
    "norms": _FOLDER,
    "reach": _FOLDER | {"baseline", "target_step"},
    "theorem-1": frozenset({"samples", "batch_size", "coefficient", "alpha", "mu", "step_size"})
    | {"smoothness", "epoch_length", "gap", "steps", "sigma"},
    "parabola": frozenset({"out"}),
}


@dataclass(frozen=True, kw_only=True)
class Analysing:
    """What is analysed."""

    what: Analysis
    """Gradients under noise on a finished run; correlation or norms that were measured along one;
    epochs and seconds to reach an accuracy; the constants of Theorem 1; the picture of figure 2."""
    folder: Path | None = None
    """A run, a comparison, or a folder of them."""
    out: Path | None = None
    """PNG file to write; default: named like the analysis, in the folder, or here."""
    data_dir: Path | None = None
    """gradients: folder with the files; default: $EQUIPOISE_DATA, then the usual places."""
    device: str = "auto"
    """gradients: cpu, cuda, cuda:1, or auto."""
    batch_size: int = 128
    """gradients, theorem-1: samples in a batch."""
    batches: int | None = None
    """gradients: how many, at least 2; default: the whole training set."""
    deviation: float = 0.015
    """gradients: of the noise on the weights, at least 0."""
    replicates: int = 3
    """gradients: draws of the noise."""
    batchnorm: Literal["eval", "train"] = "eval"
    """gradients: by running statistics, or by the batch."""
    baseline: str | None = None
    """reach: arm that the others are compared with; default: as the comparison says."""
    target_step: float = 0.01
    """reach: distance of the accuracies that are looked at, in (0, 1)."""
    samples: int = 50_000
    """theorem-1: in the training set."""
    coefficient: float = 0.1
    """theorem-1: weight of the old gradient of AGENT."""
    alpha: float = 2 / 3
    """theorem-1: exponent of the step size, in (0, 1]; not the smoothing factor."""
    mu: float | None = None
    """theorem-1: sets the step size, in (0, 1); default: 0.1, or what --step-size makes it."""
    step_size: float | None = None
    """theorem-1: learning rate, in place of --mu."""
    smoothness: float = 1.0
    """theorem-1: of the loss, above 0."""
    epoch_length: int | None = None
    """theorem-1: steps between two snapshots; default: as in the theorem."""
    gap: float = 2.3
    """theorem-1: loss at the start less the smallest one."""
    steps: int = 78_000
    """theorem-1: of the whole training."""
    sigma: float = 0.26
    """theorem-1: bound on the norm of the noise of a gradient."""
    threads: int | None = None
    """gradients: processor threads; default: torch's choice."""


def check_analysing(chosen: Analysing) -> None:
    """Refuses what the chosen analysis does not know, and numbers out of range.

    Args:
        chosen: The options.

    Raises:
        ValueError: One sentence on the first thing that is wrong.

    Example:
        >>> check_analysing(Analysing(what="reach", folder=Path("runs")))
    """
    theirs = _THEIRS[chosen.what]
    for field in fields(chosen):
        idle = field.name != "what" and field.name not in theirs
        if idle and getattr(chosen, field.name) != field.default:
            names = ", ".join("--" + name.replace("_", "-") for name in sorted(theirs))
            raise ValueError(
                f"--{field.name.replace('_', '-')} has no effect on `equipoise analyse "
                f"{chosen.what}`, which takes {names}; leave it out."
            )
    if "folder" in theirs and chosen.folder is None:
        raise ValueError(
            f"`equipoise analyse {chosen.what}` needs the folder of a run or of several; "
            f"write `equipoise analyse {chosen.what} FOLDER`."
        )
    if not 0.0 < chosen.target_step < 1.0:
        raise ValueError(
            f"--target-step is in (0, 1); got {chosen.target_step:g}; 0.01 is a point."
        )
    for name in ("gap", "sigma", "steps"):
        low = 1 if name == "steps" else 0
        if getattr(chosen, name) < low:
            raise ValueError(f"--{name} is at least {low}; got {getattr(chosen, name):g}.")
