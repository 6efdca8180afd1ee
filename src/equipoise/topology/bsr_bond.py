"""How connectivity sampling follows optimizers: by their public step hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from equipoise.topology.attachment import was_skipped
from equipoise.topology.store import Removable


class Sampler(Protocol):
    """What a bond needs of `ConnectivitySampling`."""

    def gatherers(self, seen: Callable[[str, Tensor], None]) -> list[Removable]:
        """Hooks that tell raw gradients by name, where they are wanted."""
        ...  # pragma: no cover

    def before_step_(self, optimizer: Optimizer, raw: Mapping[str, Tensor]) -> None:
        """A step begins."""
        ...  # pragma: no cover

    def after_step_(self, *optimizers: Optimizer) -> None:
        """A step of all optimizers has ended."""
        ...  # pragma: no cover

    def apply_(self) -> None:
        """A step was not taken."""
        ...  # pragma: no cover

    def detached(self) -> None:
        """The bond was removed."""
        ...  # pragma: no cover


class SamplingBond:
    """The bond between a `ConnectivitySampling` and its optimizers; `attach` makes it.

    As a context manager it removes itself at the end.

    Args:
        topology: Told before and after every step.
        optimizers: In the order of their steps.
    """

    def __init__(self, topology: Sampler, optimizers: tuple[Optimizer, ...]) -> None:
        self.optimizers = optimizers
        self._topology = topology
        self._raw: dict[str, Tensor] = {}
        self._skipped = False
        self._handles: list[Removable] = topology.gatherers(self._gather)
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before))
            self._handles.append(optimizer.register_step_post_hook(self._after))

    def remove(self) -> None:
        """Lets go of the optimizers; the masks stay as they are. A second call does nothing."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._topology.detached()

    def __enter__(self) -> SamplingBond:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes itself."""
        self.remove()

    def _gather(self, name: str, gradient: Tensor) -> None:
        """Adds up what arrives between two steps."""
        known = self._raw.get(name)
        arrived = gradient.detach()
        self._raw[name] = arrived.clone() if known is None else known + arrived

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A step begins."""
        del args, kwargs
        self._topology.before_step_(optimizer, self._raw)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A step has ended; after the last optimizer's the topology follows."""
        del args, kwargs
        self._skipped = self._skipped or was_skipped(optimizer)
        if optimizer is not self.optimizers[-1]:
            return
        self._raw.clear()
        if self._skipped:
            self._topology.apply_()
        else:
            self._topology.after_step_(*self.optimizers)
        self._skipped = False
