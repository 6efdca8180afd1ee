"""Objectives on attacked images: adversarial training, half and half, TRADES and MART.

Each attacks in `prepare`, once a step and at the current parameters. A corrector then evaluates
`loss` at two points on the very same perturbed images. Inside the attack the network is in
evaluation mode and its parameters are frozen; afterwards modes, buffers and gradients are as they
were. Random numbers are the global ones, so a refresh, which puts them back, starts its attacks
from the points that the coming epoch starts from.

TRADES and MART need the images as they are as well. Their prepared batches hold in ``x`` all
images first and then all perturbed ones, in the same order: 2 ``size`` samples, which is what a
step then sends forward and backward. A batch that was not prepared is one whose images were
moved nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.attacks.pgd import PGD, cross_entropy, divergence
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.probing import probed
from equipoise.data import Batch
from equipoise.measure import Measure, unmeasured


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """Moves the images of a batch, in pixels of [0, 1], and reports what that cost.

    A step of the attack counts as a forward pass and half a backward pass, since the gradient of
    the images takes half the work of both gradients.

    Args:
        attack: How.
        pixels: What the network's inputs are.
        measure: Opened as ``"attack"``.
    """

    attack: PGD = field(default_factory=PGD)
    pixels: Pixels = field(default_factory=Pixels)
    measure: Measure = unmeasured

    def against_labels(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Inputs whose cross-entropy with `y` is large; the model stays as it was."""
        return self._moved(model, x, lambda logits: cross_entropy(logits, y), passes=0)

    def against_itself(self, model: nn.Module, x: Tensor) -> Tensor:
        """Inputs whose answer diverges from that for `x`; the model stays as it was."""
        with probed(model), torch.no_grad():
            clean = model(x)
        return self._moved(model, x, lambda logits: divergence(clean, logits), passes=1)

    def _moved(
        self, model: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor], *, passes: int
    ) -> Tensor:
        """Runs the attack; `passes` forward passes were made for it before."""
        steps, size = self.attack.steps, float(len(x))
        with self.measure("attack", samples=size, forwards=steps + passes):
            # In a context of its own, as the samples of a measure are those of all its passes.
            with self.measure("attack", samples=size / 2, backwards=steps):
                pass
            with probed(model):
                moved = self.attack.perturb(
                    lambda images: score(model(self.pixels.inputs(images))), self.pixels.of(x)
                )
            return self.pixels.inputs(moved).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    r"""Cross-entropy at perturbed images.

    .. math:: \ell = \frac1n \sum_i \mathrm{CE}\bigl(f(x'_i), y_i\bigr), \qquad
              x'_i \approx \arg\max_{x' \in B(x_i)} \mathrm{CE}\bigl(f(x'), y_i\bigr)

    Args:
        attacker: Moves the images.
        share: Of the batch that is moved, from its first image on, in (0, 1]; 0.5 is mixed-batch
            adversarial training.
        label_smoothing: Weight of the uniform distribution in the targets, in [0, 1).

    Example:
        >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.arange(2))
        >>> objective = AdversarialTraining(attacker=Attacker())
        >>> prepared = objective.prepare(nn.Linear(4, 10), batch)
        >>> bool((prepared.x > 8 / 255 + 1e-6).any()), torch.equal(prepared.y, batch.y)
        (False, True)

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018,
        Eq. (2.1). Ozdenizci and Legenstein (BSR-Net), 2021, for the half and half.
    """

    attacker: Attacker
    share: float = 1.0
    label_smoothing: float = 0.0

    def prepare(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with its first images moved."""
        count = batch.size if self.share == 1.0 else int(self.share * batch.size)
        if count == 0:
            return batch
        moved = self.attacker.against_labels(model, batch.x[:count], batch.y[:count])
        x = moved if count == batch.size else torch.cat([moved, batch.x[count:]])
        return batch._replace(x=x)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, shape ``()``, in single precision."""
        return functional.cross_entropy(
            model(batch.x).float(), batch.y, label_smoothing=self.label_smoothing
        )


@dataclass(frozen=True, kw_only=True)
class Trades:
    r"""Cross-entropy at the images, and how far answers move in the ball around them.

    .. math:: \ell = \frac1n \sum_i \mathrm{CE}\bigl(f(x_i), y_i\bigr)
              + \beta\, KL\bigl(p(x_i) \,\|\, p(x'_i)\bigr)

    The perturbed images maximise the same divergence. Gradients go through both of its sides;
    images and perturbed images go through the network one after the other, each with BatchNorm
    statistics of its own. Of a batch that was not prepared, the divergence is 0 and so is its
    gradient: what is left is the cross-entropy.

    Args:
        attacker: Moves the images; published with ``start="near"``.
        beta: Weight of the divergence, at least 0.
        label_smoothing: Of the cross-entropy.

    Example:
        >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.arange(2))
        >>> objective = Trades(attacker=Attacker(attack=PGD(start="near")))
        >>> prepared = objective.prepare(nn.Linear(4, 10), batch)
        >>> prepared.x.shape, prepared.size
        (torch.Size([4, 4]), 2)

    References:
        Zhang et al., "Theoretically principled trade-off between robustness and accuracy", 2019,
        Eq. (5).
    """

    attacker: Attacker
    beta: float = 6.0
    label_smoothing: float = 0.0

    def prepare(self, model: nn.Module, batch: Batch) -> Batch:
        """The images, then the perturbed images."""
        moved = self.attacker.against_itself(model, batch.x)
        return batch._replace(x=torch.cat([batch.x, moved]))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the pairs, shape ``()``, in single precision."""
        clean, moved = both_logits(model, batch)
        loss = functional.cross_entropy(clean, batch.y, label_smoothing=self.label_smoothing)
        if moved is None:
            return loss
        return loss + self.beta * divergence(clean, moved).mean()


@dataclass(frozen=True, kw_only=True)
class Mart:
    r"""Boosted cross-entropy at perturbed images, divergence weighted by doubt.

    .. math:: \ell = \frac1n \sum_i -\log p_{y_i}(x'_i)
              - \log\bigl(1 - \max_{k \ne y_i} p_k(x'_i)\bigr)
              + \beta\, KL\bigl(p(x_i) \,\|\, p(x'_i)\bigr)\, \bigl(1 - p_{y_i}(x_i)\bigr)

    Gradients go through all of it. Of a batch that was not prepared the divergence is 0.

    Args:
        attacker: Moves the images against their labels; published with ``start="near"``.
        beta: Weight of the divergence, at least 0.

    Example:
        >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.arange(2))
        >>> objective = Mart(attacker=Attacker(attack=PGD(start="near")))
        >>> round(objective.loss(nn.Linear(4, 10, bias=False), batch).item(), 4)
        2.4079

    References:
        Wang et al., "Improving adversarial robustness requires revisiting misclassified
        examples", 2020, Eq. (11).
    """

    attacker: Attacker
    beta: float = 6.0

    def prepare(self, model: nn.Module, batch: Batch) -> Batch:
        """The images, then the perturbed images."""
        moved = self.attacker.against_labels(model, batch.x, batch.y)
        return batch._replace(x=torch.cat([batch.x, moved]))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the pairs, shape ``()``, in single precision."""
        clean, moved = both_logits(model, batch)
        boosted = boosted_cross_entropy(clean if moved is None else moved, batch.y)
        if moved is None:
            return boosted.mean()
        right = clean.softmax(dim=1).gather(1, batch.y[:, None]).squeeze(1)
        return (boosted + self.beta * divergence(clean, moved) * (1.0 - right)).mean()


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Cross-entropy plus :math:`-\log(1 - \max_{k \ne y} p_k)` of every sample, shape (n,).

    Example:
        >>> boosted_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
        tensor([1.3863])
    """
    log_p = logits.log_softmax(dim=1)
    rival = logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    # 1 - p_k is the sum of all others, which does not round to 0 as the difference does.
    rest = log_p.scatter(1, rival[:, None], -torch.inf).logsumexp(dim=1)
    return -log_p.gather(1, labels[:, None]).squeeze(1) - rest


def both_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Logits of the images and of the perturbed ones; None where the batch was not prepared."""
    if len(batch.x) == batch.size:
        return model(batch.x).float(), None
    clean, moved = batch.x.split(batch.size)
    return model(clean).float(), model(moved).float()
