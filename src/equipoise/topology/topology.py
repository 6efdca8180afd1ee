"""The owner of the masks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.measure import Measure, unmeasured
from equipoise.topology.attachment import Attachment, check_optimizers
from equipoise.topology.distributions import Distribution
from equipoise.topology.masked_weight import MaskedWeight
from equipoise.topology.masks import drop_and_grow, num_to_replace
from equipoise.topology.rewiring import Rewiring
from equipoise.topology.sampling import Sampling, draw_masks
from equipoise.topology.saved import FORMAT, check_state
from equipoise.topology.selection import Include, sparse_parameters
from equipoise.topology.store import LayerSummary as LayerSummary
from equipoise.topology.store import Store, check_stores, summary_of


class Topology:
    r"""Which weights of a model are active: the only object that makes, applies or changes masks.

    Inactive weights are zero after construction and after every optimizer step, and so is the
    optimizer's state for them; the gradients stay dense. With a rewiring, some active weights are
    dropped and as many grown from time to time, layer by layer, so that every layer keeps its
    number of active weights:

    .. math:: \theta \leftarrow M \odot \theta, \qquad \sum_i M_{l,i} = n_l

    The model keeps its modules, its hooks and the names and shapes in its ``state_dict``; only
    values of weights change. The global random number generators are not used.

    Args:
        model: Its connections are masked (see `sparse_parameters`).
        sparsity: Fraction of these weights that is removed, in [0, 1). At 0 nothing is ever
            touched.
        distribution: How the active weights are spread over the layers: one of
            `distribution_names`, or a function of the shapes and the density.
        rewiring: When and how the masks change; None for a static topology.
        include: Replaces the rule that chooses the masked parameters: asked with name and
            parameter for every trainable parameter.
        sampling: "exact" numbers of active weights, or "bernoulli" draws around them.
        seed: Of the topology's own random numbers; the same on every device.
        measure: Opened as ``"topology"`` around the work in the step hooks.

    Raises:
        ValueError: A setting is outside its range, or the model has no weight to mask.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> topology = Topology(model, sparsity=0.75)
        >>> handle = topology.attach(optimizer)
        >>> model(torch.ones(2, 8)).sum().backward()
        >>> optimizer.step()
        >>> topology.num_active, topology.num_steps, topology.verify()
        (48, 1, [])

    References:
        Evci et al., "Rigging the lottery" (RigL), 2020. Liu et al., "Do we actually need dense
        over-parameterization?" (ITOP), 2021.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float,
        distribution: str | Distribution = "erk",
        rewiring: Rewiring | None = None,
        include: Include | None = None,
        sampling: Sampling = "exact",
        seed: int = 0,
        measure: Measure = unmeasured,
    ) -> None:
        if rewiring is not None and not isinstance(rewiring, Rewiring):
            raise ValueError(
                f"rewiring is {rewiring!r}, expected a Rewiring or None; write for example "
                "rigl(total_steps) with the number of optimizer steps in the training."
            )
        parameters = sparse_parameters(model, include=include)
        if not parameters:
            raise ValueError(
                f"{type(model).__name__} has no trainable weight to mask; expected linear, "
                f"convolution, attention or recurrent layers, or choose parameters by include=."
            )
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)
        masks = draw_masks(
            {name: parameter.shape for name, parameter in parameters.items()},
            sparsity=sparsity,
            distribution=distribution,
            sampling=sampling,
            generator=self._generator,
        )
        self._weights: dict[str, Store] = {
            name: MaskedWeight(parameters[name], masks[name]) for name in parameters
        }
        self._sampling = sampling
        self._measure = measure
        self._attachment: Attachment | None = None
        self._num_steps = 0
        self._num_rewirings = 0
        self.rewiring = rewiring
        if rewiring is not None and self.num_active == self.num_weights:
            message = "a rewiring has no effect on a topology in which every weight is active."
            warnings.warn(message, UserWarning, stacklevel=2)
        self.apply_()

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What an optimizer trains of the masked weights, by name."""
        return MappingProxyType({name: masked.weight for name, masked in self._weights.items()})

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The masks by name, True = active; a read-only view, for reading only."""
        return MappingProxyType({name: masked.mask for name, masked in self._weights.items()})

    @property
    def ever_active(self) -> Mapping[str, Tensor]:
        """By name, which weights were active at any time so far."""
        return MappingProxyType({name: w.ever_active for name, w in self._weights.items()})

    @property
    def plan(self) -> Mapping[str, int]:
        """Number of active weights that every layer keeps."""
        return MappingProxyType({name: w.num_active for name, w in self._weights.items()})

    @property
    def num_active(self) -> int:
        """Number of active weights."""
        return sum(masked.num_active for masked in self._weights.values())

    @property
    def num_weights(self) -> int:
        """Number of masked weights, active or not."""
        return sum(masked.num_weights for masked in self._weights.values())

    @property
    def density(self) -> float:
        """Share of the masked weights that is active, as it really is."""
        return self.num_active / self.num_weights

    @property
    def sparsity(self) -> float:
        """Share of the masked weights that is inactive, as it really is."""
        return 1.0 - self.density

    @property
    def exploration_rates(self) -> Mapping[str, float]:
        """Share of the weights of every layer that was active at any time so far."""
        return MappingProxyType(
            {n: int(w.ever_active.sum()) / w.num_weights for n, w in self._weights.items()}
        )

    @property
    def exploration_rate(self) -> float:
        """Share of all masked weights that was active at any time so far (R_s of ITOP)."""
        seen = sum(int(masked.ever_active.sum()) for masked in self._weights.values())
        return seen / self.num_weights

    @property
    def num_steps(self) -> int:
        """Number of completed optimizer steps, those replaced by a rewiring included."""
        return self._num_steps

    @property
    def num_rewirings(self) -> int:
        """Number of rewirings so far."""
        return self._num_rewirings

    @property
    def rewires_next(self) -> bool:
        """Whether the next completed step is due for a rewiring."""
        # Most steps are not due, so the counts are compared last.
        return (
            self.rewiring is not None
            and self.rewiring.due(self._num_steps + 1)
            and self.num_active < self.num_weights
        )

    @torch.no_grad()
    def apply_(self, optimizer: Optimizer | None = None) -> None:
        """Zeroes the inactive weights and, given an optimizer, its state for them; idempotent.

        Active weights, gradients and masks are not changed.

        Args:
            optimizer: Every tensor of its state that has the shape of a masked weight is cleared.
        """
        for masked in self._weights.values():
            masked.clear_(optimizer)

    def advance_(self, gradients: Mapping[str, Tensor], *optimizers: Optimizer) -> None:
        """Counts one completed optimizer step and rewires if one is due.

        An attached topology does this itself. Surviving weights and their optimizer state are not
        changed; dropped and grown ones become zero.

        Args:
            gradients: Dense gradient by name, in the shapes of `masks`; a layer without one is
                left as it is.
            *optimizers: Their state is cleared at dropped and grown weights.
        """
        due = self.rewires_next
        self._num_steps += 1
        if due:
            self._rewire_(gradients, optimizers)

    @torch.no_grad()
    def _rewire_(self, gradients: Mapping[str, Tensor], optimizers: tuple[Optimizer, ...]) -> None:
        """Drops and grows in every layer that has a gradient."""
        assert self.rewiring is not None
        fraction = self.rewiring.fraction_at(self._num_steps)
        for name, masked in self._weights.items():
            num_replaced = num_to_replace(fraction, masked.num_active)
            gradient = gradients.get(name)
            if masked.is_dense or num_replaced == 0 or gradient is None:
                continue
            facts = (masked.dense(), gradient, masked.mask, self._generator)
            drop_score, grow_score = self.rewiring.drop(*facts), self.rewiring.grow(*facts)
            masked.replace_(
                *drop_and_grow(masked.mask, drop_score, grow_score, num_replaced), optimizers
            )
        self._num_rewirings += 1

    def attach(self, *optimizers: Optimizer) -> Attachment:
        """Follows the optimizers from now on; a training loop needs no other change.

        After every step of an optimizer the topology clears what is inactive among that
        optimizer's parameters and state. A step is counted, and a due rewiring done, when the
        last listed optimizer has stepped; a step that a gradient scaler skipped is not counted.

        Args:
            *optimizers: Together they train every masked weight; in the order of their steps.

        Returns:
            A handle with ``remove()``, which is also a context manager.

        Raises:
            ValueError: The topology is attached already, an optimizer trains nothing of this
                model, or a masked weight has no optimizer.

        Example:
            >>> model = nn.Linear(8, 4)
            >>> topology = Topology(model, sparsity=0.5)
            >>> optimizer = torch.optim.AdamW(model.parameters())
            >>> with topology.attach(optimizer):
            ...     optimizer.step()
            >>> topology.num_steps
            1
        """
        if self._attachment is not None:
            raise ValueError(
                "this topology is attached already; remove() the first handle, or attach all "
                "optimizers in one call."
            )
        check_optimizers(self._model, self._weights, optimizers)
        self._attachment = Attachment(
            self, self._weights, optimizers, self._measure, self._detached
        )
        self.apply_()
        return self._attachment

    def _detached(self) -> None:
        """The attachment was removed."""
        self._attachment = None

    def rebind_(self, stores: Mapping[str, Store], *, model: nn.Module | None = None) -> None:
        """Follows the same weights where they are kept in another way from now on.

        Names, masks, counters, random numbers and the record of what was ever active go on as
        they are; a state saved before loads after, and the reverse. No weight is changed.

        Args:
            stores: One for every masked weight, by name, with the masks of this topology.
            model: Whose parameters they hold; default: the same model as before.

        Raises:
            ValueError: The topology is attached, or the stores do not fit; nothing is changed.

        Example:
            >>> model = nn.Linear(4, 4)
            >>> topology = Topology(model, sparsity=0.5)
            >>> model.weight = nn.Parameter(model.weight.detach().clone())
            >>> topology.rebind_({"weight": MaskedWeight(model.weight, topology.masks["weight"])})
            >>> topology.parameters["weight"] is model.weight
            True
        """
        if self._attachment is not None:
            raise ValueError(
                "this topology is attached to an optimizer; remove() the handle before rebind_ "
                "and attach an optimizer of the new parameters after it."
            )
        model = self._model if model is None else model
        check_stores(self._weights, stores, model)
        for name, known in self._weights.items():
            stores[name].take_(known.mask, known.ever_active)
        self._weights = {name: stores[name] for name in self._weights}
        self._model = model

    def verify(self, *optimizers: Optimizer) -> list[str]:
        """Looks for whatever breaks the promise of the masks; changes nothing.

        Args:
            *optimizers: Whose state is looked at; none for the attached ones.

        Returns:
            One sentence per violation, so an empty list if all is well.

        Example:
            >>> model = nn.Linear(4, 4)
            >>> topology = Topology(model, sparsity=0.5)
            >>> _ = nn.init.ones_(model.weight)
            >>> topology.verify()
            ['weight has 8 inactive weights that are not zero.']
        """
        if not optimizers and self._attachment is not None:
            optimizers = self._attachment.optimizers
        return [
            f"{name} {violation}."
            for name, masked in self._weights.items()
            for violation in masked.violations(optimizers)
        ]

    def summary(self) -> list[LayerSummary]:
        """One row per masked weight.

        Example:
            >>> Topology(nn.Linear(4, 8), sparsity=0.75).summary()
            [LayerSummary(name='weight', shape=(8, 4), density=0.25, num_active=8)]
        """
        return [summary_of(name, masked) for name, masked in self._weights.items()]

    def __repr__(self) -> str:
        kind = "static" if self.rewiring is None else f"{self.num_rewirings} rewirings so far"
        return (
            f"Topology({self.num_active} of {self.num_weights} weights active in "
            f"{len(self._weights)} layers, sparsity {self.sparsity:.4f}, {kind})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later run needs to go on bit by bit as if it had not stopped.

        Returns:
            Plain dictionary of tensors, numbers and strings. Tensors are not copied; they are
            never changed in place.
        """
        return {
            "format": FORMAT,
            "masks": dict(self.masks),
            "ever_active": dict(self.ever_active),
            "num_steps": self._num_steps,
            "num_rewirings": self._num_rewirings,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a saved state and zeroes the weights that are inactive in it.

        Load the model's own state and the optimizer's too, before or after. Nothing is changed if
        the state does not fit.

        Args:
            state: From `state_dict` of a topology with the same layers and numbers of active
                weights ("bernoulli" sampling takes the numbers from the state).

        Raises:
            ValueError: The state does not fit; the message names the first differences.

        Example:
            >>> model = nn.Linear(4, 4)
            >>> state = Topology(model, sparsity=0.5, seed=1).state_dict()
            >>> topology = Topology(model, sparsity=0.5, seed=2)
            >>> topology.load_state_dict(state)
            >>> bool((topology.masks["weight"] == state["masks"]["weight"]).all())
            True
        """
        plan = self.plan if self._sampling == "exact" else None
        check_state(state, {n: masked.shape for n, masked in self._weights.items()}, plan)
        for name, masked in self._weights.items():
            masked.take_(state["masks"][name].clone(), state["ever_active"][name].clone())
        self._num_steps = state["num_steps"]
        self._num_rewirings = state["num_rewirings"]
        self._generator.set_state(state["generator"].cpu())
        self.apply_()
