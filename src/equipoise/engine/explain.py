"""What becomes of each layer and what a step gains by it, told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from equipoise.engine.choice import machine_memory
from equipoise.engine.convert import (
    Conversion,
    LayerChoice,
    choose_network,
    prepare,
    refusal,
)
from equipoise.engine.convolution import Way
from equipoise.engine.fallback import in_place_of_kernels
from equipoise.engine.layers import SparseLayer
from equipoise.engine.library import kernels, unavailable_because
from equipoise.engine.maps import LANES, num_threads
from equipoise.engine.network import runs_by_csr
from equipoise.engine.timing import speed_up
from equipoise.topology import MaskOwner

CSR = "torch CSR"
_GROUPS = {2: "rows in twos", 4: "rows in fours"}


@dataclass(frozen=True)
class Explanation:
    """What is to be expected of the engine for one network, on this machine.

    Args:
        network: What would be trained.
        layers: What becomes of each convolution and linear layer; empty if none was timed.
        gain: How many times as fast as with masks a step is with the kernels; None if unknown.
        reason: Why training goes on with masks; None if the kernels are used.
        untraced: Why the layers are converted one by one; None if the network stays in the
            kernels' layout, or is not converted.
        instructions: Instruction set of the kernels, or "torch CSR" in their place; None without.
        threads: Processor threads.
    """

    network: nn.Module
    layers: tuple[LayerChoice, ...]
    gain: float | None
    reason: str | None
    untraced: str | None
    instructions: str | None
    threads: int

    @property
    def where(self) -> str:
        """The kernels and threads that it holds for."""
        count = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return count if self.instructions is None else f"{self.instructions}, {count}"

    @property
    def has_kernels(self) -> bool:
        """Whether layers are timed with kernels, and not with what stands in for them."""
        return self.instructions not in (None, CSR)

    @property
    def verdict(self) -> str:
        """One sentence on the whole step."""
        if self.reason is not None:
            return f"Nothing to gain on this machine: {self.reason}; training goes on with masks."
        assert self.gain is not None
        here = f"on this machine ({self.where})"
        if self.gain < 1.0:
            return (
                f"Expected: a training step takes {1 / self.gain:.1f} times as long as with "
                f"masks {here}."
            )
        return f"Expected: a training step {self.gain:.1f} times as fast as with masks {here}."

    def way(self, choice: LayerChoice) -> str:
        """How one of the layers is run, in words; as it would be, if masks are faster."""
        converted = isinstance(self.network.get_submodule(choice.path), SparseLayer)
        if choice.timed is not None and (choice.reason is None or converted):
            if choice.density == 1.0 and self.untraced is not None:
                return "torch: its maps are in torch's layout"
            return way_in_words(choice.timed.way, density=choice.density)
        return f"torch: {choice.reason}"

    def layer_gain(self, choice: LayerChoice) -> float:
        """How many times as fast as by torch one of the layers is run; 1 where torch runs it."""
        if choice.timed is None or self.way(choice).startswith("torch:"):
            return 1.0
        return choice.timed.torch_seconds / choice.timed.seconds


def explain(
    model: nn.Module,
    topology: MaskOwner,
    inputs: tuple[Any, ...],
    *,
    engine: Literal["auto", "sparse"] = "auto",
    on_layer: Callable[[LayerChoice], object] | None = None,
) -> Explanation:
    """Decides as `to_engine` does, and says why; layers not seen before are timed.

    The topology follows what is returned afterwards, so pass one that is made for the question.

    Args:
        model: With masks.
        topology: Of this model; not attached to an optimizer.
        inputs: Of the forward pass, of the shape of a training batch.
        engine: As for `to_engine`.
        on_layer: Told what becomes of each layer, as soon as that is known.
    """
    known: list[LayerChoice] = []
    gains: list[tuple[Conversion, float]] = []

    def see(choice: LayerChoice) -> None:
        known.append(choice)
        if on_layer is not None:
            on_layer(choice)

    if engine == "auto":
        network, reason = choose_network(
            model, topology, inputs, on_layer=see, on_gain=lambda *found: gains.append(found)
        )
    else:
        network, reason = model, refusal(model, inputs)
        if reason is None:
            memory = machine_memory()
            conversion = prepare(model, topology, inputs, memory, always=True, on_layer=see)
            network, reason = conversion.network, conversion.fault
            has_sparse = any(isinstance(m, SparseLayer) for m in network.modules())
            if reason is None and not has_sparse:
                reason = in_place_of_kernels("no layer has masks that the kernels can follow")
            if reason is None:
                gains.append((conversion, speed_up(model, conversion, inputs, memory)))
            else:
                network = model
    return Explanation(
        network=network,
        # The conversion has found out more since the layers were told one by one.
        layers=gains[-1][0].layers if gains else tuple(known),
        gain=gains[-1][1] if gains else None,
        reason=reason,
        untraced=gains[-1][0].untraced if gains else None,
        instructions=instructions_of(network),
        threads=num_threads(),
    )


def instructions_of(network: nn.Module) -> str | None:
    """What runs the sparse layers of a network here, or would; None without kernels and CSR.

    Args:
        network: With masks or converted.
    """
    if runs_by_csr(network):
        return CSR
    return None if unavailable_because() is not None else kernels().instructions


def way_in_words(way: Way, *, density: float) -> str:
    """How the kernels, or torch's CSR products, run the forward pass of a layer.

    Args:
        way: Of the layer.
        density: Share of its weights that is active.

    Example:
        >>> from equipoise.engine.convolution import Tiling
        >>> way_in_words(Way(Tiling(block=16, rows=2, columns=8)), density=0.1)
        'sparse, 16 channels at a time, 2 x 8 positions'
        >>> way_in_words(Way(Tiling(columns=4, group=4), wide=True), density=1.0)
        'dense, wide, 64 samples, rows in fours'
    """
    if way.csr:
        return CSR
    tiling = way.forward
    words = ["sparse" if density < 1.0 else "dense"]
    if way.wide:
        words.append("wide")
    if tiling.block:
        words.append(f"{tiling.block} channels at a time")
    if way.wide:
        words.append(f"{LANES * tiling.columns} samples")
    else:
        words.append(f"{tiling.rows} x {tiling.columns} positions")
    if tiling.group in _GROUPS:
        words.append(_GROUPS[tiling.group])
    return ", ".join(words)
