"""Bayesian connectivity sampling (BSR-Net): who is connected is drawn anew after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.measure import Measure, unmeasured
from equipoise.topology.attachment import check_optimizers
from equipoise.topology.bsr_bond import SamplingBond
from equipoise.topology.bsr_start import (
    NoiseName,
    budget,
    first_densities,
    half_normal,
    noise_scale,
    share_out,
)
from equipoise.topology.bsr_weights import SignedCompact, SignedMasked, SignedWeight
from equipoise.topology.compact_weight import CompactWeight
from equipoise.topology.distributions import Distribution
from equipoise.topology.masks import random_mask
from equipoise.topology.rewiring import Rewiring
from equipoise.topology.selection import Include, sparse_parameters
from equipoise.topology.store import LayerSummary, Removable, Store

FORMAT = 1
KIND = "connectivity sampling"


class ConnectivitySampling:
    r"""Masks that follow the signs of the weights, refilled at random to one budget for all layers.

    .. math:: W = s\,[\theta > 0]\,\theta, \qquad \sum_l \sum_i [\theta_{l,i} > 0] = K

    Every weight has a sign s for life. After each step of the optimizer noise is added to the
    active weights; one whose theta has become negative is disconnected. As many as are missing to
    the budget K are then connected at random, anywhere in the network, with theta = 1e-12, which
    survives only if its first steps push it up. Nothing is ever pruned: where more than K are
    active at first, their number falls by crossings alone.

    It has the interface of `Topology`. The parameter of the model holds W, with zeros where
    inactive. Before a step the gradients at inactive weights are zeroed, the correction of a
    corrector included. The initial weights are replaced, whatever they were. The global random
    number generators are not used.

    Args:
        model: Its connections are sampled.
        sparsity: Fraction of these weights that is inactive, in (0, 1).
        total_steps: Length of the training in optimizer steps; for the noise.
        steps_per_epoch: Of which one epoch; for the noise.
        noise: Schedule of the noise; see `noise_scale`.
        correction: What a corrector's correction moves: "active" weights only, or as the published
            code lets it, also theta of inactive ones, which it may connect again ("all"). The
            corrections of "all" are those of weights that were active at `mark_snapshot_`.
        first: Share of every layer that is active at first; default: as published.
        include: Replaces the rule that chooses the weights, as in `Topology`.
        seed: Of signs, first weights, noise and growth; the same on every device.
        measure: Opened as ``"topology"`` around the work in the step hooks.

    Raises:
        ValueError: A setting is out of its range, or the model has no weight to mask.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> topology = ConnectivitySampling(model, sparsity=0.75, total_steps=10,
        ...                                 steps_per_epoch=5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> handle = topology.attach(optimizer)
        >>> model(torch.ones(2, 8)).sum().backward()
        >>> optimizer.step()
        >>> topology.num_active >= topology.budget, topology.verify()
        (True, [])

    References:
        Ozdenizci and Legenstein, "Training adversarially robust sparse networks via Bayesian
        connectivity sampling", 2021. Bellec et al., "Deep rewiring", 2018.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float,
        total_steps: int,
        steps_per_epoch: int,
        noise: NoiseName = "agent",
        correction: Literal["active", "all"] = "active",
        first: Distribution = first_densities,
        include: Include | None = None,
        seed: int = 0,
        measure: Measure = unmeasured,
    ) -> None:
        if not 0.0 < sparsity < 1.0:
            raise ValueError(
                f"connectivity sampling takes a sparsity above 0 and below 1; got {sparsity}; "
                "for a dense network use no topology."
            )
        parameters = sparse_parameters(model, include=include)
        if not parameters:
            raise ValueError(
                f"{type(model).__name__} has no trainable weight to mask; expected linear or "
                "convolution layers, or choose parameters by include=."
            )
        self.rewiring: Rewiring | None = None
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)
        self._steps = (steps_per_epoch, total_steps)
        self._noise: NoiseName = noise
        self._moves_all = correction == "all"
        self._measure = measure
        self._bond: SamplingBond | None = None
        self._num_steps = 0
        self._snapshot: dict[str, Tensor] = {}
        self._weights: dict[str, SignedWeight] = {}
        density = round(1.0 - sparsity, 12)
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        shares = first(shapes, density)
        for name, parameter in parameters.items():
            self._weights[name] = _drawn(parameter, shares[name], self._generator)
        self.ever_active_masks = {n: w.mask.clone() for n, w in self._weights.items()}
        self.budget = budget(self.num_weights, density)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What an optimizer trains of the sampled weights, by name."""
        return MappingProxyType({name: w.weight for name, w in self._weights.items()})

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The masks by name, True = active; for reading only."""
        return MappingProxyType({name: w.mask for name, w in self._weights.items()})

    @property
    def signs(self) -> Mapping[str, Tensor]:
        """The signs by name, int8, logical shape; for reading only."""
        return MappingProxyType({name: w.sign for name, w in self._weights.items()})

    @property
    def hidden(self) -> Mapping[str, Tensor]:
        """By name, ``sign * theta`` of inactive weights, zero at active ones; none if compact."""
        return MappingProxyType(
            {n: w.hidden for n, w in self._weights.items() if isinstance(w, SignedMasked)}
        )

    @property
    def ever_active(self) -> Mapping[str, Tensor]:
        """By name, which weights were active after any step so far; changed in place."""
        return MappingProxyType(self.ever_active_masks)

    @property
    def plan(self) -> Mapping[str, int]:
        """Active weights of every layer, with its expected share of what is missing."""
        missing = max(0, self.budget - self.num_active) / self.num_weights
        return MappingProxyType(
            {
                name: min(w.num_weights, w.num_active + round(missing * w.num_weights))
                for name, w in self._weights.items()
            }
        )

    @property
    def num_active(self) -> int:
        """Number of active weights."""
        return sum(w.num_active for w in self._weights.values())

    @property
    def num_weights(self) -> int:
        """Number of sampled weights, active or not."""
        return sum(w.num_weights for w in self._weights.values())

    @property
    def density(self) -> float:
        """Share of the weights that is active, as it really is."""
        return self.num_active / self.num_weights

    @property
    def sparsity(self) -> float:
        """Share of the weights that is inactive, as it really is."""
        return 1.0 - self.density

    @property
    def exploration_rate(self) -> float:
        """Share of all weights that was active after any step so far."""
        return sum(int(m.sum()) for m in self.ever_active_masks.values()) / self.num_weights

    @property
    def num_steps(self) -> int:
        """Number of completed optimizer steps."""
        return self._num_steps

    @property
    def num_rewirings(self) -> int:
        """Number of completed optimizer steps, since each is followed by a rewiring."""
        return self._num_steps

    def summary(self) -> list[LayerSummary]:
        """One row per sampled weight."""
        return [
            LayerSummary(name, tuple(w.sign.shape), w.num_active / w.num_weights, w.num_active)
            for name, w in self._weights.items()
        ]

    def apply_(self, optimizer: Optimizer | None = None) -> None:
        """Zeroes the inactive weights; optimizer state for them lives on, as published."""
        del optimizer
        for weight in self._weights.values():
            weight.close_()

    def mark_snapshot_(self) -> None:
        """Remembers which weights are active; called where a corrector takes its snapshot."""
        if self._moves_all:
            self._snapshot = {name: w.mask.clone() for name, w in self._weights.items()}

    def attach(self, *optimizers: Optimizer) -> SamplingBond:
        """Follows the optimizers from now on; a training loop needs no other change.

        A step is counted, and the rewiring done, when the last listed optimizer has stepped; a
        step that a gradient scaler skipped changes nothing.

        Args:
            *optimizers: Together they train every sampled weight; in the order of their steps.

        Returns:
            A handle with ``remove()``, which is also a context manager.

        Raises:
            ValueError: As for `Topology.attach`.
        """
        if self._bond is not None:
            raise ValueError(
                "this topology is attached already; remove() the first handle, or attach all "
                "optimizers in one call."
            )
        check_optimizers(self._model, self._weights, optimizers)
        self._bond = SamplingBond(self, optimizers)
        return self._bond

    def before_step_(self, optimizer: Optimizer, raw: Mapping[str, Tensor]) -> None:
        """Brings inactive weights into place and closes the gate on their gradients.

        Args:
            optimizer: That is about to step.
            raw: Gradients before correction, by name; read if corrections move all weights.
        """
        with self._measure("topology"), torch.no_grad():
            for name, weight in self._owned(optimizer):
                weight.open_()
                gradient = weight.weight.grad
                if gradient is None or not isinstance(weight, SignedMasked):
                    continue
                if not self._moves_all:
                    gradient.masked_fill_(~weight.mask, 0)
                    continue
                plain = raw.get(name, gradient)
                # The gate passes the gradient of now, the snapshot's gate let the others through.
                there = self._snapshot.get(name, weight.mask)
                gradient.sub_(plain).masked_fill_(~there.to(gradient.device), 0)
                gradient.add_(plain.masked_fill(~weight.mask, 0))

    def after_step_(self, *optimizers: Optimizer) -> None:
        """Counts one step: noise, crossings, growth.

        Args:
            *optimizers: Whose state follows where weights are compact.
        """
        with self._measure("topology"):
            self._num_steps += 1
            rates = _rates(optimizers)
            for weight in self._weights.values():
                rate = rates.get(id(weight.weight), 0.0)
                weight.cross_(self._noise_at(rate), self._generator)
            layers = self._weights.items()
            sizes = [weight.num_weights for _, weight in layers]
            room = [weight.num_weights - weight.num_active for _, weight in layers]
            missing = max(0, self.budget - self.num_active)
            counts = share_out(missing, sizes, room, self._generator)
            for (name, weight), count in zip(layers, counts, strict=True):
                positions = weight.grow_(count, self._generator, optimizers)
                seen = self.ever_active_masks[name]
                seen.view(-1)[positions.to(seen.device)] = True

    def verify(self, *optimizers: Optimizer) -> list[str]:
        """Looks for whatever breaks the promises of the class; changes nothing.

        Returns:
            One sentence per violation, so an empty list if all is well.
        """
        del optimizers
        return [f"{n} {found}." for n, w in self._weights.items() for found in _violations(w)]

    def rebind_(self, stores: Mapping[str, Store], *, model: nn.Module | None = None) -> None:
        """Follows the same weights where they are kept in another way from now on.

        Args:
            stores: One for every weight, by name, with the masks of this topology; compact ones
                are followed as such.
            model: Whose parameters they hold; default: the same model as before.

        Raises:
            ValueError: The topology is attached, or a weight has no store; nothing is changed.
        """
        if self._bond is not None or stores.keys() != self._weights.keys():
            raise ValueError(
                "connectivity sampling follows other stores before it is attached, and one for "
                "every weight; remove() the handle first, or pass the stores that are missing."
            )
        if self._moves_all and any(store.is_compact for store in stores.values()):
            raise ValueError(
                "corrections of inactive weights need weights under masks, since compact layers "
                'have none; use correction="active", or train with masks.'
            )
        for name, known in list(self._weights.items()):
            store = stores[name]
            if isinstance(store, CompactWeight):
                self._weights[name] = SignedCompact(store, known.sign)
            else:
                self._weights[name] = SignedMasked(store.weight, known.mask, known.sign)
        self._model = self._model if model is None else model

    def __repr__(self) -> str:
        return (
            f"ConnectivitySampling({self.num_active} of {self.num_weights} weights active, "
            f"budget {self.budget}, {self.num_steps} steps so far)"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later run needs to go on bit by bit; tensors are the live ones."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "masks": dict(self.masks),
            "ever_active": dict(self.ever_active),
            "signs": dict(self.signs),
            "hidden": dict(self.hidden),
            "snapshot": dict(self._snapshot),
            "num_steps": self._num_steps,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a saved state; load the model's own before.

        Raises:
            ValueError: It is the state of another kind of topology or of other weights; nothing
                is changed then.
        """
        if state.get("format") != FORMAT or state.get("kind") != KIND:
            raise ValueError(
                f"the state is of {state.get('kind', 'another kind of topology')!r}, format "
                f"{state.get('format')!r}; expected {KIND!r}, format {FORMAT}; pass what "
                "state_dict() returned."
            )
        shapes = {name: tuple(w.sign.shape) for name, w in self._weights.items()}
        for part in ("masks", "ever_active", "signs"):
            found = {name: tuple(tensor.shape) for name, tensor in state[part].items()}
            if found != shapes:
                differing = sorted(
                    n for n in found.keys() | shapes if found.get(n) != shapes.get(n)
                )
                raise ValueError(
                    f"the topology state does not fit this model; {differing[0]} has shape "
                    f"{found.get(differing[0])}, expected {shapes.get(differing[0])}."
                )
        for name, weight in self._weights.items():
            weight.sign = state["signs"][name].to(weight.sign.device)
            weight.take_(state["masks"][name], state["hidden"].get(name))
            self.ever_active_masks[name] = state["ever_active"][name].clone()
        self._snapshot = {name: mask.clone() for name, mask in state["snapshot"].items()}
        self._num_steps = int(state["num_steps"])
        self._generator.set_state(state["generator"].cpu())

    def _owned(self, optimizer: Optimizer) -> Iterator[tuple[str, SignedWeight]]:
        """The weights that an optimizer trains."""
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return ((n, w) for n, w in self._weights.items() if id(w.weight) in ids)

    def _noise_at(self, rate: float) -> float:
        """Deviation of the noise after the step that has just been counted."""
        per_epoch, total = self._steps
        return noise_scale(
            self._noise,
            rate,
            step=self._num_steps,
            steps_per_epoch=per_epoch,
            total_steps=total,
        )

    def gatherers(self, seen: Callable[[str, Tensor], None]) -> list[Removable]:
        """Hooks that tell raw gradients by name, where corrections move all weights."""
        if not self._moves_all:
            return []
        return [
            w.weight.register_hook(lambda gradient, name=name: seen(name, gradient))
            for name, w in self._weights.items()
        ]

    def detached(self) -> None:
        """The bond was removed."""
        self._bond = None


def _drawn(parameter: nn.Parameter, share: float, generator: torch.Generator) -> SignedMasked:
    """A weight with first values at random positions; the parameter's own are replaced."""
    shape = parameter.shape
    sign = torch.randint(2, tuple(shape), generator=generator, dtype=torch.int8) * 2 - 1
    sizes = half_normal(shape, generator)
    mask = random_mask(shape, int(share * parameter.numel()), generator)
    with torch.no_grad():
        parameter.copy_(torch.where(mask, sizes * sign, torch.zeros(())))
    return SignedMasked(parameter, mask, sign)


def _rates(optimizers: tuple[Optimizer, ...]) -> dict[int, float]:
    """The learning rate of every parameter, by identity."""
    return {
        id(parameter): float(group["lr"])
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _violations(weight: SignedWeight) -> Iterator[str]:
    """What is not as it should be, in words that follow the name of the weight."""
    mask = weight.mask
    if isinstance(weight, SignedCompact):
        dense = weight.store.dense()
        yield from weight.store.violations(())
    else:
        dense = weight.weight.detach()
    wrong = int((mask & (dense * weight.sign <= 0.0)).sum())
    stray = int(dense[~mask].count_nonzero())
    if wrong:
        yield f"has {wrong} active weights without their sign"
    if stray:
        yield f"has {stray} inactive weights that are not zero"
    if isinstance(weight, SignedMasked) and bool((weight.hidden * weight.sign > 0.0).any()):
        yield "keeps positive weights aside"
