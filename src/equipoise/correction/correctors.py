"""The corrector: it writes a corrected gradient where `loss.backward()` writes a plain one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import partial
from typing import Any, Generic

import torch
from torch import Tensor, nn

from equipoise.correction.activity import Activity
from equipoise.correction.batches import num_samples
from equipoise.correction.cache import GradientCache, fingerprint
from equipoise.correction.coefficients import Coefficient, LossCovariance
from equipoise.correction.columns import Masked
from equipoise.correction.gradients import add_weighted, all_finite, next_weight
from equipoise.correction.options import RefreshOptions
from equipoise.correction.overlap import Overlap
from equipoise.correction.plain import AnyBatch, accumulate
from equipoise.correction.saved import check_fit
from equipoise.correction.storage import Masks, add_active_, no_masks, pack, unpack
from equipoise.correction.watched import Watching, warn_of_old, watched_step
from equipoise.measure import Measure, unmeasured
from equipoise.points import (
    Named,
    RandomState,
    device_of,
    position_names,
    positions_of,
    preserved,
    random_state,
    replayed,
    trainable,
    value_and_gradient_at,
    value_at,
)

FORMAT = 1
_STEPS_BEFORE_REMINDER = 1000
_SCALE_BACKOFF = 16.0


class GradientCorrector(Generic[AnyBatch]):
    r"""Corrects each mini-batch gradient with the gradient of the same batch at a snapshot.

    .. math:: \hat g = g_B(\theta) + c\,\bigl(\tilde g - g_B(\tilde\theta)\bigr)

    where :math:`\tilde g` is the full gradient at the snapshot :math:`\tilde\theta`. Averaged over
    the batches of the refresh the bracket is zero, so the correction changes the variance of the
    gradient and not its mean.

    It stands between the loss and any `torch.optim.Optimizer`: `backward` replaces
    ``loss.backward()``, `refresh` is called where a new snapshot is wanted, usually at the start
    of every epoch. Weight decay, momentum, clipping and schedules act after it, on the corrected
    gradient. Parameters, buffers (BatchNorm statistics), modes, hooks on parameters and the global
    random stream are as a plain loop would leave them; with coefficient 0 a run is bit for bit the
    plain one. Forward hooks on modules fire in the extra passes too.

    Memory between steps: the snapshot and the full gradient, twice the trainable parameters; of a
    layer that keeps its active weights only, these are those parameters.

    After a rewiring of such a layer the snapshot keeps the active weights that it had, and the old
    gradient is computed there, so the bracket still averages to zero; it is added to the weights
    that were active then and are now. Those grown since stay uncorrected until the next refresh.

    What the correction takes for granted between two refreshes: buffers that the forward pass
    reads and parameters without ``requires_grad`` stay as they are (BatchNorm in training mode
    reads none). Random numbers are replayed for torch's global generators only. With a
    `torch.amp.GradScaler`, call ``scaler.scale(torch.ones(()))`` once, since this corrector scales
    the loss itself, and pass ``scale=scaler.get_scale()`` to both methods. Hooks on parameters see
    the new gradient before it is corrected, so an optimizer that steps inside such a hook is not
    corrected. Of activation checkpointing only the kind with ``use_reentrant=False`` works.

    Args:
        model: The model that `loss_fn` evaluates; on one device.
        loss_fn: Takes one batch (anything) and returns its mean loss, a scalar. It must reach the
            parameters through `model`: a parameter tensor captured from outside is not replaced
            at the snapshot.
        coefficient: Default `LossCovariance()`, which is AGENT.
        batch_size: Number of samples in a batch; default: the length of the first tensor in it.
        measure: Told about every pass, for accounts of cost.
        options: Of a refresh; default: all as it should be.
        masks: Says which entries of which parameters are active. Snapshot and full gradient then
            keep those only, and the correction acts on entries active at the snapshot and now:
            the same numbers, bit for bit, as long as masks do not change between two refreshes.
        cache: Keeps the batch gradients of a refresh, so that `backward` needs no second pass on
            the same batches; on another batch it makes one. If the batches come in the order of
            the refresh and nothing but the passes draws random numbers meanwhile, the numbers are
            those of two passes, bit for bit, with dropout too.
        first_snapshot: Parameters by name that the first estimate is made against; default: none,
            so that the first refresh makes no estimate.
        topology: As `masks`, but all entries are kept; for coefficients that watch gradients.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batches = [torch.ones(4, 2), torch.zeros(4, 2)]
        >>> corrector = GradientCorrector(model, lambda x: model(x).square().mean())
        >>> for epoch in range(2):
        ...     corrector.refresh(batches)
        ...     for batch in batches:
        ...         optimizer.zero_grad()
        ...         loss = corrector.backward(batch)
        ...         optimizer.step()

    References:
        Lei et al., Balance is Essence (AGENT), Eq. (2) and Alg. 1; Johnson and Zhang, Accelerating
        stochastic gradient descent using predictive variance reduction (SVRG), 2013.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[AnyBatch], Tensor],
        coefficient: Coefficient | None = None,
        *,
        batch_size: Callable[[AnyBatch], float] = num_samples,
        measure: Measure = unmeasured,
        options: RefreshOptions | None = None,
        masks: Masks = no_masks,
        cache: GradientCache | None = None,
        first_snapshot: Named | None = None,
        topology: Masked | None = None,
    ) -> None:
        if isinstance(coefficient, int | float):
            raise ValueError(
                f"coefficient is the number {coefficient}, expected an object; "
                f"write Constant({coefficient})."
            )
        self.model = model
        self.loss_fn = loss_fn
        self.coefficient: Coefficient = LossCovariance() if coefficient is None else coefficient
        self.options = RefreshOptions() if options is None else options
        self.cache = cache
        self.snapshot: Named = {} if first_snapshot is None else dict(first_snapshot)
        self.full_gradient: Named = {}
        self.positions: Named = {}
        self.packing: Named = {}
        self.leftover: Named = {}
        self._masks = masks
        self.num_refreshes = 0
        self._active = Activity(model, topology)
        self._overlap = Overlap()
        self._batch_size = batch_size
        self._measure = measure
        self._steps_without_refresh = 0

    @property
    def coefficient_value(self) -> float:
        """Weight of the old gradient at the next step; 0 while there is no full gradient."""
        return self.coefficient.value if self.full_gradient else 0.0

    def refresh(
        self,
        batches: Iterable[AnyBatch],
        *,
        weights: Iterable[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        r"""Takes the snapshot and computes the full gradient there.

        .. math:: \tilde\theta \leftarrow \theta, \qquad
                  \tilde g \leftarrow \frac{\sum_B n_B\, g_B(\theta)}{\sum_B n_B}

        Before that, the coefficient observes the losses of the same batches at the current
        parameters and at the *previous* snapshot. Nothing of the model changes, and if anything
        fails the corrector stays as it was. Two cases need no pass and do not iterate `batches`: an
        idle coefficient (0 until the next refresh), for which the snapshot is let go, and the
        first refresh of a coefficient that is still 0, which only takes the snapshot.

        Args:
            batches: What the training pass will see, or a sub-sample of it; iterated once.
            weights: One positive number a batch; default the batch sizes.
            scale: Loss scale for half-precision gradients, as in `backward`; the full gradient is
                stored unscaled. Where it makes a gradient overflow, that batch and those after it
                are evaluated at a smaller one.

        Raises:
            ValueError: `batches` is empty, `weights` does not fit it, or `loss_fn` did not return
                a scalar that depends on the model's parameters.

        Example:
            >>> from equipoise import Constant
            >>> model = torch.nn.Linear(2, 1)
            >>> corrector = GradientCorrector(model, lambda x: model(x).mean(), Constant(1.0))
            >>> corrector.refresh([torch.ones(4, 2), torch.zeros(4, 2)])
            >>> corrector.full_gradient["weight"]
            tensor([[0.5000, 0.5000]])
        """
        point = {name: p.detach() for name, p in trainable(self.model).items()}
        before = self.coefficient.state_dict()
        self.drop_stored()
        try:
            self.coefficient.advance()
            if self.coefficient.idle:
                self.snapshot, self.full_gradient, self.positions, self.packing = {}, {}, {}, {}
            else:
                full = self.full_gradient
                packing = {n: mask for n, mask in self._masks().items() if n in point}
                if not self._only_snapshot_is_needed():
                    with preserved(device_of(self.model)):
                        full = self._evaluate(point, batches, weights, scale, packing)
                snapshot = {n: t.clone() for n, t in pack(point, packing).items()}
                positions = {n: i for n, i in positions_of(self.model).items() if n in point}
                # Together, because gradients of one snapshot mean nothing at another.
                self.snapshot, self.full_gradient, self.positions = snapshot, full, positions
                self.packing = packing
                self._active.take_snapshot()
        except BaseException:  # an interrupted refresh can be repeated
            self.coefficient.load_state_dict(before)
            self.drop_stored()  # some may be of a snapshot that was not taken
            raise
        self.num_refreshes += 1
        self._steps_without_refresh = 0

    def backward(self, batch: AnyBatch, *, scale: float = 1.0) -> Tensor:
        r"""Accumulates the corrected gradient of one batch into ``p.grad``.

        .. math:: p.\mathrm{grad} \mathrel{+}= s\,\bigl[ g_B(\theta)
                  + c\,(\tilde g - g_B(\tilde\theta)) \bigr]

        Two forward-backward passes on the same batch with the same random numbers: one at the
        current parameters, one at the snapshot. The second changes no parameter, buffer, mode or
        random state. Before the first `refresh`, or while the coefficient is 0, only the first
        pass is made. If an old gradient is not finite the step is left uncorrected, with a
        warning.

        Args:
            batch: Whatever `loss_fn` takes. For adversarial objectives the *prepared* batch, so
                that both passes see the same perturbation.
            scale: Multiplies the loss and the correction alike: ``1 / k`` for k accumulated
                micro-batches, or an AMP loss scale. Dimensionless.

        Returns:
            The loss at the current parameters, detached, unscaled. Shape ``()``.

        Raises:
            ValueError: `loss_fn` did not return a scalar that depends on the model's parameters.

        Example:
            >>> from equipoise import Constant
            >>> model = torch.nn.Linear(2, 1)
            >>> corrector = GradientCorrector(model, lambda x: model(x).mean(), Constant(1.0))
            >>> corrector.refresh([torch.ones(4, 2), torch.zeros(4, 2)])
            >>> corrector.backward(torch.ones(4, 2)).shape
            torch.Size([])

        References:
            Lei et al., Balance is Essence (AGENT), Eq. (2) and Alg. 1.
        """
        loss = partial(self.loss_fn, batch)
        samples = self._batch_size(batch)
        if isinstance(self.coefficient, Watching) and self.full_gradient:
            return watched_step(self, self.coefficient, loss, samples, scale)
        state = random_state(device_of(self.model)) if self.coefficient_value != 0.0 else None
        with self._measure("new_gradient", samples=samples, forwards=1, backwards=1):
            value = accumulate(loss, scale)
        if self.options.adds_leftover:
            self._keep_leftover(scale)
        self.add_correction(batch, state, share=1.0, scale=scale)
        self._remind_of_refresh()
        return value

    def add_correction(
        self, batch: AnyBatch, state: RandomState | None, *, share: float, scale: float = 1.0
    ) -> None:
        """Adds a share of the correction of one batch to ``p.grad``, without the new gradient.

        Args:
            batch: The one whose new gradient is there already.
            state: The random numbers that the new gradient began with; may be None where the
                coefficient is 0.
            share: Of the coefficient; where the product is 0 no pass is made.
            scale: As in `backward`.
        """
        coefficient = share * self.coefficient_value
        if coefficient != 0.0 and state is not None:
            stored = self._stored_gradient(batch, scale)
            passes, samples = int(stored is None), self._batch_size(batch)
            loss = partial(self.loss_fn, batch)
            with self._measure("old_gradient", samples=samples, forwards=passes, backwards=passes):
                old = self._old_gradient(loss, state, scale) if stored is None else stored
                self._add_correction(old, coefficient, scale)

    def drop_stored(self) -> None:
        """Empties the cache, so that the state is smaller; meant for just before a refresh."""
        if self.cache is not None:
            self.cache.clear()

    def state_dict(self) -> dict[str, Any]:
        """Snapshot with its positions, full gradient, coefficient; plain tensors and numbers.

        The tensors are the live ones: copy them before training on, as `torch.save` does.
        """
        return {
            **self._active.state_dict(),
            "format": FORMAT,
            "snapshot": dict(self.snapshot),
            "full_gradient": dict(self.full_gradient),
            "positions": dict(self.positions),
            "packing": dict(self.packing),
            "leftover": dict(self.leftover),
            "cache": None if self.cache is None else self.cache.state_dict(),
            "coefficient": self.coefficient.state_dict(),
            "num_refreshes": self.num_refreshes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; continues bit for bit.

        Raises:
            ValueError: The state belongs to another format, model or kind of coefficient; then
                nothing of it is loaded.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"the corrector state has format {state.get('format')}, expected {FORMAT}; "
                "load it with the version of equipoise that wrote it."
            )
        # What a state lacks, the version that wrote it did not have.
        saved = {"positions": {}, "packing": {}, "leftover": {}, "cache": None, **state}
        check_fit(saved, self.model)
        try:
            self.coefficient.load_state_dict(state["coefficient"])
        except KeyError as error:
            raise ValueError(
                f"the state has no {error} for the coefficient {type(self.coefficient).__name__}; "
                "give the corrector the coefficient that it was saved with."
            ) from error
        parameters = dict(self.model.named_parameters())
        self.snapshot, self.full_gradient, self.positions, self.packing, self.leftover = (
            {name: t.to(parameters[name].device).clone() for name, t in saved[part].items()}
            for part in ("snapshot", "full_gradient", "positions", "packing", "leftover")
        )
        self.drop_stored()
        if self.cache is not None and saved["cache"] is not None:
            self.cache.load_state_dict(saved["cache"])
        self._active.load_state_dict(state)
        self.num_refreshes = int(state["num_refreshes"])

    def _snapshot_point(self) -> Named:
        """The snapshot with the positions that it was taken at."""
        if self.packing:
            return unpack(self.snapshot, self.packing, dict(self.model.named_parameters()))
        if not self.positions:
            return self.snapshot
        self.positions = self._overlap.unify(self.positions, positions_of(self.model))
        names = position_names(self.model)
        return self.snapshot | {names[name]: index for name, index in self.positions.items()}

    def _only_snapshot_is_needed(self) -> bool:
        """Without a previous snapshot there is no estimate, so a coefficient of 0 stays 0."""
        first = not self.snapshot and not self.options.updates_buffers
        return first and self.coefficient.needs_losses and self.coefficient.value == 0.0

    def _evaluate(
        self,
        point: Named,
        batches: Iterable[AnyBatch],
        weights: Iterable[float] | None,
        scale: float,
        packing: Named,
    ) -> Named:
        """Full gradient at `point`; shows the coefficient the losses there and at the snapshot."""
        total: Named = {}
        if self.options.adds_leftover:
            add_weighted(total, self.leftover, 1.0)
        current: list[Tensor] = []
        previous: list[Tensor] = []
        sizes: list[float] = []
        compares = bool(self.snapshot) and self.coefficient.needs_losses
        old_point = point
        if compares and self.options.compares_with == "previous":
            old_point = self._snapshot_point()
        given = None if weights is None else iter(weights)
        counts_alike = self.options.weighting == "batches"
        device = device_of(self.model)
        for batch in batches:
            samples = self._batch_size(batch)
            usual = 1.0 if counts_alike else samples
            sizes.append(usual if given is None else next_weight(given, len(sizes)))
            loss = partial(self.loss_fn, batch)
            state = random_state(device)
            value, gradient = self._gradient_at(point, loss, samples, scale)
            while scale > 1.0 and not all_finite(gradient.values()):
                # A loss scale that is still too large; here no scaler skips the batch.
                scale = max(1.0, scale / _SCALE_BACKOFF)
                with replayed(state):
                    value, gradient = self._gradient_at(point, loss, samples, scale)
            gradient = pack(gradient, packing)
            add_weighted(total, gradient, sizes[-1] / scale)
            if self.cache is not None:
                unscaled = {name: tensor / scale for name, tensor in gradient.items()}
                self.cache.append(gradient if scale == 1.0 else unscaled, fingerprint(batch))
            current.append(value)
            if compares:
                with (
                    self._measure("refresh", samples=samples, forwards=1),
                    torch.no_grad(),
                    replayed(state),
                ):
                    previous.append(value_at(self.model, old_point, loss).detach())
        if isinstance(weights, Sized) and len(weights) > len(sizes):
            raise ValueError(
                f"weights has {len(weights)} numbers for {len(sizes)} batches, expected one for "
                "every batch; leave weights out to weigh batches by their size."
            )
        if not sizes:
            raise ValueError(
                "refresh() got no batches, expected those whose mean gradient is the reference; "
                "pass the training loader, or call it again if it was an exhausted generator."
            )
        if compares:
            pairs = torch.stack(current), torch.stack(previous)
            self.coefficient.observe(*pairs, torch.tensor(sizes, dtype=torch.float64))
        full = {name: tensor.div_(sum(sizes)) for name, tensor in total.items()}
        if not all_finite(full.values()):
            warnings.warn(
                "the full gradient is not finite, so gradients stay uncorrected until the next "
                "refresh; lower the loss scale or the learning rate if this repeats.",
                RuntimeWarning,
                stacklevel=3,
            )
            return {}
        return full

    def _gradient_at(
        self, point: Named, loss: Callable[[], Tensor], samples: float, scale: float
    ) -> tuple[Tensor, Named]:
        """Loss and scaled gradient of one batch of a refresh."""
        with self._measure("refresh", samples=samples, forwards=1, backwards=1):
            live = self.options.updates_buffers
            return value_and_gradient_at(self.model, point, loss, scale=scale, live_buffers=live)

    def _old_gradient(self, loss: Callable[[], Tensor], state: RandomState, scale: float) -> Named:
        """The gradient at the snapshot with the random numbers of the new one, packed."""
        with replayed(state):
            old_point = self._snapshot_point()
            _, old = value_and_gradient_at(self.model, old_point, loss, scale=scale)
        return pack(old, self.packing)

    def _stored_gradient(self, batch: AnyBatch, scale: float) -> Named | None:
        """The same from the cache, if there is one and it still has it."""
        if self.cache is None:
            return None
        stored = self.cache.read(fingerprint(batch))
        if stored is None:
            return None
        device = device_of(self.model)
        moved = {name: tensor.to(device) for name, tensor in stored.items()}
        return moved if scale == 1.0 else {n: tensor * scale for n, tensor in moved.items()}

    def _keep_leftover(self, scale: float) -> None:
        """Keeps the new gradient as it is before it is corrected."""
        named = trainable(self.model).items()
        self.leftover = {n: p.grad / scale for n, p in named if p.grad is not None}

    @torch.no_grad()
    def _add_correction(self, old: Named, coefficient: float, scale: float) -> None:
        """Adds ``coefficient * (scale * full_gradient - old)`` to every ``p.grad``."""
        if not all_finite(old.values()):
            # Where the new gradient is not finite either, a gradient scaler skips the step.
            new = (p.grad for p in self.model.parameters() if p.grad is not None)
            if not all_finite(new):
                return
            warn_of_old()
            return
        positions = positions_of(self.model) if self.positions else {}
        masks = self._masks() if self.packing else {}
        for name, parameter in trainable(self.model).items():
            if name not in self.full_gradient:
                continue
            difference = self.full_gradient[name] * scale
            if name in old:
                difference.sub_(old[name])
            difference = self._overlap.between(name, difference, self.positions, positions)
            difference = self._active.twice(name, difference)
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if name in self.packing:
                then, kept = self.packing[name], masks.get(name)
                add_active_(parameter.grad, difference, then, kept, factor=coefficient)
                continue
            parameter.grad.add_(difference.to(parameter.grad.dtype), alpha=coefficient)

    def _remind_of_refresh(self) -> None:
        """Warns once where the corrector is used but never refreshed."""
        self._steps_without_refresh += 1
        if self.num_refreshes == 0 and self._steps_without_refresh == _STEPS_BEFORE_REMINDER:
            warnings.warn(
                f"backward() was called {_STEPS_BEFORE_REMINDER} times without a refresh(), so "
                "training is plain; call corrector.refresh(loader) at the start of every epoch.",
                UserWarning,
                stacklevel=3,
            )
