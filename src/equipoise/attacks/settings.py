"""What an attack on the command line consists of; torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Attacking:
    """What is attacked, and how."""

    run: Path | None = None
    """Folder of a run, or a file that export wrote."""
    module: str | None = None
    """Instead of a run, a torch module by import path, as in package.models:make_network."""
    weights: Path | None = None
    """State of the module, saved by torch; default: the module as it comes."""
    dataset: Literal["digits", "fashion_mnist", "cifar10", "cifar100", "svhn"] = "cifar10"
    """Whose test images the module is shown; a run has its own."""
    inputs: Literal["pixels", "normalised"] = "pixels"
    """What the module takes: pixels in [0, 1], or normalised by mean and deviation."""
    data_dir: Path | None = None
    """Folder with the files; default: $EQUIPOISE_DATA, then the usual places."""
    samples: int | None = None
    """Attack only the first so many test images."""
    method: Literal["pgd", "autoattack"] = "pgd"
    """Projected gradient descent, or AutoAttack from its own package."""
    norm: Literal["linf", "l2"] = "linf"
    """Of the threat model: bounds every pixel, or the length of the whole change."""
    eps: float = 8 / 255
    """Radius of the threat model in pixels of [0, 1]; default: 8 grey values."""
    steps: int = 50
    """Of pgd, at least 1."""
    step_size: float | None = None
    """Of pgd, in the units of --eps; default: 2.5 eps / steps."""
    restarts: int = 10
    """Of pgd, each from another random point; all must fail."""
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    """What pgd makes large; margin helps where the network is certain of itself."""
    targets: int = 0
    """Wrong classes that pgd aims at in turn, the most likely first; 0 aims at none."""
    refresh_batchnorm: bool = False
    """Take BatchNorm statistics anew over the training images first (of a run)."""
    seed: int = 0
    """Of the random starts."""
    batch_size: int = 256
    """Images in a batch, at least 1; the result does not depend on it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    threads: int | None = None
    """Processor threads; default: torch's choice."""
    out: Path | None = None
    """File of the result card; default: in the folder of the run, with a name that tells."""
    overwrite: bool = False
    """Replace a card that is there already."""

    @property
    def length_of_step(self) -> float:
        """The step of pgd, given or usual."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    @property
    def name(self) -> str:
        """Threat model and attack, for the name of a file."""
        how = "autoattack" if self.method == "autoattack" else f"pgd{self.steps}x{self.restarts}"
        more = "-margin" if self.loss == "margin" and self.method == "pgd" else ""
        more += f"-targets{self.targets}" if self.targets and self.method == "pgd" else ""
        more += "-refreshed" if self.refresh_batchnorm else ""
        more += f"-first{self.samples}" if self.samples is not None else ""
        return f"attack-{self.norm}-{self.eps:.4g}-{how}{more}"


def check_attacking(chosen: Attacking) -> None:
    """Checks what the types cannot.

    Raises:
        ValueError: One sentence on the first thing that is wrong.
    """
    if (chosen.run is None) == (chosen.module is None):
        raise ValueError(
            "`equipoise attack` takes the folder of a run or --module, one of the two; "
            "write for example `equipoise attack runs/NAME`."
        )
    if chosen.module is None and chosen.weights is not None:
        raise ValueError("--weights are those of a --module; a run has its own; leave them out.")
    if chosen.module is not None and chosen.refresh_batchnorm:
        raise ValueError(
            "--refresh-batchnorm needs the training images of a run; leave it out, or attack a run."
        )
    if chosen.norm == "linf" and chosen.eps > 1.0:
        raise ValueError(
            f"--eps is in pixels of [0, 1]; got {chosen.eps:g}; "
            f"for {chosen.eps:g} grey values write {chosen.eps / 255:.6g}."
        )
    for flag, got, least in (
        ("eps", chosen.eps, 0.0),
        ("steps", chosen.steps, 1),
        ("restarts", chosen.restarts, 1),
        ("targets", chosen.targets, 0),
        ("batch-size", chosen.batch_size, 1),
        ("samples", 1 if chosen.samples is None else chosen.samples, 1),
        ("step-size", chosen.length_of_step if chosen.steps else 0.0, 0.0),
    ):
        if not least <= got < float("inf"):
            raise ValueError(
                f"--{flag} must be at least {least:g} and finite; got {got:g}; "
                "see `equipoise attack --help`."
            )
