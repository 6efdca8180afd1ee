"""From settings to parts: each function reads one group of settings and makes one part."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from equipoise.data import (
    Augmentation,
    Batch,
    Dataset,
    FolderLoader,
    FolderSet,
    ImageLoader,
    ImageSet,
    Loader,
    ResizedCrop,
    describe,
    load_dataset,
    open_folder,
)
from equipoise.data.folder import FolderDataset
from equipoise.data.places import cache_folder, candidate_folders, data_roots, not_found
from equipoise.engine.choice import way_from
from equipoise.engine.convert import Choice, choose_network, convert_as_before, to_engine
from equipoise.measure import Measure
from equipoise.models import create
from equipoise.points import preserved
from equipoise.settings import DataSettings, LoopSettings, Run, partition_epochs_of
from equipoise.topology import (
    ConnectivitySampling,
    MaskOwner,
    Rewiring,
    Topology,
    rigl,
    rigl_itop,
    set_itop,
    set_rewiring,
)
from equipoise.validation import engine_refusals

Images = ImageSet | FolderSet
"""One split: in memory, or a folder of pictures that are decoded as training goes on."""

FOLDER_IMAGE_SIZE = 224
_FEWEST_REWIRINGS = 20
_SHORTEST_INTERVAL = 10
_PRESETS = {"set": set_rewiring, "rigl": rigl, "set_itop": set_itop, "rigl_itop": rigl_itop}
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Splits(NamedTuple):
    """The images of a run."""

    train: Images
    validation: Images | None
    test: Images


def stream_seed(seed: int, stream: str) -> int:
    """A seed of its own for every use of random numbers, so that none disturbs another.

    Example:
        >>> stream_seed(0, "weights") == stream_seed(0, "masks")
        False
    """
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def resolve_device(name: str) -> torch.device:
    """The device that a name stands for; ``auto`` is the accelerator if there is one.

    Raises:
        ValueError: The name is unknown, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"--device takes auto, cpu, cuda or cuda:N; got {name!r}; try auto."
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device takes auto, cpu, cuda or cuda:N; got {name!r}; try auto.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device {name} was asked for, but torch {torch.__version__} sees no CUDA device; "
            "use --device cpu, or install a build of torch with CUDA."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name} was asked for, but there are {torch.cuda.device_count()} CUDA "
            "devices, counted from 0; choose one of them."
        )
    return device


def load_images(
    settings: DataSettings, on_progress: Callable[[int, int], None] | None = None
) -> Dataset | FolderDataset:
    """Reads the data set of a run as it lies on disk; `select_images` cuts it to size.

    Args:
        settings: Which data set, and where.
        on_progress: Called with (done, total) while images are decoded or fetched.

    Raises:
        FileNotFoundError: The data are not on this machine.
        ValueError: A file is damaged.
    """
    if settings.dataset != "image_folder":
        return load_dataset(
            settings.dataset,
            data_dir=settings.data_dir,
            download=settings.download,
            on_progress=on_progress,
        )
    info = describe("image_folder")
    roots = data_roots(settings.data_dir, cache_folder(None))
    found = [f for f in candidate_folders(info, roots) if (f / "train").is_dir()]
    if not found:
        raise not_found(info, roots)
    return open_folder(found[0])


def select_images(dataset: Dataset | FolderDataset, settings: DataSettings) -> Splits:
    """Subsets, sizes and the validation split that a run asks for.

    Raises:
        ValueError: More images are asked for than there are, or an impossible size.
    """
    train: Images = _first(dataset.train, settings.train_samples, "train-samples")
    test: Images = _first(dataset.test, settings.test_samples, "test-samples")
    if settings.inputs == "pixels":
        train, test = (_unnormalised(images) for images in (train, test))
    if settings.image_size is not None and isinstance(train, ImageSet):
        assert isinstance(test, ImageSet)
        train, test = train.resized(settings.image_size), test.resized(settings.image_size)
    if settings.validation == 0.0:
        return Splits(train, None, test)
    kept, validation = train.split(settings.validation)
    return Splits(kept, validation, test)


def image_shape(images: Images, settings: DataSettings) -> tuple[int, int]:
    """Channels, and pixels a side."""
    if isinstance(images, ImageSet):
        return images.channels, images.image_size
    return 3, settings.image_size or FOLDER_IMAGE_SIZE


def train_loader(
    images: Images, run: Run, device: torch.device, *, augmented: bool = True
) -> Loader:
    """Shuffled batches of the training images; augmented, unless that is not wanted."""
    channels, size = image_shape(images, run.data)
    wanted = run.data.augment == "yes"
    if run.data.augment == "auto":
        wanted = channels == 3 and size >= 32
    wanted = wanted and augmented
    batch_size = min(run.loop.batch_size, len(images))
    seed = stream_seed(run.loop.seed, "data")
    # A stored gradient helps only where its samples look as they did when it was stored.
    locked = run.data.locked or run.correction.corrector == "table"
    if isinstance(images, FolderSet):
        return FolderLoader(
            images,
            batch_size=batch_size,
            image_size=size,
            seed=seed,
            augmentation=ResizedCrop() if wanted else None,
            device=device,
            channels_last=run.loop.channels_last,
            locked=locked,
            partition_epochs=partition_epochs_of(run),
        )
    return ImageLoader(
        images,
        batch_size=batch_size,
        seed=seed,
        augmentation=_augmentation(images) if wanted else None,
        device=device,
        channels_last=run.loop.channels_last,
        locked=locked,
        partition_epochs=partition_epochs_of(run),
    )


def batchnorm_batches(images: Images, run: Run, device: torch.device) -> Iterator[Batch]:
    """The training images as they are, in an order that training does not use."""
    return train_loader(images, run, device, augmented=False).epoch(0, stream="batchnorm")


def plain_loader(images: Images, run: Run, device: torch.device) -> Loader:
    """Shuffled batches of the training images as they are."""
    return train_loader(images, replace(run, data=replace(run.data, augment="no")), device)


def test_loader(images: Images, run: Run, device: torch.device) -> Loader:
    """Batches in the order of the file, as they are."""
    batch_size = max(256, run.loop.batch_size)
    last = run.loop.channels_last
    if isinstance(images, FolderSet):
        return FolderLoader(
            images,
            batch_size=batch_size,
            image_size=image_shape(images, run.data)[1],
            shuffle=False,
            device=device,
            channels_last=last,
        )
    return ImageLoader(
        images, batch_size=batch_size, shuffle=False, device=device, channels_last=last
    )


def build_model(
    run: Run, images: Images, device: torch.device, *, stream: str = "weights"
) -> nn.Module:
    """The network with its initial weights, a function of the seed and of `stream` alone."""
    channels, size = image_shape(images, run.data)
    with preserved(torch.device("cpu")):
        torch.manual_seed(stream_seed(run.loop.seed, stream))
        model = create(
            run.network.model,
            num_classes=len(images.classes),
            in_channels=channels,
            image_size=size,
            width=run.network.width,
            dropout=run.network.dropout,
            stem=run.network.stem,
        )
    model = model.to(device)
    if run.loop.channels_last:
        # `Module.to` has the memory format in its code but in none of its typed overloads.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def build_topology(
    model: nn.Module, run: Run, total_steps: int, measure: Measure
) -> Topology | ConnectivitySampling:
    """Masks and the way that they change, for a training of `total_steps`."""
    settings, seed = run.sparse, stream_seed(run.loop.seed, "masks")
    if settings.topology == "bsr":
        _warn_of_no_rewiring(run)
        return ConnectivitySampling(
            model,
            sparsity=settings.sparsity,
            total_steps=total_steps,
            steps_per_epoch=max(1, total_steps // run.loop.epochs),
            noise=settings.noise,
            correction=settings.correction_mask,
            seed=seed,
            measure=measure,
        )
    return Topology(
        model,
        sparsity=0.0 if settings.topology == "dense" else settings.sparsity,
        distribution=settings.distribution,
        rewiring=build_rewiring(run, total_steps),
        sampling=settings.mask_sampling,
        seed=seed,
        measure=measure,
    )


def build_rewiring(run: Run, total_steps: int) -> Rewiring | None:
    """The preset of the topology with the settings that the run changes."""
    settings = run.sparse
    if settings.topology not in _PRESETS or settings.sparsity == 0.0:
        _warn_of_no_rewiring(run)
        return None
    interval = settings.interval
    if interval is None and settings.topology in ("set", "rigl"):
        # The published 100 steps mean hundreds of rewirings; a short training needs some too. But
        # a rewiring of RigL takes the place of a step, so they must stay the exception.
        shortest = min(_SHORTEST_INTERVAL, max(1, total_steps // 2))
        interval = max(shortest, min(100, total_steps // _FEWEST_REWIRINGS))
    chosen = {
        "interval": interval,
        "stop": settings.stop,
        "prune_fraction": settings.prune_fraction,
    }
    return _PRESETS[settings.topology](
        total_steps,
        schedule=settings.prune_schedule,
        signal=settings.growth_signal,
        **{name: value for name, value in chosen.items() if value is not None},
    )


def _warn_of_no_rewiring(run: Run) -> None:
    """Says that settings of a plan of rewirings change nothing."""
    given = (run.sparse.interval, run.sparse.stop, run.sparse.prune_fraction)
    if any(value is not None for value in given):
        why = "is rewired after every step" if run.sparse.topology == "bsr" else "is never rewired"
        warnings.warn(
            f"interval, stop and prune_fraction have no effect, because this topology {why}; "
            "choose set or rigl and a sparsity above 0, or leave them out.",
            UserWarning,
            stacklevel=3,
        )


def choose_engine(
    model: nn.Module,
    topology: MaskOwner,
    run: Run,
    example: torch.Tensor,
    *,
    begun: Mapping[str, Any] | None,
) -> Choice:
    """The network that is trained: of active weights only where a run asks for it and it pays.

    A run goes on as it began: its states have the sizes of its kind of network, and sums in
    another order would not end bit for bit alike.

    Args:
        model: With masks.
        topology: Of this model; follows the network that is returned.
        run: The settings.
        example: Images of the shape of a training batch.
        begun: How a checkpoint of the run says that its layers were run, by path, empty for
            masks; None where there is none.

    Raises:
        ValueError: The kernels are asked for and cannot run the network.
    """
    if begun:
        return _as_it_began(model, topology, example, begun)
    if begun is not None or run.loop.engine == "dense":
        return Choice(model, None)
    if run.loop.engine == "sparse":
        return Choice(to_engine(model, topology, example, engine="sparse"), None)
    if engine_refusals(run) or example.device.type != "cpu":
        return Choice(model, None)
    return choose_network(model, topology, (example,))


def _as_it_began(
    model: nn.Module, topology: MaskOwner, example: torch.Tensor, begun: Mapping[str, Any]
) -> Choice:
    """The network of a run that began with the engine."""
    try:
        ways = {path: way_from(way) for path, way in begun.items()}
        network, reason = convert_as_before(model, topology, (example,), ways)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        network, reason = model, f"{type(error).__name__}: {error}".rstrip(".")
    if reason is not None:
        raise ValueError(
            f"the checkpoint was made with the engine, which does not work here ({reason}); "
            "go on where it does, or start again with --overwrite."
        )
    return Choice(network, None)


def autocast(settings: LoopSettings, device: torch.device) -> AbstractContextManager[object]:
    """Half precision for matrix products where the run asks for it."""
    if settings.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_HALF[settings.precision])


def build_scaler(settings: LoopSettings, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16; switched off, and without effect, for the others."""
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    # It makes its state when it first scales something, and here the corrector does that for it.
    scaler.scale(torch.zeros((), device=device))
    return scaler


def default_output(run: Run) -> Path:
    """Where a run goes unless told otherwise."""
    return Path("runs") / run.folder_name


def _first(images: Images, count: int | None, flag: str) -> Images:
    """The first images of a split, or all."""
    if count is None:
        return images
    if count > len(images):
        raise ValueError(
            f"--{flag} asks for {count} images, but {images.name} has {len(images)}; "
            "ask for fewer, or leave it out for all of them."
        )
    return images.subset(count)


def _unnormalised(images: Images) -> Images:
    """The same images, whose batches are pixels in [0, 1]."""
    count = len(images.mean)
    return replace(images, mean=(0.0,) * count, std=(1.0,) * count)


def _augmentation(images: ImageSet) -> Augmentation:
    """The usual crop and flip; digits and numbers keep their orientation."""
    return Augmentation(
        crop_padding=4 if images.image_size >= 24 else 1,
        # The published recipes reflect CIFAR-10 and pad the others with zeros.
        padding_mode="reflect" if images.name == "cifar10" else "zeros",
        flip=images.name not in ("digits", "svhn"),
    )
