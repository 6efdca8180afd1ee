"""A corrector that keeps the active entries only corrects them alike, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import Constant, GradientCache, GradientCorrector, LossCovariance
from equipoise.correction.storage import pack, unpack
from equipoise.topology import Topology


def network() -> tuple[nn.Module, Topology]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 25, 3),
    )
    return model, Topology(model, sparsity=0.8, seed=1)


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 2, 5, 5, generator=generator) for n in (7, 7, 3)]


def corrector_for(model: nn.Module, topology: Topology | None, **more: Any) -> Any:
    coefficient = more.pop("coefficient", None) or Constant(0.7)
    if topology is not None:
        more["masks"] = lambda: topology.masks
    return GradientCorrector(model, lambda x: model(x).square().mean(), coefficient, **more)


@pytest.mark.parametrize("agent", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_with_a_fixed_mask_the_trajectory_is_the_same_to_the_bit(
    agent: bool, channels_last: bool, cached: bool
) -> None:
    ends = []
    for packed in (False, True):
        model, topology = network()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        topology.attach(optimizer)
        corrector = corrector_for(
            model,
            topology if packed else None,
            coefficient=LossCovariance(scaling=1.0) if agent else None,
            cache=GradientCache() if cached else None,
        )
        for epoch in range(4):
            corrector.refresh(draw(epoch))
            for x in draw(epoch):
                optimizer.zero_grad()
                corrector.backward(x)
                optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
        stored = sum(t.numel() for t in corrector.snapshot.values())
        dense = sum(p.numel() for p in model.parameters())
        inactive = topology.num_weights - topology.num_active
        assert stored == (dense - inactive if packed else dense)
        assert {n: t.shape for n, t in corrector.full_gradient.items()} == {
            n: t.shape for n, t in corrector.snapshot.items()
        }
        if cached:
            assert corrector.cache.num_bytes == 3 * stored * 4
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Weight(nn.Module):
    """One masked weight under a quadratic loss, so that gradients are known."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, 0.0, 0.0]))


def test_after_a_rewiring_only_weights_active_then_and_now_are_corrected() -> None:
    model = Weight()
    masks = {"w": torch.tensor([True, True, False, False])}
    corrector: Any = GradientCorrector(
        model,
        lambda x: (model.w * x).square().sum() / 2 + model.w.sum() * x[0],
        Constant(1.0),
        masks=lambda: masks,
    )
    batches = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 1.0, 1.0])]
    corrector.refresh(batches)
    masks = {"w": torch.tensor([True, False, True, False])}
    with torch.no_grad():
        model.w.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    mean = torch.zeros(4)
    for x in batches:
        model.zero_grad()
        corrector.backward(x)
        plain = model.w.detach() * x.square() + x[0]
        grad = model.w.grad
        assert grad is not None
        assert torch.equal(grad[1:], plain[1:])
        assert grad[0] != plain[0]
        mean += grad / 2
    expected = sum(model.w.detach() * x.square() + x[0] for x in batches) / 2
    torch.testing.assert_close(mean, expected)  # unbiased all the same


def test_the_state_goes_on_to_the_bit_and_only_into_a_fitting_model() -> None:
    grads = []
    model, topology = network()
    corrector = corrector_for(model, topology)
    corrector.refresh(draw(0))
    other, same = network()
    resumed = corrector_for(other, same)
    resumed.load_state_dict(corrector.state_dict())
    for m, c in ((model, corrector), (other, resumed)):
        m.zero_grad()
        c.backward(draw(1)[0])
        grads.append([p.grad for p in m.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    state = corrector.state_dict()
    state["packing"] = {"0.weight": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"packing does not fit this model at 0\.weight"):
        resumed.load_state_dict(state)


def test_packing_and_unpacking_are_inverse() -> None:
    mask = torch.rand(4, 3, 2) < 0.4
    dense = {"a": torch.randn(4, 3, 2) * mask, "b": torch.randn(5)}
    back = unpack(pack(dense, {"a": mask}), {"a": mask})
    assert torch.equal(back["a"], dense["a"])
    assert back["b"] is dense["b"]
