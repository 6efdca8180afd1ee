"""A small network that is trained in a second, and images that it knows."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.data import ImageLoader, synthetic
from equipoise.models import create


@cache
def trained(steps: int = 60) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images in [0, 1] and their labels; most of them it gets right."""
    torch.manual_seed(0)
    data = synthetic(num_train=256, num_test=8, image_size=8).train
    loader = ImageLoader(data, batch_size=64)
    model = create(
        "small_cnn",
        num_classes=len(data.classes),
        in_channels=data.channels,
        image_size=8,
        width=0.5,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images, labels = data.images.float() / 255, data.labels
    done = 0
    while done < steps:
        for batch in loader.epoch(done):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch.index]), batch.y).backward()
            optimizer.step()
            done += 1
    optimizer.zero_grad()
    return model.eval(), images, labels
