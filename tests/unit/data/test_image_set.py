"""Splits in memory."""

from dataclasses import replace

import pytest
import torch

from equipoise.data import Batch, ImageSet, synthetic


def make(num: int = 10, size: int = 4, channels: int = 1) -> ImageSet:
    images = torch.arange(num * channels * size * size).remainder(256).to(torch.uint8)
    return ImageSet(
        "toy",
        images.view(num, channels, size, size),
        torch.arange(num) % 3,
        ("a", "b", "c"),
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
        checksums={"file": "00"},
    )


def test_split_takes_the_last_rows():
    whole = make(10)
    train, validation = whole.split(0.2)
    assert torch.equal(train.images, whole.images[:8])
    assert torch.equal(validation.images, whole.images[8:])
    assert torch.equal(torch.cat([train.labels, validation.labels]), whole.labels)
    assert validation.checksums == {"file": "00"}


@pytest.mark.parametrize(("num", "fraction", "expected"), [(50_000, 0.1, 5_000), (7, 0.3, 2)])
def test_split_rounds_to_the_nearest(num, fraction, expected):
    whole = replace(
        make(1), images=torch.zeros(num, 1, 1, 1).byte(), labels=torch.zeros(num).long()
    )
    assert len(whole.split(fraction)[1]) == expected


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.01, 0.99, 10])
def test_split_refuses_an_empty_part(fraction):
    with pytest.raises(ValueError, match=f"validation_fraction={fraction} of 10 samples"):
        make(10).split(fraction)


def test_subset_by_count_and_by_rows():
    whole = make(10)
    assert torch.equal(whole.subset(3).images, whole.images[:3])
    for rows in ([7, 1, 1], torch.tensor([7, 1, 1])):
        part = whole.subset(rows)
        assert torch.equal(part.images, whole.images[[7, 1, 1]])
        assert part.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("rows", [0, 11, [10], [-1], [[1]]])
def test_subset_refuses_rows_out_of_range(rows):
    with pytest.raises(ValueError, match="subset of"):
        make(10).subset(rows)


def test_resized_is_the_rounded_mean_of_blocks():
    whole = make(2, size=8, channels=3)
    small = whole.resized(4)
    exact = torch.nn.functional.avg_pool2d(whole.images.double(), 2)
    assert torch.equal(small.images, torch.floor(exact + 0.5).to(torch.uint8))
    assert small.image_size == 4
    assert small.mean == whole.mean


def test_resized_does_not_overflow_on_white_and_keeps_the_present_size():
    white = replace(make(2, size=8), images=torch.full((2, 1, 8, 8), 255, dtype=torch.uint8))
    assert white.resized(1).images.unique().tolist() == [255]
    assert white.resized(8) is white


@pytest.mark.parametrize("size", [0, 3, 16])
def test_resized_refuses_what_does_not_divide(size):
    with pytest.raises(ValueError, match=f"image_size={size} does not divide the 8 x 8 pixels"):
        make(2, size=8).resized(size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(10, 1, 4, 4)}, "images of 'toy' are torch.float32"),
        ({"images": torch.zeros(10, 4, 4, dtype=torch.uint8)}, "of shape \\(10, 4, 4\\)"),
        ({"labels": torch.zeros(9).long()}, "pass int64 of shape \\(10,\\)"),
        ({"labels": torch.zeros(10)}, "labels of 'toy' are torch.float32"),
        ({"labels": torch.arange(10)}, "run from 0 to 9, where \\[0, 3\\) was expected"),
        ({"labels": torch.arange(10) % 3 - 1}, "run from -1 to 1"),
        ({"mean": (0.1, 0.2)}, "do not fit 1 channels"),
        ({"std": (0.0,)}, "one positive std per channel"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make(10), **change)


def test_a_batch_knows_its_size_although_it_is_a_tuple():
    batch = Batch(torch.zeros(5, 1, 2, 2), torch.zeros(5).long(), torch.arange(5))
    assert (batch.size, len(batch)) == (5, 3)
    x, y, index = batch
    assert x is batch.x
    assert y is batch.y
    assert index is batch.index
    assert batch._replace(x=x[:, :, :1]).size == 5


def test_synthetic_is_a_pure_function_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again = synthetic(64, 32, seed=3), synthetic(64, 32, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, synthetic(64, 32, seed=4).train.images)
    assert not torch.equal(first.train.images[:32], first.test.images)


def test_synthetic_can_be_learned_but_is_noisy():
    data = synthetic(512, 256, image_size=8, channels=3, classes=5)
    images, labels = data.train.images.flatten(1).float(), data.train.labels
    centres = torch.stack([images[labels == label].mean(0) for label in range(5)])
    nearest = torch.cdist(data.test.images.flatten(1).float(), centres).argmin(1)
    assert (nearest == data.test.labels).float().mean() > 0.9
    spread = torch.stack([images[labels == label].std(0).mean() for label in range(5)])
    assert spread.min() > 20


@pytest.mark.parametrize("name", ["image_size", "channels", "classes", "num_train", "num_test"])
def test_synthetic_refuses_zero(name):
    with pytest.raises(ValueError, match="are 1 or more"):
        synthetic(**{"num_train": 4, "num_test": 4, name: 0})
