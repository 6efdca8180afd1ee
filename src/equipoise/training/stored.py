"""Networks that a run has stored: read back, and exported."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from equipoise.engine.network import plain_state
from equipoise.points import device_of
from equipoise.records import read_run
from equipoise.settings import Run, as_plain, from_plain, with_setting
from equipoise.shipping import SparseFileSummary, SparseState, load_sparse, save_sparse
from equipoise.topology import sparse_parameters
from equipoise.training import build
from equipoise.training.batchnorm import refreshed_statistics
from equipoise.training.checkpoint import load_checkpoint
from equipoise.training.evaluate import Score, evaluate
from equipoise.training.loop import CHECKPOINT, MODEL

SHIPPED = "model.safetensors"


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


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network that was exported.

    Args:
        path: The file.
        summary: Its size, and that of the dense network.
    """

    path: Path
    summary: SparseFileSummary


@dataclass(frozen=True, kw_only=True)
class StoredNetwork:
    """A stored network, ready to be evaluated.

    Args:
        run: The settings that it was trained with; where data and device are is of now.
        label: Name of the arm.
        model: Plain, with the stored weights, on the device.
        images: Those of the run.
        device: Where the model is.
    """

    run: Run
    label: str
    model: nn.Module
    images: build.Splits
    device: torch.device

    def evaluating(self, *, refresh_batchnorm: bool = False) -> AbstractContextManager[None]:
        """The statistics of BatchNorm that the run, or the caller, evaluates with."""
        if not refresh_batchnorm and self.run.loop.batchnorm == "running":
            return nullcontext()
        batches = build.batchnorm_batches(self.images.train, self.run, self.device)
        return refreshed_statistics(self.model, batches)


def load_stored(
    source: Path, *, data_dir: Path | None = None, device: str = "auto"
) -> StoredNetwork:
    """Reads the network of a run, finished or not, and the images of the run.

    Args:
        source: Folder of the run, or a file from `export_stored`.
        data_dir: Where the data are; default: the usual places.
        device: cpu, cuda, cuda:N or auto.

    Raises:
        ValueError: There is no run in the folder, or its files or the exported one are damaged.
        FileNotFoundError: The run has not stored a network yet, or the data are missing.
    """
    shipped = load_sparse(source) if source.is_file() else None
    written = _written_in(source, shipped)
    run = _settings_in(written, source)
    label = str(written.get("label", run.label))
    run = with_setting(run, "device", device)
    run = replace(run, data=replace(run.data, data_dir=data_dir, download=False))
    target = build.resolve_device(device)
    images = build.select_images(build.load_images(run.data), run.data)
    model = build.build_model(run, images.train, target)
    if shipped is None:
        _load_weights(model, source)
    else:
        _load_shipped(model, shipped, source)
    return StoredNetwork(run=run, label=label, model=model, images=images, device=target)


def evaluate_stored(
    source: Path,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    refresh_batchnorm: bool = False,
) -> StoredScore:
    """Evaluates the network of a run, finished or not, on its test images.

    Args:
        source: Folder of the run, or a file from `export_stored`.
        data_dir: Where the data are; default: the usual places.
        device: cpu, cuda, cuda:N or auto.
        refresh_batchnorm: Take BatchNorm statistics anew first, over the training images.

    Raises:
        ValueError: There is no run in the folder, or its files or the exported one are damaged.
        FileNotFoundError: The run has not stored a network yet, or the data are missing.
    """
    stored = load_stored(source, data_dir=data_dir, device=device)
    run, model, test = stored.run, stored.model, stored.images.test
    with (
        build.autocast(run.loop, stored.device),
        stored.evaluating(refresh_batchnorm=refresh_batchnorm),
    ):
        score = evaluate(model, build.test_loader(test, run, stored.device).epoch(0))
    weights = sparse_parameters(model).values()
    return StoredScore(
        score=score,
        samples=len(test),
        active_weights=sum(int(torch.count_nonzero(w)) for w in weights),
        maskable_weights=sum(w.numel() for w in weights),
    )


def stored_masks(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Which weights of a run's network are active, by the plain names of its parameters.

    Args:
        folder: Of the run.
        model: From `load_stored`.

    Returns:
        Bool, on the device of the model; the masks of the checkpoint, or without one the weights
        that are not zero.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    masks = _masks_in(folder / CHECKPOINT)
    if masks is None:
        return {name: p.detach() != 0 for name, p in sparse_parameters(model).items()}
    return {name: mask.to(device_of(model)) for name, mask in masks.items()}


def export_stored(folder: Path, *, out: Path | None = None, overwrite: bool = False) -> Exported:
    """Writes the network of a run, finished or not, as one small file with the run's settings.

    The active weights are those of the masks in the run's checkpoint; without a checkpoint, those
    that are not zero. The folder is changed by the new file only.

    Args:
        folder: Of the run.
        out: The file; default: `SHIPPED` in the folder.
        overwrite: Replace a file that is there already.

    Returns:
        Where the file is, and its size.

    Raises:
        ValueError: There is no run in the folder, its files are damaged, or the file is there
            already.
        FileNotFoundError: The run has not stored a network yet.
    """
    path = folder / SHIPPED if out is None else out
    if path.is_dir():
        raise ValueError(f"--out takes a file, but {path} is a folder; add a name to it.")
    if path.exists() and not overwrite:
        raise ValueError(
            f"{path} is there already; pass --overwrite to replace it, or choose another --out."
        )
    manifest = read_run(folder).manifest
    run = _settings_in(manifest, folder)
    network = _network_file(folder)
    state, masks = _state_in(network), _masks_in(folder / CHECKPOINT)
    settings = {
        "run": as_plain(run),
        "label": manifest["label"],
        "versions": manifest.get("versions", {}),
    }
    try:
        summary = save_sparse(path, state, masks=masks, metadata=settings)
    except ValueError as error:
        raise ValueError(
            f"{network} does not fit the masks in {folder / CHECKPOINT} ({str(error).rstrip('.')})"
            "; train the run again with --overwrite."
        ) from error
    return Exported(path=path, summary=summary)


def _written_in(source: Path, shipped: SparseState | None) -> Mapping[str, Any]:
    """What a folder, or a file that was exported from one, says about its run."""
    if shipped is None:
        return read_run(source).manifest
    if "run" not in shipped.metadata:
        raise ValueError(
            f"{source} holds a network but no settings of a run; "
            "pass a file that `equipoise export` wrote, or the folder of a run."
        )
    return shipped.metadata


def _settings_in(written: Mapping[str, Any], source: Path) -> Run:
    """Settings as they were written down, if this version still knows all of them."""
    try:
        return from_plain(written["run"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{source} was written by another version of equipoise ({error}); "
            f"read it with version {written.get('versions', {}).get('equipoise')}."
        ) from error


def _load_weights(model: nn.Module, folder: Path) -> None:
    """Loads the trained weights, or those of the last checkpoint of an unfinished run."""
    path = _network_file(folder)
    state = _state_in(path)
    try:
        model.load_state_dict(state)
    except Exception as error:  # torch raises many kinds for many kinds of misfit
        raise _unusable(path, error) from error


def _load_shipped(model: nn.Module, shipped: SparseState, path: Path) -> None:
    """Loads an exported network; nothing dense is made before the shapes are known to be right."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in shipped.tensors.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path} holds {name} of shape {found.get(name)}, but its settings make a network "
                f"with {expected.get(name)}; export the run again."
            )
    model.load_state_dict(shipped.dense())


def _network_file(folder: Path) -> Path:
    """The file with the weights: of the finished run, or its last checkpoint."""
    for path in (folder / MODEL, folder / CHECKPOINT):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{folder} holds no trained network yet; let its training reach a checkpoint first."
    )


def _state_in(path: Path) -> dict[str, Tensor]:
    """The state of the network in a file of weights or in a checkpoint."""
    if path.name == CHECKPOINT:
        state = load_checkpoint(path).get("model")
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for many kinds of damage
            raise _unusable(path, error) from error
    if not _holds_tensors(state):
        raise _unusable(path, TypeError())
    return plain_state(state)


def _masks_in(checkpoint: Path) -> dict[str, Tensor] | None:
    """The masks of the run; None without a checkpoint."""
    if not checkpoint.exists():
        return None
    try:
        masks = load_checkpoint(checkpoint)["topology"]["masks"]
    except (KeyError, TypeError) as error:
        raise _unusable(checkpoint, error) from error
    if not _holds_tensors(masks):
        raise _unusable(checkpoint, TypeError())
    return dict(masks)


def _holds_tensors(found: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether this is a dictionary of tensors."""
    return isinstance(found, dict) and all(isinstance(each, Tensor) for each in found.values())


def _unusable(path: Path, error: Exception) -> ValueError:
    """For a file that can be read by nobody, or holds something else."""
    if path.name == CHECKPOINT:
        return ValueError(
            f"{path} holds no network of this run ({type(error).__name__}); "
            "start the run again with --overwrite."
        )
    return ValueError(
        f"{path} is damaged ({type(error).__name__}); delete it and run the training again, "
        "which then restores it from the last checkpoint."
    )
