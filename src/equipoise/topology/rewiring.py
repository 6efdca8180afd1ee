"""When a topology is rewired, how much of it, and by which scores."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from equipoise.topology.scores import Score, gradient_magnitude, uniform_noise, weight_magnitude

_SCHEDULES = ("cosine", "linear", "constant")
_SIGNALS = ("raw", "corrected")
_WITHOUT = (uniform_noise, weight_magnitude)  # scores that do not read the gradient


@dataclass(frozen=True, kw_only=True)
class Rewiring:
    r"""Plan of all rewirings of one training run; immutable.

    A rewiring after step t replaces this share of the active weights of every layer (cosine
    schedule, T = stop):

    .. math:: f(t) = f_\text{end} + (f_0 - f_\text{end}) \frac{1 + \cos(\pi t / T)}{2}

    Args:
        total_steps: Length of the training in optimizer steps.
        grow: Score of the inactive weights; the highest are grown.
        drop: Score of the active weights; the lowest are dropped. It sees the weights after the
            optimizer step.
        interval: Steps between rewirings: a whole number of steps, or a float in (0, 1] as a
            share of `total_steps`.
        stop: Last step at which a rewiring may happen; the same two forms.
        prune_fraction: Share of the active weights replaced at first, in (0, 1].
        prune_fraction_end: The share at `stop`, in [0, 1].
        schedule: How the share goes from one to the other; "constant" stays at `prune_fraction`.
        signal: Which gradient the scores see. "raw" is the sum of what arrived by
            back-propagation since the gradients were zeroed, whatever was done to ``p.grad``
            afterwards; "corrected" is ``p.grad`` as the optimizer finds it. Under data parallelism
            the raw gradient is that of one process, so masks agree between processes with
            "corrected" only. A layer that keeps its active weights only has no corrected gradient
            elsewhere: with "corrected" its scores see ``p.grad`` at active weights and the raw
            gradient, with any loss scale and before any clipping, at inactive ones.
        replaces_step: True to rewire instead of taking the optimizer step, so that a due step
            changes no surviving weight; the gradients of all parameters are kept from the
            optimizer for that one step.

    Raises:
        ValueError: A setting is outside its range.

    Example:
        >>> rewiring = Rewiring(total_steps=1000, grow=uniform_noise, interval=100, stop=0.5)
        >>> rewiring.stop_steps, rewiring.num_rewirings, rewiring.due(300), rewiring.due(600)
        (500, 5, True, False)

    References:
        Evci et al., "Rigging the lottery" (RigL), 2020, Section 3. Liu et al., "Do we actually
        need dense over-parameterization?" (ITOP), 2021.
    """

    total_steps: int
    grow: Score
    drop: Score = weight_magnitude
    interval: int | float = 100
    stop: int | float = 0.75
    prune_fraction: float = 0.3
    prune_fraction_end: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    signal: Literal["raw", "corrected"] = "raw"
    replaces_step: bool = False

    def __post_init__(self) -> None:
        """Refuses settings outside their ranges and warns of those without effect."""
        if not _is_whole(self.total_steps) or self.total_steps < 1:
            raise ValueError(
                f"total_steps is the length of the training in optimizer steps, a whole number "
                f"of at least 1; got {self.total_steps!r}."
            )
        _check_length("interval", self.interval)
        _check_length("stop", self.stop)
        if not 0.0 < self.prune_fraction <= 1.0:
            raise ValueError(
                f"prune_fraction is the share of active weights to replace, in (0, 1]; got "
                f"{self.prune_fraction!r}; for a static topology pass rewiring=None."
            )
        if not 0.0 <= self.prune_fraction_end <= 1.0:
            raise ValueError(
                f"prune_fraction_end is a share of the active weights, in [0, 1]; got "
                f"{self.prune_fraction_end!r}."
            )
        _check_choice("schedule", self.schedule, _SCHEDULES)
        _check_choice("signal", self.signal, _SIGNALS)
        self._warn_of_settings_without_effect()

    def _warn_of_settings_without_effect(self) -> None:
        """One warning for each setting that will change nothing."""
        if self.stop_steps > self.total_steps:
            _warn(
                f"stop={self.stop!r} lies beyond the training of {self.total_steps} steps, so "
                f"rewiring never stops and the schedule does not reach its end."
            )
        if self.num_rewirings == 0:
            _warn(
                f"an interval of {self.interval_steps} steps is longer than the "
                f"{min(self.stop_steps, self.total_steps)} steps in which rewiring is allowed, so "
                f"the topology will stay as it is."
            )
        if self.schedule == "constant" and self.prune_fraction_end != 0.0:
            _warn("prune_fraction_end has no effect under schedule='constant'.")

    @property
    def interval_steps(self) -> int:
        """Steps between rewirings, at least 1."""
        return _steps(self.interval, self.total_steps)

    @property
    def stop_steps(self) -> int:
        """Last step at which a rewiring may happen, at least 1."""
        return _steps(self.stop, self.total_steps)

    @property
    def num_rewirings(self) -> int:
        """Number of rewirings in the whole training."""
        return min(self.stop_steps, self.total_steps) // self.interval_steps

    @property
    def needs_gradient(self) -> bool:
        """Whether a score may read the gradient; one's own functions are taken to read it.

        Example:
            >>> set_rewiring(1000).needs_gradient, rigl(1000).needs_gradient
            (False, True)
        """
        return not all(any(s is known for known in _WITHOUT) for s in (self.drop, self.grow))

    def due(self, step: int) -> bool:
        """Whether a rewiring belongs to a step.

        Args:
            step: Number of completed optimizer steps, this one included, so the first is 1.
        """
        return step > 0 and step % self.interval_steps == 0 and step <= self.stop_steps

    def fraction_at(self, step: int) -> float:
        """Share of the active weights that a rewiring at this step replaces.

        Args:
            step: Number of completed optimizer steps; beyond `stop` the last value holds.

        Example:
            >>> plan = rigl_itop(88_000)
            >>> [round(plan.fraction_at(t * 22_000), 4) for t in range(5)]
            [0.5, 0.4275, 0.2525, 0.0775, 0.005]
        """
        if self.schedule == "constant":
            return self.prune_fraction
        progress = min(max(step / self.stop_steps, 0.0), 1.0)
        left = 1.0 - progress
        if self.schedule == "cosine":
            left = (1.0 + math.cos(math.pi * progress)) / 2.0
        return self.prune_fraction_end + (self.prune_fraction - self.prune_fraction_end) * left


def _is_whole(value: object) -> bool:
    """Whether `value` is an int; True and False are not meant as numbers of steps."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_length(name: str, value: object) -> None:
    """Refuses what is neither a number of steps nor a share of the training."""
    if _is_whole(value) and value >= 1:  # type: ignore[operator]
        return
    if isinstance(value, float) and 0.0 < value <= 1.0:
        return
    hint = ""
    if isinstance(value, float) and value > 1.0 and value.is_integer():
        hint = f"; for {int(value)} steps pass {int(value)}"
    raise ValueError(
        f"{name} is a whole number of steps, at least 1, or a float in (0, 1] as a share of "
        f"total_steps; got {value!r}{hint}."
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a word that is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}; got {value!r}.")


def _steps(length: int | float, total_steps: int) -> int:
    """A length in steps, from either of its two forms."""
    return max(1, round(length * total_steps)) if isinstance(length, float) else length


def _warn(message: str) -> None:
    """Warns at the line that made the `Rewiring` (above: this, the check, post-init, init)."""
    warnings.warn(message, UserWarning, stacklevel=5)


def set_rewiring(total_steps: int, **overrides: Any) -> Rewiring:
    """SET: drops small weights and grows random ones.

    Args:
        total_steps: Length of the training in optimizer steps.
        **overrides: Any field of `Rewiring`.

    Example:
        >>> set_rewiring(1000).num_rewirings
        7

    References:
        Mocanu et al. (SET), 2018.
    """
    return _preset({"grow": uniform_noise}, total_steps, overrides)


def rigl(total_steps: int, **overrides: Any) -> Rewiring:
    """RigL: drops small weights, grows where the gradient is large, in place of a step.

    Args:
        total_steps: Length of the training in optimizer steps.
        **overrides: Any field of `Rewiring`.

    Example:
        >>> rigl(1000, interval=50).num_rewirings
        15

    References:
        Evci et al., "Rigging the lottery" (RigL), 2020.
    """
    return _preset({"grow": gradient_magnitude, "replaces_step": True}, total_steps, overrides)


_ITOP: dict[str, Any] = {"stop": 1.0, "prune_fraction": 0.5, "prune_fraction_end": 0.005}


def set_itop(total_steps: int, interval: int | float = 1500, **overrides: Any) -> Rewiring:
    """SET-ITOP: random growth at long intervals, until the end of the training.

    Args:
        total_steps: Length of the training in optimizer steps.
        interval: Steps between rewirings.
        **overrides: Any other field of `Rewiring`.

    Example:
        >>> set_itop(88_000).num_rewirings
        58

    References:
        Liu et al., "Do we actually need dense over-parameterization?" (ITOP), 2021.
    """
    settings = _ITOP | {"grow": uniform_noise, "interval": interval}
    return _preset(settings, total_steps, overrides)


def rigl_itop(total_steps: int, interval: int | float = 4000, **overrides: Any) -> Rewiring:
    """RigL-ITOP: gradient growth at long intervals, until the end; the step is taken too.

    Args:
        total_steps: Length of the training in optimizer steps.
        interval: Steps between rewirings.
        **overrides: Any other field of `Rewiring`.

    Example:
        >>> rigl_itop(88_000).num_rewirings
        22

    References:
        Liu et al., "Do we actually need dense over-parameterization?" (ITOP), 2021.
    """
    settings = _ITOP | {"grow": gradient_magnitude, "interval": interval}
    return _preset(settings, total_steps, overrides)


def _preset(settings: dict[str, Any], total_steps: int, overrides: dict[str, Any]) -> Rewiring:
    """Merged before the plan is made, so that an overridden default cannot warn."""
    return Rewiring(total_steps=total_steps, **(settings | overrides))
