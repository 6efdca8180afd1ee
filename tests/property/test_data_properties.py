"""What holds for every seed, key, row and batch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data import Augmentation, ImageLoader, ImageSet, augment
from equipoise.data.keyed import keyed_integers, keyed_uniform, keyed_words

anything = st.integers(-(2**70), 2**70)
streams = st.text(max_size=8)
few = settings(max_examples=30, deadline=None)


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def pictures(num: int, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 2, size, size), generator=generator, dtype=torch.uint8)


@few
@given(seed=anything, key=anything, stream=streams, high=st.sampled_from([2, 5, 9, 17]))
def test_integers_are_uniform(seed, key, stream, high):
    numbers = keyed_integers(torch.arange(20_000), high, seed=seed, key=key, stream=stream)
    # The mean of a chi-square is its degrees of freedom; 60 above it is out of all chance.
    assert chi_square(numbers.bincount(minlength=high).double()) < high + 60


@few
@given(seed=anything, key=anything, stream=streams)
def test_the_stream_has_the_moments_of_a_uniform(seed, key, stream):
    numbers = keyed_uniform(torch.arange(20_000), seed=seed, key=key, stream=stream)
    assert abs(float(numbers.mean()) - 0.5) < 6 * (1 / 12 / 20_000) ** 0.5
    assert abs(float(numbers.std()) - 12**-0.5) < 0.01
    neighbours = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
    assert abs(float(neighbours)) < 6 / 20_000**0.5


@few
@given(seed=anything, key=anything)
def test_all_bits_are_fair(seed, key):
    words = keyed_words(torch.arange(4000), seed=seed, key=key, stream="bits")
    ones = (words[:, None] >> torch.arange(64) & 1).double().mean(0)
    assert (ones - 0.5).abs().max() < 6 * 0.5 / 4000**0.5


@few
@given(seed=anything, key=anything)
def test_streams_and_keys_are_uncorrelated(seed, key):
    index = torch.arange(10_000)
    numbers = torch.stack(
        [
            keyed_uniform(index, seed=seed, key=key, stream="crop top"),
            keyed_uniform(index, seed=seed, key=key, stream="crop left"),
            keyed_uniform(index, seed=seed, key=key, stream="flip"),
            keyed_uniform(index, seed=seed, key=key + 1, stream="flip"),
            keyed_uniform(index, seed=seed + 1, key=key, stream="flip"),
        ]
    )
    assert (torch.corrcoef(numbers) - torch.eye(5)).abs().max() < 6 / 10_000**0.5


@few
@given(row=st.integers(0, 2**40), seed=anything)
def test_one_sample_is_uniform_over_the_epochs(row, seed):
    """What a single sample sees in training must be as varied as what a single epoch sees."""
    index = torch.tensor([row])
    draws = [keyed_integers(index, 3, seed=seed, key=key, stream="crop top") for key in range(300)]
    assert chi_square(torch.cat(draws).bincount(minlength=3).double()) < 3 + 40


@few
@given(
    data=st.data(),
    seed=anything,
    key=anything,
    margin=st.integers(0, 5),
    mode=st.sampled_from(["zeros", "reflect"]),
    flip=st.booleans(),
)
def test_augmentation_is_independent_of_the_batch(data, seed, key, margin, mode, flip):
    images, index = pictures(12), torch.arange(100, 112)
    augmentation = Augmentation(crop_padding=margin, padding_mode=mode, flip=flip)
    rows = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=20))
    options = {"seed": seed, "key": key, "augmentation": augmentation}
    whole = augment(images, index, **options)
    part = augment(images[rows], index[rows], **options)
    assert torch.equal(part, whole[rows])
    assert part.dtype == torch.uint8


@few
@given(seed=anything, key=anything)
def test_flipping_twice_with_one_key_gives_the_image_back(seed, key):
    images, index = pictures(20), torch.arange(20)
    options = {"seed": seed, "key": key, "augmentation": Augmentation(crop_padding=0)}
    once = augment(images, index, **options)
    assert torch.equal(augment(once, index, **options), images)


@few
@given(seed=anything, key=anything, margin=st.integers(1, 3))
def test_a_cropped_pixel_comes_from_its_own_image(seed, key, margin):
    """Every image has one value, so that a pixel is that value or the padding."""
    images = torch.arange(1, 21, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 6, 6)
    index = torch.arange(20)
    zeros = Augmentation(crop_padding=margin)
    result = augment(images, index, seed=seed, key=key, augmentation=zeros)
    assert ((result == images) | (result == 0)).all()
    reflect = Augmentation(crop_padding=margin, padding_mode="reflect")
    assert torch.equal(augment(images, index, seed=seed, key=key, augmentation=reflect), images)


@few
@given(
    num=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    seed=anything,
    number=st.integers(0, 2**40),
    start=st.integers(0, 50),
    drop_last=st.booleans(),
    stream=streams,
)
def test_an_epoch_is_a_partition_and_can_be_resumed(
    num, batch_size, seed, number, start, drop_last, stream
):
    if drop_last and num < batch_size:
        return
    images = ImageSet("toy", pictures(num), torch.zeros(num).long(), ("a",), (0.5,) * 2, (0.2,) * 2)
    loader = ImageLoader(
        images,
        batch_size=batch_size,
        seed=seed,
        drop_last=drop_last,
        augmentation=Augmentation(crop_padding=2),
    )
    whole = list(loader.epoch(number, stream=stream))
    assert len(whole) == len(loader)
    rows = torch.cat([batch.index for batch in whole]).tolist()
    assert len(rows) == len(set(rows)) == loader.num_samples
    assert all(batch.size == batch_size for batch in whole[:-1])
    start = min(start, len(loader))
    rest = list(loader.epoch(number, start=start, stream=stream))
    assert len(rest) == len(whole) - start
    for one, other in zip(whole[start:], rest, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
