"""AutoAttack, from the package that its authors publish, or from a port of it."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.attacks.evaluation import Counted, Robustness, Sample
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.probing import probed
from equipoise.attacks.threat import ThreatModel
from equipoise.points import device_of, preserved

_TARGETS = 9
_NORMS = {"linf": "Linf", "l2": "L2"}
_HINT = (
    "AutoAttack needs the package autoattack, which is not installed and not on PyPI; run "
    "`pip install --no-deps git+https://github.com/fra31/auto-attack`, or "
    "`pip install --no-deps torchattacks` for a port of it, or choose --method pgd."
)


def auto_attack_source() -> str:
    """Which package would be used.

    Raises:
        ImportError: None is installed; says how to get one.
    """
    for name in ("autoattack", "torchattacks"):
        if importlib.util.find_spec(name) is not None:
            return name
    raise ImportError(_HINT)


class PixelNetwork(nn.Module):
    """A network that takes images in [0, 1], as other libraries expect it.

    Args:
        network: Counts what it is sent.
        model: The module behind it, so that its parameters are found.
    """

    def __init__(self, network: Counted, model: nn.Module) -> None:
        super().__init__()
        self._network = network
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self._network(images)


def auto_attack(
    model: nn.Module,
    samples: Iterable[Sample],
    threat: ThreatModel,
    *,
    num_classes: int,
    pixels: Pixels | None = None,
    seed: int = 0,
) -> Robustness:
    """Attacks images with the standard version of AutoAttack; the network is left as it was.

    What comes back is checked here: an image that lies outside of the ball or of [0, 1] is
    projected first, and counts as robust if the network is right about what is left.

    Args:
        model: Takes inputs, returns logits.
        samples: Batches of images, labels and the images' own numbers.
        threat: The ball.
        num_classes: Of the network.
        pixels: How inputs are made from images; default: they are the same.
        seed: Of the attack's random numbers; the global ones are put back.

    Raises:
        ImportError: No package with AutoAttack is installed.
        ValueError: There are no images.

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks" (AutoAttack), 2020.
    """
    source = auto_attack_source()
    begun = time.perf_counter()
    network = Counted(model, Pixels() if pixels is None else pixels)
    wrapped = PixelNetwork(network, model).eval()
    clean: list[Tensor] = []
    robust: list[Tensor] = []
    with probed(model), preserved(device_of(model)):
        torch.manual_seed(seed)
        for x, y, _ in samples:
            right = network.right(x, y)
            kept = right.clone()
            if bool(right.any()):
                run = _runner(source, wrapped, threat, num_classes, seed, x.device)
                moved = threat.project(run(x[right], y[right]).detach().to(x), x[right])
                kept[right] = network.right(moved, y[right])
            clean.append(right.cpu())
            robust.append(kept.cpu())
    if not clean:
        raise ValueError("the attack got no images, expected at least one batch of them.")
    whole = torch.cat(robust)
    return Robustness(
        clean=torch.cat(clean),
        robust=whole,
        by_restart=(float(whole.double().mean()),),
        forward_samples=network.forward_samples,
        backward_samples=network.backward_samples,
        seconds=time.perf_counter() - begun,
    )


def _runner(
    source: str,
    wrapped: nn.Module,
    threat: ThreatModel,
    num_classes: int,
    seed: int,
    device: torch.device,
) -> Any:
    """From images and labels to perturbed images."""
    norm, package = _NORMS[threat.norm], importlib.import_module(source)
    if source == "torchattacks":
        return package.AutoAttack(
            wrapped, norm=norm, eps=threat.eps, n_classes=num_classes, seed=seed
        )
    attack = package.AutoAttack(
        wrapped, norm=norm, eps=threat.eps, seed=seed, verbose=False, device=str(device)
    )
    if num_classes <= _TARGETS:
        # The package aims at 9 wrong classes, and fails where there are not as many.
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = num_classes - 1
    return attack.run_standard_evaluation
