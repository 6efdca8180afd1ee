"""How many images a network still gets right when they are attacked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import LOSSES, PGD, LossName, towards
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.probing import probed

Sample = tuple[Tensor, Tensor, Tensor]
"""Images in [0, 1], labels, and a number of its own for every image."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is tried on every image.

    An image counts as robust if the network is right about it before the attack and at the last
    point of every restart.

    Args:
        attack: The attack; its `start` is used as it says, with random numbers of the plan's own.
        restarts: How often it begins anew, at least 1.
        loss: What an untargeted attack makes large.
        targets: Number of wrong classes, the most likely first, towards which every restart is
            made; 0 for an untargeted attack.
        seed: Of the random starts. The start of an image depends on it, on the number of the
            restart and on the image's own number, and not on the images beside it.

    Raises:
        ValueError: A number is out of its range.
    """

    attack: PGD = field(default_factory=lambda: PGD(step_size=2.5 * 8 / 255 / 50, steps=50))
    restarts: int = 10
    loss: LossName = "cross_entropy"
    targets: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses settings outside of their ranges."""
        if self.restarts < 1 or self.targets < 0 or self.loss not in LOSSES:
            raise ValueError(
                f"a plan takes restarts of at least 1, targets of at least 0 and a loss of "
                f"{', '.join(LOSSES)}; got {self.restarts}, {self.targets}, {self.loss!r}."
            )


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What an evaluation found.

    Args:
        clean: Which images the network gets right, bool, shape (n,).
        robust: Which of them it still gets right after all restarts, bool, shape (n,).
        by_restart: Accuracy after the first restart, the first two, and so on; in [0, 1].
        forward_samples: Images sent forward.
        backward_samples: Images sent backward; for gradients of images only, so half the work
            of a backward pass of training.
        seconds: Wall time.
    """

    clean: Tensor
    robust: Tensor
    by_restart: tuple[float, ...]
    forward_samples: int
    backward_samples: int
    seconds: float

    @property
    def clean_accuracy(self) -> float:
        """Share of the images that the network gets right."""
        return float(self.clean.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of the images that it still gets right under attack."""
        return float(self.robust.double().mean())


class Counted:
    """A network on images in [0, 1], which counts what it is sent.

    Args:
        model: Any network of logits.
        pixels: How its inputs are made from images.
    """

    def __init__(self, model: nn.Module, pixels: Pixels) -> None:
        self._model = model
        self._pixels = pixels
        self.forward_samples = 0
        self.backward_samples = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, in single precision."""
        self.forward_samples += len(images)
        if images.requires_grad:
            self.backward_samples += len(images)
        logits = self._model(self._pixels.inputs(images))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the network returned {got} for {len(images)} images, expected logits of shape "
                f"({len(images)}, classes); wrap it so that it does."
            )
        return logits.float()

    @torch.no_grad()
    def right(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images it gets right, bool, shape (n,)."""
        return self(images).argmax(dim=1) == labels


def evaluate_robustness(
    model: nn.Module,
    samples: Iterable[Sample],
    plan: Plan,
    *,
    pixels: Pixels | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> Robustness:
    """Attacks images as planned; the network is left as it was.

    An image that was broken once is not attacked again. That changes no result, since a start
    depends on the image and the restart alone.

    Args:
        model: Takes inputs, returns logits.
        samples: Batches of images, labels and the images' own numbers.
        plan: What is tried.
        pixels: How inputs are made from images; default: they are the same.
        on_progress: Told after every batch of the images so far, and their robust accuracy.

    Raises:
        ValueError: There are no images.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> batch = torch.rand(8, 1, 2, 2), torch.arange(8) % 3, torch.arange(8)
        >>> found = evaluate_robustness(model, [batch], Plan(restarts=2))
        >>> found.clean_accuracy >= found.by_restart[0] >= found.robust_accuracy
        True

    References:
        Ozdenizci and Legenstein (BSR-Net), 2021, Section 4: 50 steps of 2.5 eps / 50 from 10
        random points.
    """
    begun = time.perf_counter()
    network = Counted(model, Pixels() if pixels is None else pixels)
    clean: list[Tensor] = []
    kept: list[Tensor] = []
    done = robust = 0
    with probed(model):
        for x, y, numbers in samples:
            right, by_restart = attack_batch(network, x, y, numbers, plan)
            clean.append(right.cpu())
            kept.append(by_restart.cpu())
            done += len(y)
            robust += int(by_restart[-1].sum())
            if on_progress is not None:
                on_progress(done, robust / done)
    if not done:
        raise ValueError("the attack got no images, expected at least one batch of them.")
    whole = torch.cat(kept, dim=1)
    return Robustness(
        clean=torch.cat(clean),
        robust=whole[-1],
        by_restart=tuple(whole.double().mean(dim=1).tolist()),
        forward_samples=network.forward_samples,
        backward_samples=network.backward_samples,
        seconds=time.perf_counter() - begun,
    )


def attack_batch(
    network: Counted, x: Tensor, y: Tensor, numbers: Tensor, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Attacks one batch.

    Args:
        network: On images; probed.
        x: Images in [0, 1].
        y: Labels.
        numbers: Of the images.
        plan: What is tried.

    Returns:
        Which images are right before the attack, bool, shape (n,), and after every restart,
        shape (restarts, n).
    """
    with torch.no_grad():
        logits = network(x)
    right = logits.argmax(dim=1) == y
    targets = _likely_wrong(logits, y, plan.targets)
    alive, history = right.clone(), []
    for restart in range(plan.restarts):
        for target in targets:
            rows = alive.nonzero().squeeze(1)
            if len(rows) == 0:
                break
            images, labels = x[rows], y[rows]
            aims = None if target is None else target[rows]
            start = keyed_start(plan.attack, images, numbers[rows], plan.seed, restart)
            moved = plan.attack.perturb(_score(network, labels, aims, plan), images, start)
            alive[rows] = network.right(moved, labels)
        history.append(alive.clone())
    return right, torch.stack(history)


def keyed_start(attack: PGD, x: Tensor, numbers: Tensor, seed: int, restart: int) -> Tensor:
    """Where a restart begins: a function of the image, its number, the seed and the restart.

    Args:
        attack: Whose kind of start it is.
        x: Images in [0, 1], shape (n, ...).
        numbers: Of the images, shape (n,).
        seed: Of the evaluation.
        restart: From 0.
    """
    if attack.start == "image":
        return x.clone()
    shape, near = (2, *x.shape[1:]), attack.start == "near"
    drawn = torch.stack([_drawn(shape, seed, restart, n) for n in numbers.tolist()]).to(x.device)
    change = 0.001 * drawn[:, 1] if near else attack.threat.fill(drawn[:, 0], drawn[:, 1])
    return attack.threat.project(x + change, x)


def _drawn(shape: tuple[int, ...], seed: int, restart: int, number: int) -> Tensor:
    """Uniform and normal numbers of one image, in this order along the first dimension."""
    digest = hashlib.blake2b(f"{seed}/{restart}/{number}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    drawn = torch.empty(shape)
    drawn[0].uniform_(generator=generator)
    drawn[1].normal_(generator=generator)
    return drawn


def _likely_wrong(logits: Tensor, y: Tensor, count: int) -> list[Tensor | None]:
    """The most likely wrong classes of every image, as that many tensors; [None] for 0."""
    if count == 0:
        return [None]
    count = min(count, logits.shape[1] - 1)
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return list(wrong.topk(count, dim=1).indices.unbind(dim=1))


def _score(
    network: Counted, labels: Tensor, aims: Tensor | None, plan: Plan
) -> Callable[[Tensor], Tensor]:
    """What the attack makes large."""
    if aims is not None:
        return lambda images: towards(network(images), aims)
    return lambda images: LOSSES[plan.loss](network(images), labels)
