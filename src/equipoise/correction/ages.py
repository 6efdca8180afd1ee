"""A coefficient that follows the age of the snapshot, estimated from the gradients themselves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from equipoise.correction.moments import Evidence, Moments
from equipoise.points import Named

_PER_OCTAVE = 4
_FRESH = -1_000_000  # the bin of the snapshot itself, whose logarithm is that of 0
_PROBE = 7  # one step in so many looks whether the old pass would pay again
_RETRY = 2  # the same after refreshes that were left out
_FEW = 0.1  # of the steps since a refresh; a refresh for the sake of so few cannot pay
_CLEAR = 9.0  # times what chance would give that a mean is taken for a mismatch
_FEWEST = 8  # steps before a mean is judged
_LONGEST_REST = 8  # refreshes that are left out in a row, at most
_RESTING = ("useful", "useless", "rest", "patience")
_SUSPICIOUS = 30.0  # times the size of a gradient that something is wrong


@dataclass
class AgeAdaptive:
    r"""The best coefficient for every age of the snapshot and every parameter, without a factor.

    .. math:: c_{k,l} = \operatorname{clip}\Bigl(
                  \frac{A_{k,l} - z\,\sigma_{A,k,l}}{B_{k,l} + H e^2}, 0, 1\Bigr)

    where A and B are running means of :math:`\langle g - \tilde g, D \rangle` and
    :math:`\langle D, D \rangle` (see `Moments`) over earlier steps at the same age. Age is the
    sum of the learning rates since the refresh, in bins of a quarter of an octave, because that is
    what the correlation of old and new gradients depends on. A bin without evidence takes the
    coefficient of the nearest younger one; at the snapshot itself c is 1. After a rewiring, ages
    until the next refresh have bins of their own. Nothing of a batch enters its own coefficient.

    If the mean of D over the steps since the refresh is larger than chance allows, the full
    gradient is not that of the batches (another augmentation, an attack, a sub-sample): the
    squared mismatch :math:`e^2` times the number H of steps since then enters the denominator, or
    the mean is taken off ("recentre"). What enters from the start of an interval is the mean over
    those before, in which chance cancels.

    Args:
        optimizer: Its learning rates make the age; without it every step counts as 1.
        decay: What the weight of a step is multiplied by at the next of the same age, in (0, 1).
        confidence: Number z of standard errors, at least 0.
        prior: Samples that the network's coefficient counts as in that of a parameter.
        gate: Leave out the old pass at ages where the variance that it removes, at its best, is
            less than a larger batch of the same cost would remove; one step in 7 looks again. If
            hardly any pass since a refresh was of use, the next refresh is left out as well; the
            one after that looks again, and if it is of no use either 2 are left out, 4, then 8.
        old_pass_cost: Of the old pass, in plain steps: 1, or 1 / (S + 1) with S attack steps.
        mismatch: What to do about a mismatch: "shrink" the coefficient, or "recentre".

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from equipoise import GradientCorrector
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> coefficient = AgeAdaptive(optimizer)
        >>> corrector = GradientCorrector(model, lambda x: model(x).square().mean(), coefficient)
        >>> batches = [torch.ones(4, 2), torch.zeros(4, 2)]
        >>> for _ in range(3):
        ...     corrector.refresh(batches)
        ...     for batch in batches:
        ...         optimizer.zero_grad()
        ...         loss = corrector.backward(batch)
        ...         optimizer.step()
        >>> 0.0 < coefficient.value <= 1.0
        True
    """

    optimizer: Optimizer | None = None
    decay: float = 0.8
    confidence: float = 1.0
    prior: float = 4.0
    gate: bool = False
    old_pass_cost: float = 1.0
    mismatch: Literal["shrink", "recentre"] = "shrink"
    skipped: int = field(default=0, init=False)
    corrected: int = field(default=0, init=False)
    rested: int = field(default=0, init=False)
    _bins: dict[tuple[int, int], Moments] = field(default_factory=dict, init=False, repr=False)
    _sum: Named = field(default_factory=dict, init=False, repr=False)
    _age: float = field(default=0.0, init=False)
    _steps: int = field(default=0, init=False)
    _squares: float = field(default=0.0, init=False)
    _share_before: float = field(default=0.0, init=False)
    _share_weight: float = field(default=0.0, init=False, repr=False)
    _after_rewiring: int = field(default=0, init=False)
    _value: float = field(default=0.0, init=False)
    _turn: int = field(default=0, init=False)
    _useful: int = field(default=0, init=False, repr=False)
    _useless: int = field(default=0, init=False, repr=False)
    _rest: int = field(default=0, init=False, repr=False)
    _patience: int = field(default=0, init=False, repr=False)
    _place: tuple[int, int] = field(default=(0, _FRESH), init=False, repr=False)
    _usual: float = field(default=0.0, init=False, repr=False)
    _warned: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.decay < 1.0:
            raise ValueError(f"decay is in (0, 1); got {self.decay}; 0.8 is usual.")
        for name in ("confidence", "prior"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is a finite number of at least 0; got {getattr(self, name)}."
                )
        if not 0.0 < self.old_pass_cost < math.inf:
            raise ValueError(
                f"old_pass_cost is the cost of the old pass in plain steps, above 0; got "
                f"{self.old_pass_cost}; for an ordinary loss it is 1."
            )
        if self.mismatch not in ("shrink", "recentre"):
            raise ValueError(
                f"mismatch is 'shrink' or 'recentre'; got {self.mismatch!r}; shrink is usual."
            )
        if self.optimizer is not None:
            self.follow(self.optimizer)

    def follow(self, optimizer: Optimizer) -> None:
        """Counts the age by the learning rate of this optimizer from now on."""
        self.optimizer = optimizer
        optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The snapshot has become older by one step of the optimizer."""
        del args, kwargs
        self._age += float(optimizer.param_groups[0]["lr"])
        self.skipped += self.idle

    @property
    def needs_losses(self) -> bool:
        """Never."""
        return False

    @property
    def value(self) -> float:
        """The coefficient of the network as a whole at the latest step."""
        return self._value

    @property
    def idle(self) -> bool:
        """Whether this refresh is left out, because passes since the last were of no use."""
        return self._rest > 0

    def advance(self) -> None:
        """A refresh: the snapshot is new, unless it is left out."""
        self._rest_or_not()
        if self._steps >= _FEWEST:
            # Not only what is clear: a few intervals together tell what none of them does.
            self._share_weight = self.decay * self._share_weight + 1.0
            self._share_before += (self._mismatch()[0] - self._share_before) / self._share_weight
        self._squares = 0.0
        self._age = 0.0
        self._steps = 0
        self._after_rewiring = 0
        self._sum = {}

    def _rest_or_not(self) -> None:
        """Decides whether the refresh that begins is left out; a retry that is of use ends it."""
        if self._rest:
            self._rest -= 1
        elif self.gate and self._useful < _FEW * self._useless:
            self._rest = self._patience = min(_LONGEST_REST, max(1, 2 * self._patience))
        elif self._useful:
            self._patience = 0
        self._useful = self._useless = 0
        self.rested += self.idle

    def observe(self, current: Tensor, previous: Tensor, sizes: Tensor) -> None:
        """Changes nothing."""

    def plan(self, num_groups: int) -> Tensor | None:
        """Coefficients of the coming step, from earlier ones; None if the old pass cannot pay."""
        place = self._after_rewiring, _bin(self._age)
        self._place = place
        if self.optimizer is None:
            self._age += 1.0
        known = self._known(place, num_groups)
        if place == (0, _FRESH):
            self._value = self._damping()
            values = torch.full((num_groups,), self._value, dtype=torch.float64)
        elif known is None:
            values, self._value = torch.zeros(num_groups, dtype=torch.float64), 0.0
            self._useful += 1  # to learn from
        else:
            damping = self._damping()
            values = known.values() * damping
            found = known.evidence()
            self._value = found.coefficient * damping
            pays = self._pays(found)
            self._useful += pays
            self._useless += not pays
            # With fewer samples it is too early to say no.
            if self.gate and not pays and known.samples >= 2 * _PER_OCTAVE:
                self._turn += 1
                if self._turn % (_RETRY if self._patience else _PROBE):
                    self.skipped += 1
                    self._value = 0.0
                    return None
        self.corrected += 1
        return values

    def shift(self, differences: Named) -> Named:
        """The differences, minus their mean over earlier steps where they are recentred."""
        earlier, steps = self._sum, self._steps
        moved = differences
        if self.mismatch == "recentre" and steps:
            moved = {n: d - earlier[n] / (1 + steps) for n, d in differences.items()}
        self._sum = {
            n: d.clone() if n not in earlier else earlier[n].add_(d) for n, d in differences.items()
        }
        self._squares += sum(float(d.double().square().sum()) for d in differences.values())
        self._steps += 1
        return moved

    def watch(self, a: Tensor, b: Tensor, s: Tensor, size: Tensor) -> None:
        """Adds one step to the evidence about the current age."""
        moments = self._bins.get(self._place)
        if moments is None or moments.num_groups != len(a):
            moments = self._bins[self._place] = Moments(
                len(a),
                a.device,
                decay=self.decay,
                confidence=self.confidence,
                prior=self.prior,
            )
        moments.observe(a, b, s)
        if self._place[1] != _FRESH:
            self._look_for_dead_channels(float(b.sum()), float(size.sum()))

    def _look_for_dead_channels(self, old: float, new: float) -> None:
        """Warns once where old gradients vary far more than new ones are large."""
        self._usual = new if self._usual == 0.0 else 0.8 * self._usual + 0.2 * new
        if not self._warned and old > _SUSPICIOUS**2 * max(new, self._usual) > 0.0:
            self._warned = True
            warnings.warn(
                f"old gradients vary by {(old / max(new, self._usual)) ** 0.5:.0f} times the size "
                "of the new ones, as they do where weights were grown into BatchNorm channels "
                "that are nearly dead; they are used as far as earlier steps support it.",
                RuntimeWarning,
                stacklevel=6,
            )

    def rewired(self) -> None:
        """Old evidence does not hold for the rest of this interval."""
        self._after_rewiring = 1

    def by_age(self) -> list[tuple[float, bool, Evidence]]:
        """What is known at every age: age, whether after a rewiring, and the evidence."""
        return [
            (0.0 if place == _FRESH else 2.0 ** (place / _PER_OCTAVE), bool(after), m.evidence())
            for (after, place), m in sorted(self._bins.items())
        ]

    def state_dict(self) -> dict[str, Any]:
        """Evidence by age, and where the current interval stands."""
        return {
            "bins": {
                f"{after}/{place}": m.state_dict() for (after, place), m in self._bins.items()
            },
            "sum": {name: tensor.clone() for name, tensor in self._sum.items()},
            "age": self._age,
            "steps": self._steps,
            "squares": self._squares,
            "share_before": self._share_before,
            "share_weight": self._share_weight,
            "after_rewiring": self._after_rewiring,
            "value": self._value,
            "turn": self._turn,
            "skipped": self.skipped,
            "corrected": self.corrected,
            "rest": {name: getattr(self, f"_{name}") for name in _RESTING},
            "rested": self.rested,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._bins = {}
        for name, moments in state["bins"].items():
            after, place = map(int, name.split("/"))
            made = Moments(
                0,
                torch.device("cpu"),
                decay=self.decay,
                confidence=self.confidence,
                prior=self.prior,
            )
            made.load_state_dict(moments)
            self._bins[after, place] = made
        self._sum = {name: tensor.clone() for name, tensor in state["sum"].items()}
        self._age = float(state["age"])
        self._steps = int(state["steps"])
        self._squares = float(state["squares"])
        self._share_before = float(state["share_before"])
        self._share_weight = float(state.get("share_weight", 0.0))
        self._after_rewiring = int(state["after_rewiring"])
        self._value = float(state["value"])
        self._turn = int(state["turn"])
        self.skipped = int(state["skipped"])
        self.corrected = int(state["corrected"])
        self.rested = int(state.get("rested", 0))
        for name in _RESTING:
            setattr(self, f"_{name}", int(state.get("rest", {}).get(name, 0)))

    def _known(self, place: tuple[int, int], num_groups: int) -> Moments | None:
        """Evidence about an age: its own, or that of the nearest younger one that has some."""
        after, age = place
        younger: Sequence[tuple[int, int]] = sorted(
            p
            for p, m in self._bins.items()
            if p[0] == after and p[1] <= age and m.num_groups == num_groups and m.samples > 1.5
        )
        return self._bins[younger[-1]] if younger else None

    def _pays(self, found: Evidence) -> bool:
        """Whether the old pass removes more variance than its cost spent on a larger batch."""
        return found.rho_squared > 1.0 - 1.0 / (1.0 + self.old_pass_cost)

    def _mismatch(self) -> tuple[float, bool]:
        """H e^2 / B of this interval, 0 on average where there is no mismatch, and if it is clear.

        Below 0 where the batches of a whole epoch have no mean of their own.
        """
        n = self._steps
        if n < _FEWEST:
            return 0.0, False
        mean = sum(float(t.double().square().sum()) for t in self._sum.values()) / n**2
        variance = max(0.0, self._squares / n - mean) * n / (n - 1)
        share = n * mean / variance - 1.0 if variance > 0.0 else 0.0
        return share, mean > _CLEAR * variance / n

    def _damping(self) -> float:
        """B / (B + H e^2): what is left of the coefficient in view of a mismatch."""
        if self.mismatch != "shrink":
            return 1.0
        now, is_clear = self._mismatch()
        return 1.0 / (1.0 + max(now if is_clear else 0.0, self._share_before, 0.0))


def _bin(age: float) -> int:
    """Number of the bin of an age: quarters of an octave."""
    return _FRESH if age <= 0.0 else round(_PER_OCTAVE * math.log2(age))
