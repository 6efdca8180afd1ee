"""Whether our PGD is that of a well-known attack library, sample by sample.

Both start from the same random points and take the same steps against the same small network;
then the images and the network's answers to them are compared. Needs the package torchattacks
(`pip install --no-deps torchattacks`).

    python benchmarks/pgd_agreement.py --images 256
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as mean_cross_entropy

from equipoise.attacks.pgd import PGD, cross_entropy, towards
from equipoise.attacks.probing import probed
from equipoise.attacks.threat import Norm, ThreatModel
from equipoise.data import ImageLoader, load_dataset
from equipoise.models import create


@dataclass(frozen=True)
class Case:
    """One attack, as both know it."""

    norm: Norm
    eps: float
    steps: int
    targeted: bool

    @property
    def step_size(self) -> float:
        """As in the published evaluations."""
        return 2.5 * self.eps / self.steps


CASES = [
    Case("linf", 8 / 255, 10, targeted=False),
    Case("linf", 0.1, 50, targeted=False),
    Case("linf", 0.1, 20, targeted=True),
    Case("l2", 0.5, 20, targeted=False),
    Case("l2", 1.0, 50, targeted=False),
    Case("l2", 1.0, 20, targeted=True),
]


@dataclass(frozen=True)
class Agreement:
    """How far two sets of perturbed images are from one another.

    Args:
        same_answers: Images to which the network gives the same answer.
        robust: Images that are still right, after ours and after theirs.
        pixels: Share of the pixels that differ by less than 1e-5.
        largest: Largest difference of a pixel, and that of a loss.
    """

    same_answers: int
    robust: tuple[int, int]
    pixels: float
    largest: tuple[float, float]


def trained_network(images: Tensor, labels: Tensor, epochs: int = 10) -> nn.Module:
    """A small convolutional network that knows the digits."""
    torch.manual_seed(0)
    model = create("small_cnn", num_classes=10, in_channels=1, image_size=8, width=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            mean_cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def compare(case: Case, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Agreement:
    """Attacks the same images by both libraries from the same points."""
    aims = (y + 1) % 10
    torch.manual_seed(seed)
    with probed(model):
        ours = _ours(case, model, x, aims if case.targeted else y)
        torch.manual_seed(seed)
        theirs = _theirs(case, model, x, y, aims)
        answers = [model(images) for images in (ours, theirs)]
    losses = [cross_entropy(logits, y) for logits in answers]
    change = (ours - theirs).abs()
    first, second = (logits.argmax(dim=1) for logits in answers)
    return Agreement(
        same_answers=int((first == second).sum()),
        robust=(int((first == y).sum()), int((second == y).sum())),
        pixels=float((change < 1e-5).float().mean()),
        largest=(float(change.max()), float((losses[0] - losses[1]).abs().max())),
    )


def _ours(case: Case, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Ours, from a point that is drawn as they draw theirs."""
    threat = ThreatModel(norm=case.norm, eps=case.eps)
    attack = PGD(threat=threat, step_size=case.step_size, steps=case.steps)
    if case.norm == "linf":
        change = torch.empty_like(x).uniform_(-case.eps, case.eps)
    else:
        change = torch.empty_like(x).normal_()
        lengths = change.flatten(1).norm(p=2, dim=1).view(-1, 1, 1, 1)
        change *= torch.zeros_like(lengths).uniform_(0, 1) / lengths * case.eps
    start = (x + change).clamp(0, 1)
    if case.targeted:
        return attack.perturb(lambda images: towards(model(images), labels), x, start)
    return attack.perturb(lambda images: cross_entropy(model(images), labels), x, start)


def _theirs(case: Case, model: nn.Module, x: Tensor, y: Tensor, aims: Tensor) -> Tensor:
    """The library's own."""
    import torchattacks  # type: ignore[import-not-found]

    kind: Any = torchattacks.PGD if case.norm == "linf" else torchattacks.PGDL2
    attack = kind(model, eps=case.eps, alpha=case.step_size, steps=case.steps)
    if case.targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    moved: Tensor = attack(x, aims if case.targeted else y)
    return moved


def digits() -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and labels."""
    data = load_dataset("digits").train
    batch = next(ImageLoader(data, batch_size=len(data), shuffle=False).epoch(0))
    return data.images.float() / 255, batch.y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    chosen = parser.parse_args()
    import torchattacks

    x, y = digits()
    model = trained_network(x, y)
    x, y = x[: chosen.images], y[: chosen.images]
    print(
        f"torchattacks {torchattacks.__version__}, torch {torch.__version__}, digits, small_cnn "
        f"of half width, n = {len(x)} images\n"
    )
    print("| Attack | Same answer | Robust, ours / theirs | Pixels within 1e-5 | Largest change |")
    print("|---|---|---|---|---|")
    for case in CASES:
        found = compare(case, model, x, y)
        name = f"{case.norm}, eps {case.eps:.3g}, {case.steps} steps"
        name += ", targeted" if case.targeted else ""
        print(
            f"| {name} | {found.same_answers} of {len(x)} | {found.robust[0]} / {found.robust[1]} "
            f"| {100 * found.pixels:.3f} % | pixel {found.largest[0]:.1e}, "
            f"loss {found.largest[1]:.1e} |"
        )


if __name__ == "__main__":
    main()
