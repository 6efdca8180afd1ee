from typing import Any

import torch
from torch import nn

from equipoise.topology.masked_weight import MaskedWeight, _Eraser, state_like


def half(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5


def test_masks_follow_the_parameter_to_its_device() -> None:
    masked = MaskedWeight(nn.Parameter(torch.rand(4, 5)), half((4, 5)))
    masked.clear_()
    masked.weight = nn.Parameter(torch.empty(4, 5, device="meta"))
    masked.clear_()
    assert masked.mask.device.type == masked.ever_active.device.type == "meta"
    assert masked.num_active == int(half((4, 5)).sum())


def test_the_eraser_lies_in_memory_like_its_weight() -> None:
    # Otherwise every step of a channels-last network would read one of them across the grain.
    mask = half((4, 6, 3, 3))
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.rand(4, 6, 3, 3).to(memory_format=layout)
        eraser = _Eraser(mask, weight)
        assert eraser._keep is not None
        assert eraser._keep.stride() == weight.stride()
        assert eraser.fits(weight)
        assert not eraser.fits(weight.double())


def test_a_mask_is_the_same_by_words_and_by_filling() -> None:
    mask = half((7, 9))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.complex128):
        weight = torch.randn(7, 9, dtype=dtype)
        expected = weight.masked_fill(~mask, 0)
        _Eraser(mask, weight).clear_(weight)
        assert torch.equal(weight, expected)


def test_looking_for_state_creates_none() -> None:
    weight = nn.Parameter(torch.rand(3, 3))
    optimizer: Any = torch.optim.Adam([weight])
    assert list(state_like(optimizer, weight)) == []
    assert len(optimizer.state) == 0
    weight.sum().backward()
    optimizer.step()
    assert [key for key, _ in state_like(optimizer, weight)] == ["exp_avg", "exp_avg_sq"]
