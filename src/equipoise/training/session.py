"""One run in progress: its parts, where it stands, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.correction import (
    AgeAdaptive,
    Corrector,
    GradientCorrector,
    GradientTable,
    LossCovariance,
)
from equipoise.data import Batch, Dataset
from equipoise.data.folder import FolderDataset
from equipoise.engine.memory import POOL
from equipoise.engine.network import ways_of
from equipoise.published import in_effect
from equipoise.records import EpochRecord
from equipoise.settings import Run, partition_epochs_of
from equipoise.topology import ConnectivitySampling
from equipoise.training import build
from equipoise.training.batchnorm import refreshed_statistics
from equipoise.training.correcting import Surroundings, build_corrector, corrected_optimization
from equipoise.training.evaluate import Score, evaluate
from equipoise.training.flops import Flops, count_flops
from equipoise.training.meter import Meter
from equipoise.training.objective import build_objective
from equipoise.training.optimizers import build_optimizer, rate_factor
from equipoise.training.refreshing import (
    RefreshSchedule,
    fresh_batches,
    num_refresh_samples,
    replayed_batches,
)
from equipoise.validation import validate

_STATEFUL = ("model", "optimizer", "corrector", "topology", "scaler", "meter")


class Session:
    """Everything that a run is made of and everything that changes while it trains.

    Two sessions of the same settings start from the same weights, masks and data order, and those
    three depend on the seed and not on the corrector, so arms of a pair share them. The state
    holds all that is needed to continue bit for bit, in the middle of an epoch too.

    Args:
        run: The settings; checked here.
        dataset: The images; default: read as the settings say.
        begun: The state that will be loaded, because a run goes on with the kind of network that
            it began with; None for a new run, which then decides.
        folder: For what a run keeps on disk meanwhile; None keeps it in memory.

    Raises:
        ValueError: A setting is out of range or does not fit the data.
        FileNotFoundError: The data are not on this machine.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset | FolderDataset | None = None,
        *,
        begun: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        validate(run)
        self.run = run
        self.optimization = corrected_optimization(run)
        self.device = build.resolve_device(run.loop.device)
        loaded = build.load_images(run.data) if dataset is None else dataset
        self.images = build.select_images(loaded, run.data)
        self.loader = build.train_loader(self.images.train, run, self.device)
        self.meter = Meter(self.device)
        self.objective = build_objective(run, self.images.train, self.meter)
        self.model = build.build_model(run, self.images.train, self.device)
        self.topology = build.build_topology(self.model, run, self.total_steps, self.meter)
        self.flops = self._count_flops()
        self.num_parameters = sum(p.numel() for p in self.model.parameters())
        masked = self.model
        # What is wrong with the optimizer's settings is said before layers are timed.
        build_optimizer(self._trainable(), self.optimization)
        self.model, self.engine_reason = build.choose_engine(
            masked,
            self.topology,
            run,
            self._example_batch(),
            # Checkpoints from before there was an engine do not speak of it.
            begun=None if begun is None else begun.get("engine") or {},
        )
        self.uses_engine = self.model is not masked
        if run.loop.compile:
            # Only now: what the compiler meets while operations are counted it never compiles.
            self.model.compile()
        self.schedule = RefreshSchedule(
            run.correction,
            steps_per_epoch=self.steps_per_epoch,
            epochs=run.loop.epochs,
            seed=build.stream_seed(run.loop.seed, "refresh"),
        )
        self.corrector = build_corrector(
            self.objective,
            run,
            Surroundings(
                model=self.model,
                topology=self.topology,
                images=self.images.train,
                device=self.device,
                measure=self.meter,
                num_refreshes=self.schedule.count,
                folder=folder,
            ),
        )
        self.optimizer = build_optimizer(
            self._trainable(), self.optimization, masked=self.topology.parameters.values()
        )
        coefficient = getattr(self.corrector, "coefficient", None)
        if isinstance(coefficient, AgeAdaptive):
            coefficient.follow(self.optimizer)
        if self.topology.masks:
            self.topology.attach(self.optimizer)
        self.scaler = build.build_scaler(run.loop, self.device)
        self.epoch = 0
        self.batch = 0
        self.step = 0
        # Where this is one of several phases: what came before it, and the length of them all.
        self.epochs_before = 0
        self.steps_before = 0
        self.epochs_in_all = run.loop.epochs
        self._loss_sum: Tensor = torch.zeros((), dtype=torch.float64, device=self.device)
        self._seen = 0
        self._keys_of_epoch: tuple[int, tuple[int, ...]] | None = None
        torch.manual_seed(build.stream_seed(run.loop.seed, "training"))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return -(-len(self.loader) // self.run.loop.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole training."""
        return self.steps_per_epoch * self.run.loop.epochs

    @property
    def refresh_is_due(self) -> bool:
        """Whether the coming step needs a new snapshot first, or a new table."""
        if isinstance(self.corrector, GradientTable):
            every = partition_epochs_of(self.run) or self.run.loop.epochs
            return self.batch == 0 and self.epoch % every == 0
        return self.schedule.due(self.step)

    @property
    def num_refresh_samples(self) -> int:
        """Samples that one refresh goes over, if it makes a pass."""
        return num_refresh_samples(self.loader, in_effect(self.run.correction).refresh_samples)

    @property
    def mean_loss(self) -> float:
        """Mean training loss of the current epoch so far; not a number before its first step."""
        return float(self._loss_sum) / self._seen if self._seen else math.nan

    def batches(self) -> Iterator[list[Batch]]:
        """What is left of the current epoch, in groups that make one optimizer step."""
        drawn = self._timed(self.loader.epoch(self.epoch, start=self.batch))
        group: list[Batch] = []
        for batch in drawn:
            group.append(batch)
            if len(group) == self.run.loop.accumulate:
                yield group
                group = []
        if group:
            yield group

    def refresh_batches(self) -> Iterator[Batch]:
        """The batches of a refresh: those of the epoch, or another draw of them.

        Attacked only where the run asks for it: the published full gradient is that of clean
        images, whatever the objective.
        """
        attacked = self.run.robust.snapshot == "adversarial"
        for batch in self._timed(self._drawn_for_refresh()):
            yield self._prepared(batch) if attacked else batch

    def _drawn_for_refresh(self) -> Iterator[Batch]:
        """The batches of a refresh as they are drawn."""
        settings, loop = in_effect(self.run.correction), self.run.loop
        samples, loader = settings.refresh_samples, self.loader
        if self.run.robust.snapshot == "clean_noaug":
            loader = build.plain_loader(self.images.train, self.run, self.device)
        if settings.refresh_draw == "replay":
            seed = build.stream_seed(loop.seed, "data")
            return replayed_batches(loader, self.epoch, samples=samples, seed=seed, step=self.step)
        if settings.refresh_draw == "clean":
            plain = build.plain_loader(self.images.train, self.run, self.device)
            return fresh_batches(plain, self.step, samples=samples, draw=None, whole=True)
        # Draws of the training passes are the epoch numbers, so these are never among them. Within
        # an epoch they are numbered by the step, beyond those of the epochs.
        number = self.epoch if self.batch == 0 else loop.epochs + self.step
        draw = None if self.run.data.locked else loop.epochs + number
        return fresh_batches(loader, number, samples=samples, draw=draw)

    def refresh(self, batches: Iterable[Batch]) -> None:
        """Takes the snapshot, or forgets the table; the cost is up to the corrector."""
        if isinstance(self.corrector, GradientTable):
            self.corrector.forget()  # the batches are other ones from now on
            return
        self.model.train()
        with self.meter("refresh"):
            self.corrector.refresh(batches, scale=self.scaler.get_scale())
            if isinstance(self.topology, ConnectivitySampling):
                self.topology.mark_snapshot_()

    def train_step(self, group: list[Batch]) -> None:
        """Data, objective, gradient, correction, optimizer; the topology follows by its hook."""
        self.model.train()
        self._set_learning_rate()
        self.optimizer.zero_grad()
        total = sum(batch.size for batch in group)
        for place, batch in enumerate(group):
            prepared = self._prepared(batch)
            share = batch.size / total
            scale = self.scaler.get_scale() * share
            if isinstance(self.corrector, GradientTable):
                key = self._keys()[self.batch + place]
                loss = self.corrector.backward(prepared, key, scale=scale)
            else:
                loss = self.corrector.backward(prepared, scale=scale)
            self._loss_sum += loss.double() * batch.size
        with self.meter("optimizer"):
            if self.run.optimization.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                self._clip(self.run.optimization.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self._seen += total
        self.batch += len(group)
        self.step += 1

    def finish_epoch(self) -> EpochRecord:
        """Evaluates, writes up the epoch and moves on to the next."""
        with self.meter("evaluation"):
            # Batches of another size would each keep memory of their own, unused meanwhile.
            POOL.release()
            images = self.images
            with self._evaluation_statistics():
                test = self._score(images.test)
                validation = None if images.validation is None else self._score(images.validation)
            POOL.release()
        record = self._record(test, validation)
        self._drop_stored()
        self.epoch += 1
        self.batch = 0
        self._loss_sum.zero_()
        self._seen = 0
        return record

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as plain dictionaries; tensors are the live ones."""
        parts = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        position = {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "loss_sum": float(self._loss_sum),
            "seen": self._seen,
        }
        ways = {path: asdict(way) for path, way in ways_of(self.model).items()}
        return {**parts, "random": random, "position": position, "engine": ways}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: The state belongs to other settings.
        """
        try:
            for name in _STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            position = state["position"]
            self.epoch, self.batch = int(position["epoch"]), int(position["batch"])
            self.step, self._seen = int(position["step"]), int(position["seen"])
            self._loss_sum.fill_(float(position["loss_sum"]))
            torch.set_rng_state(state["random"]["cpu"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the checkpoint does not fit this run ({reason}); "
                "resume it with the settings that it was started with."
            ) from error

    def _drop_stored(self) -> None:
        """Lets go of gradients that a refresh stored for the epoch that is over."""
        snapshots = getattr(self.corrector, "snapshots", self.corrector)
        if isinstance(snapshots, GradientCorrector):
            snapshots.drop_stored()

    def _prepared(self, batch: Batch) -> Batch:
        """The batch that both gradients will see, attacked in the precision of the run."""
        with build.autocast(self.run.loop, self.device):
            return self.objective.prepare(self.model, batch)

    def _keys(self) -> tuple[int, ...]:
        """Which batches of the partition those of the current epoch are, in order."""
        if self._keys_of_epoch is None or self._keys_of_epoch[0] != self.epoch:
            self._keys_of_epoch = self.epoch, self.loader.keys(self.epoch)
        return self._keys_of_epoch[1]

    def _trainable(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def moving_gradients(self) -> list[Tensor]:
        """The gradients, with zeros at inactive weights, which do not move."""
        return [
            p.grad if mask is None else p.grad * mask
            for p, mask in self._with_masks()
            if p.grad is not None
        ]

    @torch.no_grad()
    def _clip(self, largest: float) -> None:
        """Clips by the norm over what moves."""
        norm = torch.nn.utils.get_total_norm(self.moving_gradients())
        torch.nn.utils.clip_grads_with_norm_(self._trainable(), largest, norm)

    def _with_masks(self) -> list[tuple[torch.nn.Parameter, Tensor | None]]:
        """Every trainable parameter with its mask, if some of its entries are inactive."""
        parameters, masks = self.topology.parameters, self.topology.masks
        # A parameter of another shape than its mask is compact: all of its entries are active.
        fitting = {id(p): masks[n] for n, p in parameters.items() if p.shape == masks[n].shape}
        return [(p, fitting.get(id(p))) for p in self._trainable()]

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time to draw them on the meter."""
        while True:
            with self.meter("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _set_learning_rate(self) -> None:
        """Sets the rate of the coming step; a function of the step, so nothing to resume."""
        settings = self.optimization
        rate = settings.learning_rate * rate_factor(self.step, self.total_steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _score(self, images: build.Images) -> Score:
        """Evaluates in the precision of the run."""
        loader = build.test_loader(images, self.run, self.device)
        with build.autocast(self.run.loop, self.device):
            return evaluate(self.model, loader.epoch(0))

    def _evaluation_statistics(self) -> AbstractContextManager[None]:
        """BatchNorm's running statistics, or those that are taken anew for an evaluation."""
        if self.run.loop.batchnorm == "running":
            return nullcontext()
        batches = build.batchnorm_batches(self.images.train, self.run, self.device)
        return refreshed_statistics(self.model, batches)

    def _example_batch(self) -> Tensor:
        """Images of the shape of a training batch; zeros, so that nothing is decoded."""
        channels, side = build.image_shape(self.images.train, self.run.data)
        batch = torch.zeros(self.loader.batch_size, channels, side, side, device=self.device)
        last = self.run.loop.channels_last
        return batch.contiguous(memory_format=torch.channels_last) if last else batch

    def _count_flops(self) -> Flops:
        """Operations of one sample under the planned densities."""
        example = next(build.test_loader(self.images.test, self.run, self.device).epoch(0)).x[:1]
        masks = self.topology.masks
        densities = {name: self.topology.plan[name] / mask.numel() for name, mask in masks.items()}
        return count_flops(self.model, example, densities)

    def _growth_samples(self) -> float:
        """Samples whose dense gradient a rewiring needed."""
        rewiring = self.topology.rewiring
        if rewiring is None or self.run.sparse.topology not in ("rigl", "rigl_itop"):
            return 0.0
        per_step = self.loader.batch_size * self.run.loop.accumulate
        return float(self.topology.num_rewirings * per_step)

    def _record(self, test: Score, validation: Score | None) -> EpochRecord:
        meter, topology = self.meter, self.topology
        coefficient = getattr(self.corrector, "coefficient", None)
        adaptive = coefficient if isinstance(coefficient, LossCovariance) else None
        known = (
            "new_gradient",
            "old_gradient",
            "refresh",
            "optimizer",
            "topology",
            "data",
            "attack",
        )
        training_seconds = meter.training_seconds
        return EpochRecord(
            epoch=self.epoch + 1,
            step=self.step,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            train_loss=self.mean_loss,
            validation_loss=None if validation is None else validation.loss,
            validation_accuracy=None if validation is None else validation.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            sparsity=topology.sparsity,
            active_weights=topology.num_active,
            exploration_rate=topology.exploration_rate,
            rewirings=topology.num_rewirings,
            coefficient=self.corrector.coefficient_value,
            coefficient_estimate=None if adaptive is None else adaptive.estimate,
            loss_correlation=None if adaptive is None else adaptive.correlation,
            data_passes=meter.data_passes(self.loader.num_samples),
            forward_samples=meter.forward_samples,
            backward_samples=meter.backward_samples,
            training_flops=self.flops.training(
                forward_samples=meter.forward_samples,
                backward_samples=meter.backward_samples,
                growth_samples=self._growth_samples(),
            ),
            training_seconds=training_seconds,
            new_gradient_seconds=meter.seconds("new_gradient"),
            old_gradient_seconds=meter.seconds("old_gradient"),
            refresh_seconds=meter.seconds("refresh"),
            optimizer_seconds=meter.seconds("optimizer"),
            topology_seconds=meter.seconds("topology"),
            data_seconds=meter.seconds("data"),
            attack_seconds=meter.seconds("attack"),
            other_seconds=training_seconds - sum(meter.seconds(part) for part in known),
            evaluation_seconds=meter.seconds("evaluation"),
            peak_memory_bytes=meter.peak_memory_bytes(),
            peak_device_memory_bytes=meter.peak_device_memory_bytes(),
            **observed(self.corrector),
        )


def observed(corrector: Corrector[Batch]) -> dict[str, Any]:
    """What a corrector that watches gradients has found out, as fields of a record."""
    if isinstance(corrector, GradientTable):
        found = corrector.evidence
        return {
            "best_coefficient": found.best,
            "rho_squared": found.rho_squared,
            "variance_ratio": found.variance_ratio,
            "table_bytes": corrector.num_bytes,
        }
    coefficient = getattr(corrector, "coefficient", None)
    if not isinstance(coefficient, AgeAdaptive):
        return {}
    ages = [
        {"age": age, "after_rewiring": after, **asdict(evidence)}
        for age, after, evidence in coefficient.by_age()
    ]
    samples = sum(row["samples"] for row in ages) or 1.0

    def mean(name: str) -> float | None:
        return sum(row[name] * row["samples"] for row in ages) / samples if ages else None

    return {
        "best_coefficient": mean("best"),
        "rho_squared": mean("rho_squared"),
        "variance_ratio": mean("variance_ratio"),
        "old_passes": coefficient.corrected,
        "old_passes_left_out": coefficient.skipped,
        "refreshes_left_out": coefficient.rested,
        "by_age": ages,
    }
