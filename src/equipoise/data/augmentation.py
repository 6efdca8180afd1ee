"""Random crops and flips of whole batches of bytes, keyed by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from equipoise.data.keyed import keyed_integers

PaddingMode = Literal["zeros", "reflect"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Which changes are drawn: pad and crop back to the old size, then mirror.

    Args:
        crop_padding: Pixels added on each side before the crop; 0 for no crop.
        padding_mode: ``"zeros"`` or ``"reflect"`` (without repeating the border pixel).
        flip: Whether half of the images are mirrored left to right.

    Raises:
        ValueError: A value is out of range.
    """

    crop_padding: int = 4
    padding_mode: PaddingMode = "zeros"
    flip: bool = True

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(
                f"crop_padding is the number of pixels added on each side, 0 or more; "
                f"got {self.crop_padding}."
            )
        if self.padding_mode not in get_args(PaddingMode):
            raise ValueError(
                f"padding_mode={self.padding_mode!r} is unknown; pass 'zeros' or 'reflect'."
            )


def augment(
    images: Tensor, index: Tensor, *, seed: int, key: int, augmentation: Augmentation
) -> Tensor:
    """Draws one crop and one flip per sample.

    Contract: the result for a sample depends on its image, its row number, `seed`, `key` and
    `augmentation` alone, not on the rest of the batch; no generator is read; `images` is not
    changed.

    Args:
        images: uint8, shape (n, channels, height, width).
        index: Row numbers of the samples, int64, shape (n,), on the same device.
        seed: Of the run.
        key: Which draw; the same key draws the same augmentation again.
        augmentation: What to draw.

    Returns:
        uint8, same shape as `images`.

    Raises:
        ValueError: Reflection needs more pixels than the images have.

    Example:
        >>> images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
        >>> row = torch.tensor([5])
        >>> shift = Augmentation(crop_padding=1)
        >>> first = augment(images, row, seed=0, key=3, augmentation=shift)
        >>> again = augment(images, row, seed=0, key=3, augmentation=shift)
        >>> torch.equal(first, again)
        True
    """
    margin = augmentation.crop_padding
    if margin:
        spots = 2 * margin + 1
        top = keyed_integers(index, spots, seed=seed, key=key, stream="crop top")
        left = keyed_integers(index, spots, seed=seed, key=key, stream="crop left")
        images = _crop(_padded(images, margin, augmentation.padding_mode), top, left, images.shape)
    if augmentation.flip:
        mirrored = keyed_integers(index, 2, seed=seed, key=key, stream="flip").bool()
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes to numbers: (x / 255 - mean) / std per channel.

    Args:
        images: uint8, shape (n, channels, height, width).
        mean: Per channel, on the scale [0, 1].
        std: Per channel, on the same scale; positive.

    Returns:
        float32, same shape.

    Example:
        >>> normalise(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), (0.5,), (0.25,)).item()
        2.0
    """
    statistics = torch.tensor((mean, std), dtype=torch.float32, device=images.device)
    centre, scale = (statistics * 255).view(2, -1, 1, 1)
    return images.to(torch.float32).sub_(centre).div_(scale)


def _padded(images: Tensor, margin: int, mode: PaddingMode) -> Tensor:
    """The images with a margin on all four sides."""
    if mode == "zeros":
        return pad(images, (margin, margin, margin, margin))
    height, width = images.shape[2:]
    if margin >= min(height, width):
        raise ValueError(
            f"crop_padding={margin} reflects more pixels than images of {height} x {width} have; "
            f"pass at most {min(height, width) - 1}."
        )
    rows, columns = (_reflected(size, margin, images.device) for size in (height, width))
    return images.index_select(2, rows).index_select(3, columns)


def _reflected(size: int, margin: int, device: torch.device) -> Tensor:
    """Positions that a reflected line reads: margin ... 1, 0 ... size - 1, size - 2 ..."""
    last = size - 1
    return last - (last - torch.arange(-margin, size + margin, device=device).abs()).abs()


def _crop(padded: Tensor, top: Tensor, left: Tensor, shape: torch.Size) -> Tensor:
    """One window per image, read through a view of all windows."""
    windows = padded.unfold(2, shape[2], 1).unfold(3, shape[3], 1)
    return windows[torch.arange(shape[0], device=padded.device), :, top, left]
