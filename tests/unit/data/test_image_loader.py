"""Batches that can be drawn again."""

import itertools
from dataclasses import replace

import pytest
import torch

from equipoise.data import Augmentation, Batch, ImageLoader, ImageSet, Loader, augment, normalise


def make(num: int = 50) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (num, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet("toy", images, torch.arange(num) % 7, tuple("abcdefg"), (0.5,) * 3, (0.2,) * 3)


def loader(num: int = 50, **changes) -> ImageLoader:
    settings = {"batch_size": 16, "seed": 3, "augmentation": Augmentation(crop_padding=2)}
    return ImageLoader(make(num), **{**settings, **changes})


def same(left: Batch, right: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def rows(batches) -> list[int]:
    return torch.cat([batch.index for batch in batches]).tolist()


def test_an_epoch_is_every_sample_once_with_its_own_image_and_label():
    source, batches = make(), list(loader(augmentation=None).epoch(0))
    assert [batch.size for batch in batches] == [16, 16, 16, 2]
    assert sorted(rows(batches)) == list(range(50))
    for batch in batches:
        assert torch.equal(batch.y, source.labels[batch.index])
        assert torch.equal(batch.x, normalise(source.images[batch.index], (0.5,) * 3, (0.2,) * 3))


def test_the_batch_is_augmented_by_epoch_and_row():
    source, crop = make(), Augmentation(crop_padding=2)
    for number in (0, 5):
        batch = next(loader().epoch(number))
        pixels = augment(
            source.images[batch.index], batch.index, seed=3, key=number, augmentation=crop
        )
        assert torch.equal(batch.x, normalise(pixels, (0.5,) * 3, (0.2,) * 3))


def test_types_and_shapes():
    batch = next(loader().epoch(0))
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (16, 3, 8, 8)
    assert batch.y.dtype == batch.index.dtype == torch.int64


def test_an_epoch_can_be_replayed_and_differs_from_the_next():
    one = loader()
    assert all(map(same, one.epoch(2), one.epoch(2)))
    assert all(map(same, one.epoch(2), loader().epoch(2)))
    assert rows(one.epoch(2)) != rows(one.epoch(3))
    assert rows(one.epoch(2)) != rows(loader(seed=4).epoch(2))


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_an_epoch_can_be_entered_in_the_middle(start):
    whole, rest = list(loader().epoch(1)), list(loader().epoch(1, start=start))
    assert len(rest) == 4 - start
    assert all(map(same, whole[start:], rest))


def test_streams_give_other_batches_of_the_same_augmented_samples():
    one = loader()
    train, refresh = list(one.epoch(1)), list(one.epoch(1, stream="refresh"))
    assert rows(train) != rows(refresh)
    by_row = {int(row): x for batch in train for row, x in zip(batch.index, batch.x, strict=True)}
    for batch in refresh:
        for row, x in zip(batch.index.tolist(), batch.x, strict=True):
            assert torch.equal(x, by_row[row])


def test_draw_replays_or_refreshes_the_augmentation_alone():
    one = loader()
    plain, drawn = next(one.epoch(1)), next(one.epoch(1, draw=9))
    assert torch.equal(plain.index, drawn.index)
    assert not torch.equal(plain.x, drawn.x)
    assert same(plain, next(one.epoch(1, draw=1)))
    assert not same(plain, next(one.epoch(1, draw=0)))


def test_a_locked_loader_never_changes_the_augmentation():
    locked = loader(locked=True, shuffle=False)
    assert all(map(same, locked.epoch(0), locked.epoch(7)))
    assert same(next(locked.epoch(7)), next(loader(shuffle=False).epoch(0)))
    assert not same(next(locked.epoch(7)), next(locked.epoch(7, draw=7)))


def test_without_shuffling_rows_are_in_order():
    assert rows(loader(shuffle=False).epoch(4)) == list(range(50))


def test_dropping_the_last_batch():
    dropping, exact = loader(drop_last=True), loader(48)
    assert (len(loader()), loader().num_samples) == (4, 50)
    assert (len(dropping), dropping.num_samples) == (3, 48)
    assert (len(exact), exact.num_samples) == (3, 48)
    assert [batch.size for batch in dropping.epoch(0)] == [16, 16, 16]
    left_out = [set(range(50)) - set(rows(dropping.epoch(number))) for number in range(3)]
    assert len({tuple(sorted(rest)) for rest in left_out}) == 3  # not always the same two


def test_every_row_is_everywhere_in_the_end():
    """A bias of the order would show as a sample that is never early."""
    one = ImageLoader(make(20), batch_size=5, seed=0)
    early = torch.zeros(20)
    for number in range(400):
        early[next(one.epoch(number)).index] += 1
    assert early.min() > 60
    assert early.max() < 140


def test_global_random_states_are_left_alone():
    before = torch.get_rng_state()
    one = loader()
    for _ in itertools.chain(one.epoch(0), one.epoch(0, stream="refresh", draw=2)):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_may_be_open_side_by_side():
    one = loader()
    alone = list(one.epoch(0))
    together = [left for left, _ in zip(one.epoch(0), one.epoch(1), strict=True)]
    assert all(map(same, alone, together))


def test_channels_last_changes_the_layout_only():
    plain, last = next(loader().epoch(0)), next(loader(channels_last=True).epoch(0))
    assert torch.equal(plain.x, last.x)
    assert last.x.is_contiguous(memory_format=torch.channels_last)
    assert not plain.x.is_contiguous(memory_format=torch.channels_last)


def test_the_source_is_not_changed():
    source = make()
    copy = source.images.clone()
    for batch in ImageLoader(source, batch_size=8, augmentation=Augmentation()).epoch(0):
        batch.x.zero_()
        batch.y.zero_()
    assert torch.equal(source.images, copy)
    assert source.labels.tolist() == [row % 7 for row in range(50)]


def test_the_unit_range_is_a_matter_of_the_statistics():
    unit = replace(make(), mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = next(ImageLoader(unit, batch_size=50).epoch(0))
    assert 0 <= batch.x.min() < 0.01
    assert 0.99 < batch.x.max() <= 1


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_is_checked(size):
    with pytest.raises(ValueError, match=f"batch_size .* got {size}"):
        loader(batch_size=size)


def test_an_epoch_without_batches_is_refused():
    with pytest.raises(ValueError, match="50 samples make no batch of 64 with drop_last=True"):
        loader(batch_size=64, drop_last=True)


@pytest.mark.parametrize(("number", "start"), [(-1, 0), (0, -1), (0, 5)])
def test_the_place_is_checked_at_once(number, start):
    with pytest.raises(ValueError, match=r"pass an epoch number of 0 or more and a start in .0, 4"):
        loader().epoch(number, start=start)


def test_it_is_a_loader():
    one: Loader = loader()
    assert one.batch_size == 16
