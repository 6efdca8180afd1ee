"""Folders of pictures: listed, in memory, and streamed."""

import sys
import threading
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from equipoise.data import FolderLoader, Loader, ResizedCrop, load_dataset, normalise, open_folder
from equipoise.data import folder as folder_module
from equipoise.data.folder_loader import random_box

CLASSES = ("ant", "bee", "cow")


def save(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(root: Path, per_class: int = 6, held_out: str = "val") -> None:
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            save(root / "train" / name / f"{number}.png", 40 + number, 30, seed=10 * label + number)
        save(root / held_out / name / "0.PNG", seed=label)
        save(root / held_out / name / "deeper" / "1.png", seed=5 + label)
        (root / held_out / name / "notes.txt").write_text("not a picture")


@pytest.fixture
def root(tmp_path) -> Path:
    fill(tmp_path / "pictures")
    return tmp_path / "pictures"


# Listing.


def test_both_splits_are_listed_with_their_labels(root):
    data = open_folder(root)
    assert (len(data.train), len(data.test)) == (18, 6)
    assert data.train.classes == data.test.classes == CLASSES
    for images in (data.train, data.test):
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            assert path.startswith(f"{CLASSES[label]}/")
            assert (images.root / path).is_file()
    assert sum("deeper" in path for path in data.test.paths) == 3


def test_the_order_is_mixed_but_always_the_same(root):
    labels = open_folder(root).train.labels.tolist()
    assert labels != sorted(labels)
    assert labels == open_folder(root).train.labels.tolist()
    assert len(set(labels[-6:])) > 1


def test_the_checksum_follows_the_files(root):
    before = open_folder(root).train.checksums
    assert list(before) == ["listing of train"]
    assert open_folder(root).train.checksums == before
    save(root / "train" / "bee" / "extra.png")
    assert open_folder(root).train.checksums != before


def test_val_is_taken_before_test(tmp_path):
    fill(tmp_path, held_out="test")
    assert open_folder(tmp_path).test.root.name == "test"
    fill(tmp_path, held_out="val")
    assert open_folder(tmp_path).test.root.name == "val"


def test_subset_and_split(root):
    train = open_folder(root).train
    assert train.subset(4).paths == train.paths[:4]
    part = train.subset([5, 2])
    assert part.paths == (train.paths[5], train.paths[2])
    assert part.labels.tolist() == train.labels[[5, 2]].tolist()
    left, right = train.split(1 / 3)
    assert left.paths + right.paths == train.paths
    assert len(right) == 6


@pytest.mark.parametrize("rows", [0, 19, [18], [-1], []])
def test_a_subset_out_of_range(root, rows):
    with pytest.raises(ValueError, match="does not lie within its 18 pictures"):
        open_folder(root).train.subset(rows)


@pytest.mark.parametrize("keep", ["train", "val"])
def test_a_missing_split(tmp_path, keep):
    (tmp_path / keep).mkdir()
    with pytest.raises(FileNotFoundError, match="lacks the folder train, or both val and test"):
        open_folder(tmp_path)


def test_a_split_without_pictures(tmp_path):
    for name in ("train/ant", "val/ant"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="train has no pictures in its class folders"):
        open_folder(tmp_path)


def test_a_class_of_the_test_split_alone(root):
    save(root / "val" / "dog" / "0.png")
    with pytest.raises(ValueError, match=r"val has the class 'dog', which .*train lacks"):
        open_folder(root)


# In memory.


def test_in_memory_pictures_are_centred_squares(root, tmp_path):
    data = load_dataset("image_folder", data_dir=root, cache_dir=tmp_path / "c", image_size=30)
    listed = open_folder(root).train
    assert data.train.images.shape == (18, 3, 30, 30)
    assert data.train.classes == CLASSES
    assert torch.equal(data.train.labels, listed.labels)
    for row, path in enumerate(listed.paths):
        with Image.open(listed.root / path) as picture:
            whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        margin = whole.shape[2] - 30
        if margin % 2 == 0:  # no resampling is needed
            middle = whole[:, :, margin // 2 : margin // 2 + 30]
            assert torch.equal(data.train.images[row], middle)


def test_in_memory_pictures_are_cached(root, tmp_path, monkeypatch):
    options = {"data_dir": root, "cache_dir": tmp_path / "c", "image_size": 8}
    calls = []
    first = load_dataset("image_folder", on_progress=lambda *both: calls.append(both), **options)
    assert calls[17] == (18, 18)
    assert calls[-1] == (6, 6)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    again = load_dataset("image_folder", **options)
    assert torch.equal(first.train.images, again.train.images)
    with pytest.raises(ModuleNotFoundError, match="Reading pictures needs PIL"):
        load_dataset("image_folder", **{**options, "image_size": 9})


def test_in_memory_needs_a_size_and_room(root, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no common size; pass image_size, or stream them"):
        load_dataset("image_folder", data_dir=root, cache_dir=tmp_path)
    monkeypatch.setattr(folder_module, "_LARGEST_IN_MEMORY", 3 * 24 * 16 * 16 - 1)
    with pytest.raises(ValueError, match="in memory at image_size=16; pass a smaller one, or str"):
        load_dataset("image_folder", data_dir=root, cache_dir=tmp_path, image_size=16)


# Streamed.


def make(root: Path, **changes) -> FolderLoader:
    settings = {
        "batch_size": 4,
        "image_size": 16,
        "seed": 2,
        "augmentation": ResizedCrop(),
        "num_workers": 0,
    }
    return FolderLoader(open_folder(root).train, **{**settings, **changes})


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_an_epoch_has_every_picture_once(root):
    images, batches = open_folder(root).train, list(make(root).epoch(0))
    assert [batch.size for batch in batches] == [4, 4, 4, 4, 2]
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(18))
    assert torch.equal(torch.cat([batch.y for batch in batches]), images.labels[index])
    assert batches[0].x.shape == (4, 3, 16, 16)
    assert batches[0].x.dtype == torch.float32


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_do_not_depend_on_the_number_of_workers(root, workers):
    alone, together = make(root), make(root, num_workers=workers)
    assert all(map(same, alone.epoch(3), together.epoch(3)))


def test_epochs_are_entered_replayed_and_drawn_as_in_memory(root):
    one = make(root, num_workers=2)
    whole = list(one.epoch(1))
    assert all(map(same, whole[2:], one.epoch(1, start=2)))
    assert list(one.epoch(1, start=5)) == []
    other = next(one.epoch(1, stream="refresh"))
    assert not torch.equal(whole[0].index, other.index)
    drawn = next(one.epoch(1, draw=8))
    assert torch.equal(whole[0].index, drawn.index)
    assert not torch.equal(whole[0].x, drawn.x)
    locked = make(root, locked=True, shuffle=False)
    assert all(map(same, locked.epoch(0), locked.epoch(4)))


def test_a_crop_does_not_depend_on_the_batch(root):
    by_row = {}
    for batch in make(root).epoch(1):
        by_row.update(zip(batch.index.tolist(), batch.x, strict=True))
    for batch in make(root, batch_size=7).epoch(1, stream="other"):
        for row, x in zip(batch.index.tolist(), batch.x, strict=True):
            assert torch.equal(x, by_row[row])


def test_evaluation_takes_the_middle(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "ant" / "0.png", 512, 256)
    images = open_folder(tmp_path).train
    batch = next(FolderLoader(images, batch_size=1, num_workers=0).epoch(0))
    with Image.open(images.root / images.paths[0]) as picture:
        whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    middle = whole[None, :, 16:240, 144:368]
    assert torch.equal(batch.x, normalise(middle, images.mean, images.std))


def test_global_random_state_is_left_alone(root):
    before = torch.get_rng_state()
    list(make(root, num_workers=2).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_leaving_early_stops_the_threads(root):
    before = threading.active_count()
    batches = make(root, num_workers=3, batch_size=1).epoch(0)
    next(batches)
    assert threading.active_count() > before
    del batches
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_named(root, workers):
    path = root / "train" / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"3.png cannot be decoded"):
        list(make(root, num_workers=workers).epoch(0))


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    for split in ("train", "val"):
        for mode in ("L", "RGBA", "P", "LA"):
            path = tmp_path / split / "ant" / f"{mode}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (20, 20), 7 if mode in "LP" else None).save(path)
    images = open_folder(tmp_path).train
    loader: Loader = FolderLoader(images, batch_size=4, image_size=8)
    assert next(loader.epoch(0)).x.shape == (4, 3, 8, 8)


def test_channels_last_changes_the_layout_only(root):
    plain, last = next(make(root).epoch(0)), next(make(root, channels_last=True).epoch(0))
    assert torch.equal(plain.x, last.x)
    assert last.x.is_contiguous(memory_format=torch.channels_last)


def test_boxes_lie_inside_and_have_the_asked_areas_and_shapes():
    crop, random = ResizedCrop(), np.random.default_rng(0)
    areas, shapes = [], []
    for _ in range(3000):
        draws = random.random((10, 5)).tolist()
        left, top, right, bottom = random_box(120, 80, draws, crop)
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 80
        areas.append((right - left) * (bottom - top) / (120 * 80))
        shapes.append((right - left) / (bottom - top))
    assert 0.06 < min(areas) < 0.1
    assert max(areas) > 0.8
    assert 0.7 < min(shapes) < 0.8
    assert 1.25 < max(shapes) < 1.45


def test_a_picture_that_no_box_fits_is_cut_in_the_middle():
    draws = [[0.99, 0.99, 0.5, 0.5, 0.5]] * 10
    assert random_box(1000, 10, draws, ResizedCrop(smallest_area=0.9)) == (495, 0, 505, 10)


def test_without_flips_the_whole_picture_is_only_resized(tmp_path):
    for split in ("train", "val"):
        for number in range(8):
            save(tmp_path / split / "ant" / f"{number}.png", 16, 16, seed=number)
    images = open_folder(tmp_path).train
    whole = ResizedCrop(smallest_area=1, largest_ratio=1, flip=False)
    options = {"batch_size": 8, "image_size": 16, "num_workers": 0, "shuffle": False}
    plain = next(FolderLoader(images, augmentation=whole, **options).epoch(0)).x
    flipping = FolderLoader(images, augmentation=replace(whole, flip=True), **options)
    flipped = next(flipping.epoch(0)).x
    with Image.open(images.root / images.paths[0]) as picture:
        first = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    assert torch.equal(plain[:1], normalise(first, images.mean, images.std))
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, plain, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, plain, strict=True)]
    assert sum(mirrored) + sum(kept) == 8
    assert 0 < sum(mirrored) < 8


@pytest.mark.parametrize(
    "change", [{"smallest_area": 0}, {"smallest_area": 2}, {"largest_ratio": 0.5}]
)
def test_crop_settings_are_checked(change):
    with pytest.raises(ValueError, match="are out of range; pass an area in"):
        ResizedCrop(**change)


def test_pictures_in_memory_can_be_opened_from_bytes():
    from equipoise.data.pictures import open_picture, pixels

    buffer = BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(buffer, "PNG")
    assert pixels(open_picture(buffer.getvalue(), "it"))[:, 0, 0].tolist() == [1, 2, 3]
