"""Networks that a run has stored, read back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from equipoise.records import read_run
from equipoise.settings import Run, from_plain, with_setting
from equipoise.topology import sparse_parameters
from equipoise.training import build
from equipoise.training.checkpoint import load_checkpoint
from equipoise.training.evaluate import Score, evaluate
from equipoise.training.loop import CHECKPOINT, MODEL


@dataclass(frozen=True, kw_only=True)
class StoredScore:
    """How a stored network does on its test images.

    Args:
        score: Loss and accuracy.
        samples: Images that it was tested on.
        active_weights: Non-zero weights among the maskable ones.
        maskable_weights: Weights of linear and convolution layers.
    """

    score: Score
    samples: int
    active_weights: int
    maskable_weights: int


def evaluate_stored(
    folder: Path, *, data_dir: Path | None = None, device: str = "auto"
) -> StoredScore:
    """Evaluates the network of a run, finished or not, on its test images.

    Args:
        folder: Of the run.
        data_dir: Where the data are; default: the usual places.
        device: cpu, cuda, cuda:N or auto.

    Raises:
        ValueError: There is no run in the folder, or its files are damaged.
        FileNotFoundError: The run has not stored a network yet, or the data are missing.
    """
    run = with_setting(_run_of(folder), "device", device)
    run = replace(run, data=replace(run.data, data_dir=data_dir))
    target = build.resolve_device(device)
    images = build.select_images(build.load_images(run.data), run.data)
    model = build.build_model(run, images.train, target)
    _load_weights(model, folder)
    with build.autocast(run.loop, target):
        score = evaluate(model, build.test_loader(images.test, run, target).epoch(0))
    weights = sparse_parameters(model).values()
    return StoredScore(
        score=score,
        samples=len(images.test),
        active_weights=sum(int(torch.count_nonzero(w)) for w in weights),
        maskable_weights=sum(w.numel() for w in weights),
    )


def _run_of(folder: Path) -> Run:
    """The settings that a run was started with."""
    manifest = read_run(folder).manifest
    try:
        return from_plain(manifest["run"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} was written by another version of equipoise ({error}); "
            f"evaluate it with version {manifest.get('versions', {}).get('equipoise')}."
        ) from error


def _load_weights(model: nn.Module, folder: Path) -> None:
    """Loads the trained weights, or those of the last checkpoint of an unfinished run."""
    path = folder / MODEL
    if not path.exists():
        if not (folder / CHECKPOINT).exists():
            raise FileNotFoundError(
                f"{folder} holds no trained network yet; let its training reach a checkpoint first."
            )
        state = load_checkpoint(folder / CHECKPOINT)
        try:
            model.load_state_dict(state["model"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{folder / CHECKPOINT} holds no network of this run ({type(error).__name__}); "
                "start the run again with --overwrite."
            ) from error
        return
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for many kinds of damage
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}); delete it and run the training again, "
            "which then restores it from the last checkpoint."
        ) from error
