"""The value that describes one run.

A run is data: frozen dataclasses of plain values, equal when the runs are the same, hashable to
an identity. Torch is not imported here, so that the command line answers at once. The docstring
under a field is its help on the command line.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

DatasetName = Literal["digits", "fashion_mnist", "cifar10", "cifar100", "svhn", "image_folder"]
ModelName = Literal[
    "mlp",
    "small_cnn",
    "vgg16",
    "vgg_c",
    "resnet18",
    "resnet34",
    "resnet50",
    "wrn_22_2",
    "wrn_28_4",
]
TopologyName = Literal["dense", "static", "set", "rigl", "set_itop", "rigl_itop", "bsr"]
CorrectorName = Literal[
    "none",
    "agent",
    "no_gamma",
    "reduce_lr",
    "svrg",
    "fixed",
    "alpha_svrg",
    "mvr",
    "mvr_fixed",
    "agent_mvr",
    "agent_mvr_oracle",
    "ref_itop",
    "ref_rigl",
    "ref_bsr",
    "age",
    "table",
]
ObjectiveName = Literal["standard", "at", "mixed", "trades", "mart"]
_TUPLES = frozenset({"milestones", "drop_factors"})


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is learned from."""

    dataset: DatasetName = "digits"
    """Where the images come from; `equipoise list` says which of them are on this machine."""
    data_dir: Path | None = None
    """Folder with the files; default: $EQUIPOISE_DATA, then the usual places."""
    download: bool = False
    """Fetch a missing data set from its home, checked by its checksum."""
    image_size: int | None = None
    """Shrink images to this many pixels a side (a divisor of their size); default: as they are."""
    train_samples: int | None = None
    """Use only the first so many training images."""
    test_samples: int | None = None
    """Use only the first so many test images."""
    validation: float = 0.0
    """Fraction of the training images held back for validation, from the end, in [0, 1)."""
    augment: Literal["auto", "yes", "no"] = "auto"
    """Random crops and flips; auto: for colour images of 32 pixels and more."""
    locked: bool = False
    """Draw every sample with the same augmentation in every epoch; with a partition, as long as
    it holds."""
    inputs: Literal["normalised", "pixels"] = "normalised"
    """With the data set's mean subtracted and divided by its deviation, or pixels in [0, 1]."""
    partition_epochs: int | None = None
    """Epochs that the same samples stay together in a batch, the order of batches shuffled; 0:
    always; default: 1, but 8 for table."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What learns."""

    model: ModelName = "small_cnn"
    """Architecture; `equipoise list` describes them."""
    width: float = 1.0
    """Multiplies the channels of every layer, above 0."""
    dropout: float = 0.0
    """Probability of dropping a unit, in [0, 1); only for models that have dropout."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers of a ResNet: for small or for large images."""


@dataclass(frozen=True, kw_only=True)
class TopologySettings:
    """Which weights exist."""

    topology: TopologyName = "rigl"
    """How the active weights are chosen and moved."""
    sparsity: float = 0.9
    """Fraction of the weights removed, in [0, 1); 0.9 keeps one in ten."""
    distribution: Literal["erk", "er", "uniform"] = "erk"
    """How the active weights are shared between layers."""
    mask_sampling: Literal["exact", "bernoulli"] = "exact"
    """Draw exactly the planned number of active weights, or each with its probability."""
    interval: int | float | None = None
    """Between rewirings: steps (100) or a fraction of training (0.02); default: the method's, for
    set and rigl at most a twentieth of training, but no less than 10 steps."""
    stop: int | float | None = None
    """Last rewiring: steps or a fraction of training; default: the method's."""
    prune_fraction: float | None = None
    """Share of the active weights replaced by the first rewiring; default: the method's."""
    prune_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the prune fraction falls."""
    growth_signal: Literal["raw", "corrected"] = "raw"
    """Gradient by which RigL grows: of the mini-batch, or after correction."""
    noise: Literal["agent", "original", "none"] = "agent"
    """Schedule of the noise on active weights in bsr: AGENT's code, BSR-Net's, or no noise."""
    correction_mask: Literal["active", "all"] = "active"
    """What a correction moves in bsr: active weights, or inactive ones too, as published."""


@dataclass(frozen=True, kw_only=True)
class CorrectionSettings:
    """How gradients are corrected."""

    corrector: CorrectorName = "none"
    """none is the plain loop, agent the published method; both use the same loop."""
    scaling: float = 0.1
    """AGENT's factor gamma on the estimated coefficient, at least 0."""
    smoothing: float = 0.3
    """AGENT's weight alpha of a new estimate, in (0, 1]."""
    clip_coefficient: bool = False
    """Keep the estimate in [0, 1] before scaling: the paper says so, its code does not."""
    coefficient: float | None = None
    """Of `fixed` (default 0.1) and at the start of `alpha_svrg` (default 0.75)."""
    refresh_every: int = 1
    """Epochs between snapshots, at least 1."""
    refresh_steps: int | None = None
    """Steps between snapshots, instead of epochs; at least 1."""
    refresh_chance: float | None = None
    """Probability of a new snapshot at a step (loopless), instead of a fixed interval."""
    refresh_samples: int | None = None
    """Take the full gradient over a sub-sample of at least so many images; default: over all."""
    refresh_draw: Literal["replay", "fresh", "clean"] = "replay"
    """Full gradient over the very batches of the coming epoch, over another draw of them, or over
    whole batches of images that are not augmented."""
    refresh_weighting: Literal["samples", "batches"] = "samples"
    """In the full gradient, count batches by their samples, or all alike."""
    refresh_statistics: Literal["keep", "move"] = "keep"
    """Whether a refresh moves the running statistics of BatchNorm, as a training pass does."""
    refresh_leftover: bool = False
    """Begin the full gradient with the gradient of the last batch before, as one code does."""
    compare_with: Literal["previous", "current"] = "previous"
    """Estimate from losses at the previous snapshot, or, as one code does, at the current one."""
    first_estimate: Literal["none", "dense", "other"] = "none"
    """At the first refresh estimate nothing, or against the initial weights before they were
    masked, or against other initial weights."""
    initial_coefficient: float = 0.0
    """AGENT's estimate before there is any, before scaling."""
    correction_mode: Literal["recompute", "cached"] = "recompute"
    """Old gradients by a second pass, or as the refresh stored them: a pass less for each step, the
    same numbers; the refresh must replay every epoch."""
    cache: Literal["memory", "disk"] = "memory"
    """Where the stored gradients lie: 4 bytes for every batch and active weight."""
    keep: Literal["auto", "all", "active"] = "auto"
    """Entries of masked weights that the corrector keeps; auto: only the active ones where that
    gives the same numbers."""
    mvr_share: float = 0.1
    """Share of the newest gradient in `mvr_fixed` and `agent_mvr_oracle`, in (0, 1]."""
    mvr_strength: float = 100.0
    """Constant c of `mvr`, above 0: how the share of the newest gradient follows the step size."""
    mvr_offset: float = 0.1
    """Constant w of `mvr`, above 0: added to the sum of squared gradients."""
    gate: bool = False
    """Of age: leave out the second pass where a larger batch of the same cost would do more."""
    table_precision: Literal["int4", "int8", "bf16", "fp32"] = "int8"
    """Of the gradients that table stores: about 1/2, 1, 2 or 4 bytes an active weight and batch."""
    table_on_disk: bool = False
    """Keep the table in files beside the checkpoint instead of in memory."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What is minimised."""

    objective: ObjectiveName = "standard"
    """Cross-entropy, or one of those that train against attacks on the images."""
    norm: Literal["linf", "l2"] = "linf"
    """Of the attack: bounds every pixel, or the length of the whole change."""
    eps: float = 8 / 255
    """Radius of the attack in pixels of [0, 1], in [0, 1] for linf; default: 8 grey values."""
    step_size: float = 2 / 255
    """Of the attack, in the same units, above 0."""
    attack_steps: int = 10
    """Of the attack, at least 1; each costs a forward and half a backward pass."""
    beta: float = 6.0
    """Weight of the divergence in trades and mart, at least 0."""
    snapshot: Literal["clean", "clean_noaug", "adversarial"] = "clean"
    """Images behind the full gradient of a corrector: as published, or the same without
    augmentation, or attacked, which removes the bias and costs an attack an epoch."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How gradients become steps."""

    optimizer: Literal["sgd", "sgdw", "adam", "adamw"] = "sgd"
    """SGD with momentum, SGD with decoupled decay, Adam, or Adam with decoupled decay."""
    learning_rate: float = 0.1
    """At the start, above 0."""
    momentum: float = 0.9
    """Of sgd and sgdw, in [0, 1)."""
    nesterov: bool = True
    """Nesterov momentum (sgd only)."""
    weight_decay: float = 5e-4
    """Per step, at least 0."""
    decay: Literal["all", "matrices"] = "all"
    """Decay every parameter, or only those with two dimensions and more."""
    schedule: Literal["piecewise", "cosine", "constant"] = "piecewise"
    """How the learning rate falls."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Fractions of training after which piecewise multiplies the rate by `--drop-factor`."""
    drop_factor: float = 0.1
    """Factor at each milestone, in (0, 1]."""
    drop_factors: tuple[float, ...] = ()
    """Rates after the milestones as shares of the first; default: powers of `--drop-factor`."""
    warmup: float = 0.0
    """Fraction of training over which the rate rises linearly from 0, in [0, 1)."""
    clip_norm: float | None = None
    """Clip the (corrected) gradient to this norm; default: no clipping."""
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the targets, in [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and on what."""

    epochs: int = 20
    """Sweeps over the training images, at least 1."""
    batch_size: int = 128
    """Samples in a batch, at least 1."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step, at least 1."""
    seed: int = 0
    """Of initial weights, masks, data order and dropout; arms of a pair share it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the accelerator if there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of matrix products; weights and the stored full gradient stay in single precision."""
    channels_last: bool = False
    """Keep images and convolutions in the channels-last memory format."""
    engine: Literal["auto", "sparse", "dense"] = "auto"
    """Kernels for the active weights only: auto where they are faster, sparse in any case, or
    dense for masks on ordinary tensors; `equipoise plan` says what to expect."""
    batchnorm: Literal["running", "refreshed"] = "running"
    """Statistics at evaluation: those of training, or taken anew over the training images, as
    they are and with the weights fixed, which changes evaluation only."""
    compile: bool = False
    """Compile the model with torch.compile; the first steps then take minutes."""
    deterministic: bool = True
    """Prefer operations whose results are the same in every run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, completely described."""

    data: DataSettings = field(default_factory=DataSettings)
    network: ModelSettings = field(default_factory=ModelSettings)
    sparse: TopologySettings = field(default_factory=TopologySettings)
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    robust: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optimization: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    @property
    def label(self) -> str:
        """Name of the arm: topology, and corrector where there is one.

        Example:
            >>> Run(correction=CorrectionSettings(corrector="agent")).label
            'rigl+agent'
        """
        if self.correction.corrector == "none":
            return self.sparse.topology
        return f"{self.sparse.topology}+{self.correction.corrector}"

    @property
    def identity(self) -> str:
        """Eight letters that two runs share exactly if their settings are the same."""
        return hashlib.sha256(json.dumps(as_plain(self), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def folder_name(self) -> str:
        """A readable, unique name for the run's folder."""
        parts = (
            self.data.dataset,
            self.network.model,
            *([] if self.robust.objective == "standard" else [self.robust.objective]),
            self.label,
            f"s{self.sparse.sparsity:g}",
            f"seed{self.loop.seed}",
            self.identity,
        )
        return "-".join(parts)


def as_plain(run: Run) -> dict[str, Any]:
    """The run as nested dictionaries of JSON values; folders of this machine are left out."""
    plain = asdict(run)
    del plain["data"]["data_dir"], plain["data"]["download"]
    for name in _TUPLES:
        plain["optimization"][name] = list(plain["optimization"][name])
    kinds = _kinds()
    for settings in plain.values():
        # A rate of 1 is one of 1.0; only where both types are taken do they mean two things.
        for name, value in settings.items():
            if isinstance(value, int) and kinds[name] in (float, float | None):
                settings[name] = float(value)
    return plain


def from_plain(plain: dict[str, Any]) -> Run:
    """The inverse of `as_plain`.

    Example:
        >>> from_plain(as_plain(Run())) == Run()
        True
    """
    groups: dict[str, Any] = {}
    for group, kind in get_type_hints(Run).items():
        # A group that came later than what was written down has its defaults.
        values = dict(plain.get(group, {}) if group == "robust" else plain[group])
        for name in _TUPLES & values.keys():
            values[name] = tuple(values[name])
        groups[group] = kind(**values)
    return Run(**groups)


def with_setting(run: Run, name: str, value: Any) -> Run:
    """The run with one setting changed, found by its name in any group.

    Raises:
        ValueError: No group has a setting of that name.

    Example:
        >>> with_setting(Run(), "batch_size", 64).loop.batch_size
        64
    """
    for group in fields(run):
        settings = getattr(run, group.name)
        if is_dataclass(settings) and any(f.name == name for f in fields(settings)):
            changed: Any = replace(settings, **{name: value})  # type: ignore[type-var]
            return replace(run, **{group.name: changed})
    raise ValueError(f"no setting is called {name!r}; see `equipoise train --help`.")


def setting_types() -> dict[str, Any]:
    """Type of every setting of a run, by name."""
    types: dict[str, Any] = {}
    for kind in get_type_hints(Run).values():
        types |= get_type_hints(kind)
    return types


@cache
def _kinds() -> dict[str, Any]:
    """`setting_types`, worked out once."""
    return setting_types()


def changed_settings(run: Run) -> dict[str, Any]:
    """Settings that are not the defaults, by name; the seed and folders of a machine left out.

    Example:
        >>> changed_settings(with_setting(Run(), "epochs", 3))
        {'epochs': 3}
    """
    pairs = [
        (name, value, getattr(getattr(Run(), group), name))
        for group, settings in asdict(run).items()
        for name, value in settings.items()
    ]
    return {name: v for name, v, usual in pairs if v != usual and name not in ("data_dir", "seed")}


TABLE_PARTITION_EPOCHS = 8


def partition_epochs_of(run: Run) -> int | None:
    """Epochs between two partitions of the samples; 0 for never, None for new ones every epoch.

    Example:
        >>> partition_epochs_of(Run())
        >>> partition_epochs_of(Run(correction=CorrectionSettings(corrector="table")))
        8
    """
    given = run.data.partition_epochs
    if given is None and run.correction.corrector == "table":
        return TABLE_PARTITION_EPOCHS
    return None if given == 1 else given
