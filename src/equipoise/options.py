"""Options of the commands, beside the settings of a run.

The docstring under a field is its help on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

    runs: Path
    """A run, a comparison, or a folder of them."""
    out: Path | None = None
    """HTML file to write, with PNG files beside it; default: report.html in that folder."""
    baseline: str | None = None
    """Arm that the others are compared with; default: as the comparison says."""


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
