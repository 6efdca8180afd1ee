"""The corrector that stores the gradient of every batch and needs no second pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from equipoise.correction.batches import num_samples
from equipoise.correction.columns import BLOCK, Masked
from equipoise.correction.gradients import set_aside
from equipoise.correction.ledger import Key, Ledger
from equipoise.correction.moments import Evidence, Moments
from equipoise.correction.plain import AnyBatch, accumulate
from equipoise.correction.rows import Precision
from equipoise.measure import Measure, unmeasured
from equipoise.points import Named, device_of, trainable

FORMAT = 1
_LARGEST = 4.0  # times the usual deviation from the mean that is stored
_SUSPICIOUS = 30.0  # times the usual deviation that something is wrong


class GradientTable(Generic[AnyBatch]):
    r"""Corrects the gradient of a batch with the one that the same batch had an epoch ago.

    .. math:: \hat g = g_b(\theta) - c\,\Bigl(T_b - \tfrac{1}{m} \sum_k T_k\Bigr), \qquad
              T_b \leftarrow g_b(\theta)

    The samples are divided into m batches that stay together for some epochs; their order is
    shuffled as ever. Averaged over the batches the bracket is zero, whatever the table holds, so
    the correction changes the variance of the gradient and not its mean. There is no second pass
    and no snapshot: a step costs what a plain step costs, and some arithmetic on the active
    weights.

    The coefficient c, one for every parameter, is estimated from dot products of earlier steps
    (see `Moments`); it is 0 for a batch that has not been seen. Only active weights are stored.
    After a rewiring, the entries of weights that were active when a gradient was stored and have
    been ever since go on being used; a weight that was grown is corrected once its batch has been
    seen again. A stored gradient far larger than usual (a weight grown into a dead BatchNorm
    channel has one) is shrunk towards the mean, which keeps the correction unbiased.

    Parameters, buffers, modes and random streams are as a plain loop would leave them; with
    coefficient 0 a run is bit for bit the plain one. Any optimizer, clipping, schedule,
    accumulation and loss scale go with it. The samples of a batch must look the same each time:
    an augmentation must be locked (`ImageLoader(locked=True)`), or little correlation is left.

    Memory: ``row_bytes`` for every batch (in int8 about one byte for every active weight), and
    some 50 bytes for every active weight. A state holds the table too.

    Args:
        model: The model that `loss_fn` evaluates; on one device.
        loss_fn: Takes one batch (anything) and returns its mean loss, a scalar.
        masks: Tells which weights are active: a `Topology`. Not needed for dense networks, nor
            where layers keep their active weights only.
        precision: Of what is stored: "int8", "int4", "bf16" or "fp32".
        coefficient: A number in place of the estimate; 1 is SAGA, 0 only fills the table.
        folder: Keep the table in files of this folder, mapped into memory. It belongs to this
            table alone; what is in it is overwritten.
        batch_size: Number of samples in a batch; default: the length of the first tensor in it.
        measure: Told about every pass, for accounts of cost.

    Raises:
        ValueError: The precision is unknown, or the coefficient not finite.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batches = [torch.ones(4, 2), torch.zeros(4, 2)]
        >>> table = GradientTable(model, lambda x: model(x).square().mean())
        >>> for epoch in range(2):
        ...     for key in torch.randperm(len(batches)).tolist():
        ...         optimizer.zero_grad()
        ...         loss = table.backward(batches[key], key)
        ...         optimizer.step()
        >>> len(table)
        2

    References:
        Defazio, Bach and Lacoste-Julien, SAGA: a fast incremental gradient method, 2014.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[AnyBatch], Tensor],
        *,
        masks: Masked | None = None,
        precision: Precision = "int8",
        coefficient: float | None = None,
        folder: Path | str | None = None,
        batch_size: Callable[[AnyBatch], float] = num_samples,
        measure: Measure = unmeasured,
    ) -> None:
        if coefficient is not None and not abs(coefficient) < float("inf"):
            raise ValueError(
                f"coefficient takes a finite number or None; got {coefficient}; SAGA is 1."
            )
        self.model = model
        self.loss_fn = loss_fn
        self.coefficient = coefficient
        self.moments: Moments | None = None
        self._ledger = Ledger(
            model, masks, precision=precision, folder=None if folder is None else Path(folder)
        )
        self._batch_size = batch_size
        self._measure = measure
        self._warned = False

    def __len__(self) -> int:
        """Number of batches with a stored gradient."""
        return len(self._ledger)

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored gradients."""
        return self._ledger.num_bytes

    @property
    def coefficient_value(self) -> float:
        """Weight of the stored gradients at the next step, over all parameters; 0 without any."""
        if not len(self._ledger):
            return 0.0
        return self.coefficient if self.coefficient is not None else self.evidence.coefficient

    @property
    def evidence(self) -> Evidence:
        """What the estimates come to over all parameters; read it when a record is written."""
        moments = self.moments or Moments(0, torch.device("cpu"))
        return moments.evidence(self.coefficient)

    def refresh(
        self,
        batches: Iterable[AnyBatch],
        *,
        weights: Iterable[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        """Does nothing; `batches` is not iterated."""

    def forget(self) -> None:
        """Empties the table, because the samples are divided into other batches from now on.

        What is known of the coefficient is kept.
        """
        self._ledger.clear()

    def backward(self, batch: AnyBatch, key: Key | None = None, *, scale: float = 1.0) -> Tensor:
        r"""Accumulates the corrected gradient of one batch into ``p.grad``; stores the new one.

        .. math:: p.\mathrm{grad} \mathrel{+}= s\,[ g_b(\theta) - c\,(T_b - \bar T) ]

        One forward and one backward pass. A gradient that is not finite is left to the gradient
        scaler and not stored.

        Args:
            batch: Whatever `loss_fn` takes.
            key: Names the batch: the same samples must come under the same key. None for a batch
                that will not come again; it gets its plain gradient.
            scale: Multiplies the loss and the correction alike: ``1 / k`` for k accumulated
                micro-batches (each with a key of its own), or an AMP loss scale.

        Returns:
            The loss at the current parameters, detached, unscaled. Shape ``()``.

        Raises:
            ValueError: `loss_fn` did not return a scalar that depends on the model's parameters.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> table = GradientTable(model, lambda x: model(x).mean(), coefficient=1.0)
            >>> for key in (0, 1, 0):
            ...     model.zero_grad()
            ...     _ = table.backward(torch.full((4, 2), float(key)), key)
            >>> model.weight.grad
            tensor([[0.5000, 0.5000]])
        """
        parameters = trainable(self.model)
        with set_aside(parameters):
            with self._measure(
                "new_gradient", samples=self._batch_size(batch), forwards=1, backwards=1
            ):
                value = accumulate(partial(self.loss_fn, batch), scale)
            if key is not None:
                with self._measure("old_gradient"):
                    self._correct(parameters, key, scale)
        return value

    def state_dict(self) -> dict[str, Any]:
        """The table, its mean and the moments; plain tensors, numbers and names.

        The tensors are the live ones: copy them before training on, as `torch.save` does.
        """
        return {
            "format": FORMAT,
            **self._ledger.state_dict(),
            "moments": None if self.moments is None else self.moments.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; continues bit for bit.

        Raises:
            ValueError: The state belongs to another format, model or precision; then nothing of
                it is loaded.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"the table has format {state.get('format')}, expected {FORMAT}; "
                "load it with the version of equipoise that wrote it."
            )
        self._ledger.load_state_dict(state)
        self.moments = None
        if state["moments"] is not None:
            self.moments = Moments(0, device_of(self.model))
            self.moments.load_state_dict(state["moments"])

    @torch.no_grad()
    def _correct(self, parameters: Mapping[str, nn.Parameter], key: Key, scale: float) -> None:
        """Corrects the gradients that have just arrived, then stores them uncorrected."""
        columns = self._ledger.follow(parameters)
        gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        new = self._ledger.gather(gradients)
        if scale != 1.0:
            new.div_(scale)
        if self.moments is None or self.moments.num_groups != len(columns.segments):
            self.moments = Moments(len(columns.segments), new.device)
        mean = self._ledger.mean()
        deviation = new - mean
        stored = self._ledger.read(key)
        difference = None if stored is None else self._ledger.difference(stored, mean)
        products = [_by_block(deviation, deviation)]
        if difference is not None:
            products += [_by_block(deviation, difference), _by_block(difference, difference)]
        sums = columns.group_sums(torch.stack(products))
        spread, usual = sums[0], self.moments.spread
        if not math.isfinite(sum(spread.tolist())):
            return
        if difference is not None:
            self._apply_(parameters, new, difference, scale)
            self.moments.observe(sums[1], sums[2], spread)
        self._ledger.store(key, self._held_back(new, deviation, spread, usual), stored)

    def _apply_(
        self,
        parameters: Mapping[str, nn.Parameter],
        new: Tensor,
        difference: Tensor,
        scale: float,
    ) -> None:
        """Writes ``scale * (new - c * difference)`` where c is not 0."""
        columns, moments = self._ledger.columns, self.moments
        assert moments is not None
        values = moments.values()
        if self.coefficient is not None:
            values.fill_(self.coefficient)
        used = values.tolist()
        if not any(used):
            return
        by_block = values[columns.group_of_block].to(new.dtype).unsqueeze(1)
        room = columns.room("corrected", new.dtype)
        blocks = new.view(-1, BLOCK), by_block, difference.view(-1, BLOCK)
        torch.addcmul(*blocks, value=-1.0, out=room.vector.view(-1, BLOCK))
        if scale != 1.0:
            room.vector.mul_(scale)
        corrected: Named = {}
        for segment, c in zip(columns.segments, used, strict=True):
            parameter = parameters[segment.name]
            if c == 0.0:
                continue
            if parameter.grad is None:
                if not bool(difference[segment.start : segment.start + segment.size].any()):
                    continue
                parameter.grad = torch.zeros_like(parameter)
            corrected[segment.name] = parameter.grad
        columns.put_(corrected, room)

    def _held_back(
        self, new: Tensor, deviation: Tensor, spread: Tensor, usual: Tensor | None
    ) -> Tensor:
        """What is stored of a gradient: all of it, unless it is far larger than those before."""
        if usual is None:
            return new
        # With a usual deviation of 0 there is nothing to compare with.
        pairs = zip(spread.tolist(), usual.tolist(), strict=True)
        if not any(now > _LARGEST**2 * before > 0.0 for now, before in pairs):
            return new
        allowed = _LARGEST**2 * usual
        over = (spread > allowed) & (usual > 0.0)
        worst = float((spread / usual.clamp_min(1e-300))[over].max()) ** 0.5
        if worst > _SUSPICIOUS and not self._warned:
            self._warned = True
            place = int((spread / usual.clamp_min(1e-300)).nan_to_num(0.0).argmax())
            warnings.warn(
                f"the gradient of {self._ledger.columns.segments[place].name} became {worst:.0f} "
                "times as large as usual, as it does where weights are grown into BatchNorm "
                "channels that are nearly dead; the table holds it back.",
                RuntimeWarning,
                stacklevel=4,
            )
        factor = torch.where(over, (allowed / spread.clamp_min(1e-300)).sqrt(), 1.0)
        by_block = factor[self._ledger.columns.group_of_block].to(new.dtype).unsqueeze(1)
        lost = deviation.view(-1, BLOCK) * (1.0 - by_block)
        return new - lost.view(-1)


def _by_block(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of blocks."""
    return (a * b).view(-1, BLOCK).sum(dim=1)
