"""Decoding pictures of any format and cutting squares out of them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.data.files import Bytes, import_extra

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


def open_picture(source: Path | bytes, name: object) -> Image:
    """A decoded picture in RGB.

    Raises:
        ValueError: It cannot be decoded; `name` says which one it is.
    """
    pillow = import_extra("PIL.Image", "Reading pictures")
    try:
        with pillow.open(BytesIO(source) if isinstance(source, bytes) else source) as picture:
            decoded: Image = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
        raise ValueError(
            f"{name} cannot be decoded ({error}); it is damaged, so delete it or fetch it again."
        ) from error
    return decoded


def pixels(picture: Image) -> Bytes:
    """Its bytes, shape (3, height, width)."""
    return np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)


def cut(picture: Image, box: Box, image_size: int, *, mirrored: bool = False) -> Bytes:
    """The part inside `box` (left, top, right, bottom) at a new size, shape (3, size, size).

    Bilinear with a filter as wide as the reduction, so that large pictures do not alias.
    """
    bilinear = import_extra("PIL.Image", "Reading pictures").Resampling.BILINEAR
    part = pixels(picture.resize((image_size, image_size), bilinear, box=box))
    return part[:, :, ::-1] if mirrored else part


def centre_box(width: int, height: int, share: float = 1.0) -> Box:
    """The square in the middle whose side is `share` of the shorter side."""
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)
