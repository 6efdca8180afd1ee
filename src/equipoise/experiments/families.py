"""The four families of runs behind the paper's tables and figures, at each scale.

A family is one published recipe. Scales reduce it; what they reduce is in `REDUCTIONS`, and is said
in every output. Lengths are shares of training, so that a recipe keeps its shape when it is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.experiments.values import Scale
from equipoise.settings import Run, with_setting

ITOP_STEPS = 250 * 352
"""Steps of the published ITOP runs; their intervals are shares of it at the reduced scales."""

REDUCTIONS: Mapping[Scale, tuple[str, ...]] = {
    "smoke": (
        "64 pictures of digits instead of the data set, small stand-ins for the networks, "
        "2 epochs: this shows that it runs, and nothing about the method",
    ),
    "cpu": (
        "the first 5,120 training and 2,000 test images",
        "a quarter of the channels; half of them for BSR-Net, which stays at 26 % accuracy with "
        "fewer",
        "12 epochs of 80 steps of 64 images, for 100 to 250 epochs of 352 steps and more of 128; "
        "milestones and rewirings at the same shares of training",
        "2 steps of attack in adversarial training for 10, and 20 steps with 2 restarts on 500 "
        "images in evaluation for 50 steps with 10 restarts on all",
    ),
    "paper": (),
}
"""What each scale leaves out, in sentences for readers."""

_CPU: Mapping[str, Any] = {
    "train_samples": 5120,
    "test_samples": 2000,
    "width": 0.25,
    "epochs": 12,
    "batch_size": 64,
    "device": "cpu",
}
_SMOKE: Mapping[str, Any] = {
    "dataset": "digits",
    "train_samples": 64,
    "test_samples": 64,
    "width": 0.5,
    "epochs": 2,
    "batch_size": 16,
    "device": "cpu",
    "engine": "dense",
    "augment": "no",
}
# Digits are 8 x 8 pixels, less than the networks of the paper can take.
_STAND_INS: Mapping[str, str] = {"vgg_c": "small_cnn", "vgg16": "small_cnn"}
_OTHER_STAND_IN = "mlp"


def changed(run: Run, **settings: Any) -> Run:
    """The run with settings changed, each found by its name.

    Example:
        >>> changed(Run(), epochs=3, sparsity=0.5).loop.epochs
        3
    """
    for name, value in settings.items():
        run = with_setting(run, name, value)
    return run


def itop(scale: Scale, model: str, topology: str, corrector: str = "none", **settings: Any) -> Run:
    """A run of the ITOP family: CIFAR-10, 99 % sparse, 250 epochs.

    Args:
        scale: How much of it.
        model: `vgg_c` or `resnet34`.
        topology: `set_itop` or `rigl_itop`.
        corrector: As the settings name it.
        **settings: Whatever else is different, in the paper's size.

    Example:
        >>> itop("paper", "vgg_c", "set_itop", "agent").label
        'set_itop+agent'
    """
    run = changed(
        Run(),
        dataset="cifar10",
        validation=0.1,
        model=model,
        topology=topology,
        sparsity=0.99,
        corrector=corrector,
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="piecewise",
        milestones=(0.5, 0.75),
        epochs=250,
        batch_size=128,
    )
    run = changed(run, **settings)
    if scale == "paper":
        return run
    if topology in ("set_itop", "rigl_itop"):
        steps = 1500 if topology == "set_itop" else 4000
        run = changed(run, interval=round(steps / ITOP_STEPS, 4))
    return _reduced(changed(run, validation=0.0), scale)


def bsr(scale: Scale, model: str, corrector: str = "none", **settings: Any) -> Run:
    """A run of the BSR-Net family: every arm shares rate, schedule, noise and BatchNorm.

    Args:
        scale: How much of it.
        model: `vgg16`, `wrn_28_4` or `resnet18`.
        corrector: As the settings name it.
        **settings: Whatever else is different, in the paper's size.

    Example:
        >>> bsr("paper", "vgg16", "agent").optimization.learning_rate
        0.04
    """
    run = changed(
        Run(),
        dataset="cifar10",
        inputs="pixels",
        model=model,
        topology="bsr",
        sparsity=0.99,
        noise="agent",
        corrector=corrector,
        optimizer="sgdw",
        learning_rate=0.04,
        momentum=0.9,
        weight_decay=1e-3,
        schedule="piecewise",
        milestones=(0.25, 0.5),
        drop_factors=(0.1, 0.005),
        epochs=200,
        batch_size=128,
    )
    run = _reduced(changed(run, **settings), scale)
    # On a quarter of the channels it stays at 26 % accuracy, whatever the batch.
    return changed(run, width=0.5) if scale == "cpu" else run


def bsr_original(scale: Scale, model: str, **settings: Any) -> Run:
    """BSR-Net as its authors trained it: another rate, schedule and noise.

    Example:
        >>> bsr_original("paper", "vgg16").optimization.drop_factors
        (0.1, 0.01)
    """
    original: dict[str, Any] = {
        "learning_rate": 0.1,
        "milestones": (0.5, 0.75),
        "drop_factors": (0.1, 0.01),
        "noise": "original",
    }
    return bsr(scale, model, **(original | settings))


def rigl(scale: Scale, dataset: str, corrector: str = "none", **settings: Any) -> Run:
    """A run of the RigL family: ResNet-50 on small images, warm-up, 250 epochs.

    Args:
        scale: How much of it.
        dataset: `cifar10` or `cifar100`.
        corrector: As the settings name it.
        **settings: Whatever else is different, in the paper's size.

    Example:
        >>> rigl("paper", "cifar100").optimization.learning_rate
        0.2
    """
    steps = 88_000
    milestones = tuple(round(step / steps, 4) for step in (21_760, 41_760, 61_760, 81_760))
    run = changed(
        Run(),
        dataset=dataset,
        validation=0.1,
        model="resnet50",
        topology="rigl",
        sparsity=0.9,
        interval=100,
        stop=65_918,
        prune_fraction=0.3,
        corrector=corrector,
        optimizer="sgd",
        learning_rate=0.2 if dataset == "cifar100" else 0.01,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        decay="matrices",
        schedule="piecewise",
        milestones=milestones,
        drop_factor=0.2,
        warmup=0.02,
        epochs=250,
        batch_size=128,
    )
    run = changed(run, **settings)
    if scale == "paper":
        return run
    if run.sparse.topology in ("set", "rigl"):
        run = changed(run, interval=None, stop=round(65_918 / steps, 4))
    return _reduced(changed(run, validation=0.0), scale)


def imagenet(scale: Scale, sparsity: float, corrector: str = "none", **settings: Any) -> Run:
    """A run of the ImageNet family: ResNet-50, RigL-ITOP, 100 epochs.

    Args:
        scale: How much of it; at `cpu` it is CIFAR-10, which is said in the notes.
        sparsity: 0.8 or 0.9.
        corrector: As the settings name it.
        **settings: Whatever else is different, in the paper's size.

    Example:
        >>> imagenet("paper", 0.8).optimization.milestones
        (0.3, 0.6, 0.9)
    """
    run = changed(
        Run(),
        dataset="image_folder",
        model="resnet50",
        stem="imagenet",
        topology="rigl_itop",
        distribution="er",
        sparsity=sparsity,
        corrector=corrector,
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        schedule="piecewise",
        milestones=(0.3, 0.6, 0.9),
        warmup=0.05,
        label_smoothing=0.1,
        epochs=100,
        batch_size=128,
    )
    run = changed(run, **settings)
    if scale == "paper":
        return run
    run = changed(run, dataset="cifar10", stem="cifar", interval=round(4000 / 1_000_900, 4))
    return _reduced(run, scale)


def _reduced(run: Run, scale: Scale) -> Run:
    """A published run at a scale."""
    if scale == "paper":
        return run
    run = changed(run, **(_SMOKE if scale == "smoke" else _CPU))
    if scale == "smoke":
        run = changed(run, model=_STAND_INS.get(run.network.model, _OTHER_STAND_IN))
    attacks = run.robust.objective != "standard"
    if attacks:
        run = changed(run, attack_steps=1 if scale == "smoke" else 2)
    elif scale == "cpu" and run.correction.corrector in _REPLAYED:
        # The same numbers at a pass less: an epoch is replayed, so its old gradients are known.
        run = changed(run, correction_mode="cached")
    return run


_REPLAYED = ("agent", "no_gamma", "reduce_lr", "svrg", "fixed", "alpha_svrg")
