"""Keyed crops and flips, and the hash behind them."""

import pytest
import torch

from equipoise.data import Augmentation, augment, normalise
from equipoise.data.keyed import keyed_integers, keyed_uniform, keyed_words


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator, on Python integers."""
    words, mask = [], 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        word = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        words.append(word ^ (word >> 31))
    return words


def pictures(num: int = 6, channels: int = 3, height: int = 8, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (num, channels, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def test_words_are_those_of_splitmix64(monkeypatch):
    monkeypatch.setattr("equipoise.data.keyed._start", lambda seed, key, stream: 1234567)
    words = keyed_words(torch.arange(5), seed=0, key=0, stream="any")
    unsigned = [word % 2**64 for word in words.tolist()]
    assert unsigned == splitmix64(1234567, 5)
    assert unsigned[0] == 6457827717110365317  # the first output published for this state


def test_words_are_fixed_for_ever():
    """Runs are repeated by these numbers, so a change of them is a change of results."""
    words = keyed_words(torch.tensor([0, 1, 49_999]), seed=17, key=3, stream="order train")
    assert words.tolist() == [
        -7597920886864628878,
        5846791597070811447,
        714934790777204047,
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1, "key": 0, "stream": "a"},
        {"seed": 0, "key": 1, "stream": "a"},
        {"seed": 0, "key": 0, "stream": "b"},
        {"seed": -1, "key": 0, "stream": "a"},
        {"seed": 0, "key": -1, "stream": "a"},
        {"seed": 2**63, "key": 0, "stream": "a"},
    ],
)
def test_every_argument_changes_every_word(other):
    index = torch.arange(1000)
    words = keyed_words(index, seed=0, key=0, stream="a")
    assert not (words == keyed_words(index, **other)).any()


def test_seed_and_key_do_not_stand_for_each_other():
    index = torch.arange(100)
    one = keyed_words(index, seed=1, key=2, stream="a")
    other = keyed_words(index, seed=2, key=1, stream="a")
    assert not (one == other).any()


def test_integers_and_uniforms_stay_in_range():
    index = torch.arange(100_000)
    for high in (1, 2, 9, 1000, 2**30):
        numbers = keyed_integers(index, high, seed=0, key=0, stream="a")
        assert numbers.min() >= 0
        assert numbers.max() < high
    uniform = keyed_uniform(index, seed=0, key=0, stream="a")
    assert uniform.dtype == torch.float64
    assert 0 <= uniform.min() < 1e-3
    assert 1 - 1e-3 < uniform.max() < 1


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("shape", [(8, 8), (6, 9)])
def test_a_crop_is_a_window_of_the_padded_image(mode, shape):
    images, index = pictures(40, 3, *shape), torch.arange(40) * 7
    crop = Augmentation(crop_padding=2, padding_mode=mode, flip=False)
    result = augment(images, index, seed=5, key=1, augmentation=crop)
    padding = {"zeros": "constant", "reflect": "reflect"}[mode]
    padded = torch.nn.functional.pad(images.double(), (2, 2, 2, 2), mode=padding).byte()
    top = keyed_integers(index, 5, seed=5, key=1, stream="crop top").tolist()
    left = keyed_integers(index, 5, seed=5, key=1, stream="crop left").tolist()
    for row in range(40):
        y, x = top[row], left[row]
        window = padded[row, :, y : y + shape[0], x : x + shape[1]]
        assert torch.equal(result[row], window)
    assert len(set(zip(top, left, strict=True))) > 10


def test_a_flip_mirrors_exactly_half_or_so():
    images, index = pictures(400), torch.arange(400)
    flip = Augmentation(crop_padding=0, flip=True)
    result = augment(images, index, seed=0, key=0, augmentation=flip)
    same = (result == images).flatten(1).all(1)
    mirrored = (result == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


def test_nothing_is_changed_without_crop_and_flip_nor_in_place():
    images = pictures()
    copy = images.clone()
    nothing = Augmentation(crop_padding=0, flip=False)
    assert augment(images, torch.arange(6), seed=0, key=0, augmentation=nothing) is images
    augment(images, torch.arange(6), seed=0, key=0, augmentation=Augmentation())
    assert torch.equal(images, copy)


def test_no_global_random_state_is_used():
    before = torch.get_rng_state()
    augment(pictures(), torch.arange(6), seed=0, key=0, augmentation=Augmentation())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_keeps_its_crop_for_a_key_and_gets_another_for_the_next():
    images, index = pictures(1).expand(200, -1, -1, -1), torch.arange(200)
    augmentation = Augmentation(crop_padding=3)
    first = augment(images, index, seed=0, key=4, augmentation=augmentation)
    again = augment(images, index, seed=0, key=4, augmentation=augmentation)
    fresh = augment(images, index, seed=0, key=5, augmentation=augmentation)
    other = augment(images, index, seed=1, key=4, augmentation=augmentation)
    assert torch.equal(first, again)
    for changed in (fresh, other):
        assert (first != changed).flatten(1).any(1).float().mean() > 0.9


def test_too_much_reflection_is_refused():
    with pytest.raises(ValueError, match=r"crop_padding=8 reflects more .* pass at most 7"):
        augment(
            pictures(),
            torch.arange(6),
            seed=0,
            key=0,
            augmentation=Augmentation(crop_padding=8, padding_mode="reflect"),
        )


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"crop_padding .* got -1"):
        Augmentation(crop_padding=-1)
    with pytest.raises(ValueError, match="padding_mode='edge' is unknown; pass 'zeros'"):
        Augmentation(**{"padding_mode": "edge"})


def test_normalise_is_the_formula():
    images, mean, std = pictures(), (0.49, 0.48, 0.45), (0.2, 0.21, 0.26)
    expected = images.double() / 255
    for channel in range(3):
        expected[:, channel] = (expected[:, channel] - mean[channel]) / std[channel]
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)


def test_without_statistics_the_range_is_exactly_zero_to_one():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    result = normalise(every, (0.0,), (1.0,))
    assert torch.equal(result.flatten(), torch.arange(256) / 255)
