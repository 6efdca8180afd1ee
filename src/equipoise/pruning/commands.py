"""The command `hydra`, in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from equipoise.pruning.settings import Pruning
from equipoise.settings import Run
from equipoise.training.hydra import FINETUNED, LABEL, PRETRAINED, HydraPlan, train_hydra
from equipoise.training.hydra import hydra_folder as default_folder
from equipoise.training.observers import Bar, Observer
from equipoise.training.phases import Phase
from equipoise.training.signals import StopFlag

_WHAT = {PRETRAINED: "all weights", FINETUNED: "the weights that are kept"}

Load = Callable[[Run, Console], Any]


class Watching(Protocol):
    """Makes more observers."""

    def __call__(self, folder: Path, *, wanted: bool) -> list[Observer]:
        """For the folder of a run, if they are wanted."""
        ...  # pragma: no cover


def show_hydra(
    run: Run,
    chosen: Pruning,
    console: Console,
    load: Load,
    watching: Watching,
) -> tuple[Path, bool]:
    """Trains in three phases with progress, and says what came of it.

    Args:
        run: Of all phases, valid.
        chosen: The options.
        console: Where to print.
        load: Reads the data of a run, with progress.
        watching: Makes more observers, if the options ask for TensorBoard.

    Returns:
        The folder, and whether it is finished; if not, everything is saved.

    Raises:
        ValueError: The folder holds another run.
        FileNotFoundError: The data are not on this machine.
    """
    plan = HydraPlan(
        pretrain_epochs=chosen.pretrain_epochs,
        score_epochs=chosen.score_epochs,
        finetune_epochs=chosen.finetune_epochs,
        learning_rate=chosen.learning_rate,
        finetune_rate=chosen.finetune_rate,
    )
    folder = chosen.out or default_folder(run, plan)

    def announce(phase: Phase) -> None:
        what = _WHAT.get(phase.name, "scores of frozen weights")
        console.print(
            f"{phase.name}: epochs {phase.epochs_before + 1} to {phase.last_epoch} of "
            f"{plan.epochs}, {what}",
            highlight=False,
            soft_wrap=True,
        )

    flag = StopFlag()
    flag.install()
    outcome = train_hydra(
        run,
        folder,
        plan,
        dataset=load(run, console),
        observers=(Bar(console, LABEL), *watching(folder, wanted=chosen.tensorboard)),
        on_phase=announce,
        should_stop=flag,
        checkpoint_seconds=chosen.checkpoint_seconds,
        overwrite=chosen.overwrite,
    )
    if not outcome.finished:
        return folder, False
    last = outcome.records[-1]
    console.print(
        f"{LABEL}: test accuracy {100 * last.test_accuracy:.2f} % after {last.epoch} epochs in "
        f"three phases ({last.data_passes:.1f} passes over the data, {last.training_flops:.3g} "
        f"FLOPs, {last.training_seconds:.1f} s) at sparsity {last.sparsity:.4f}.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"Saved in {folder}; `equipoise report {folder}` draws it.",
        highlight=False,
        soft_wrap=True,
    )
    return folder, True
