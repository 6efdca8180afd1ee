"""Finding datasets by name; the digits, which need no files."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.data import catalogue, describe, load_dataset
from equipoise.data import idx as idx_module
from equipoise.data.places import cache_folder, candidate_folders, data_roots


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home and working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("EQUIPOISE_DATA", "EQUIPOISE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def fashion(monkeypatch):
    """Writes a tiny Fashion-MNIST whose first label is the argument."""
    monkeypatch.setattr(idx_module, "require_md5", lambda *_: None)
    info = replace(describe("fashion_mnist"), num_train=1, num_test=1)
    monkeypatch.setitem(catalogue._BY_NAME, "fashion_mnist", info)

    def write(folder: Path, label: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in idx_module.FASHION_MNIST_MD5:
            shape = (1, 28, 28) if "images" in name else (1,)
            header = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
            content = np.full(shape, label, np.uint8).tobytes()
            (folder / name).write_bytes(header + content)

    return write


def first_label(**options) -> int:
    return int(load_dataset("fashion_mnist", **options).train.labels[0])


def test_digits_need_no_files(home):
    data = load_dataset("digits")
    assert data.train.images.shape == (1442, 1, 8, 8)
    assert data.test.images.shape == (355, 1, 8, 8)
    assert data.train.images.max() == 255
    assert list(home.iterdir()) == []


def test_the_split_of_the_digits_is_stratified_and_fixed():
    data, info = load_dataset("digits"), describe("digits")
    train, test = (part.labels.bincount(minlength=10) for part in (data.train, data.test))
    share = test / (train + test)
    assert (share - 0.2).abs().max() < 0.01
    assert data.test.labels[:6].tolist() == [8, 2, 8, 0, 9, 5]
    assert (len(data.train), len(data.test)) == (info.num_train, info.num_test)
    pixels = data.train.images.double() / 255
    assert abs(float(pixels.mean()) - info.mean[0]) < 1e-4
    assert abs(float(pixels.std()) - info.std[0]) < 1e-4


def test_digits_can_be_reduced():
    assert load_dataset("digits", image_size=4).test.images.shape == (355, 1, 4, 4)
    with pytest.raises(ValueError, match="image_size=5 does not divide the 8 x 8 pixels"):
        load_dataset("digits", image_size=5)


@pytest.mark.parametrize("place", ["data/fashion_mnist", "data/fashion-mnist", "data"])
def test_usual_places_and_spellings(home, fashion, place):
    fashion(home / place, 3)
    assert first_label() == 3


def test_home_and_cache_are_usual_places(home, fashion):
    fashion(home / ".cache" / "equipoise" / "data" / "fashion_mnist", 4)
    assert first_label() == 4


def test_the_variable_comes_before_the_usual_places_and_the_argument_before_all(
    home, fashion, monkeypatch
):
    fashion(home / "data", 1)
    fashion(home / "named", 2)
    fashion(home / "given", 3)
    monkeypatch.setenv("EQUIPOISE_DATA", str(home / "named"))
    assert first_label() == 2
    assert first_label(data_dir=home / "given") == 3
    assert first_label(data_dir=str(home / "given")) == 3
    monkeypatch.setenv("EQUIPOISE_DATA", str(home / "absent"))
    assert first_label() == 1


def test_a_folder_of_its_own_name_comes_first(home, fashion):
    fashion(home / "data", 1)
    fashion(home / "data" / "fashion_mnist", 2)
    assert first_label() == 2


def test_a_given_folder_is_the_only_one(home, fashion):
    fashion(home / "data", 1)
    (home / "given").mkdir()
    with pytest.raises(FileNotFoundError, match="Fashion-MNIST was not found"):
        first_label(data_dir=home / "given")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion_mnist"])
def test_what_is_missing_is_said_in_one_sentence(home, name):
    info = describe(name)
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name, data_dir=home / "nowhere")
    message = str(caught.value)
    assert message.startswith(f"{info.title} was not found: looked for {info.files} in ")
    assert str(home / "nowhere") in message
    assert f"pass download=True (--download) to fetch them, or get them from {info.home}" in message
    assert message.endswith("or set EQUIPOISE_DATA to it.")


def test_all_places_are_named_when_none_is_given(home, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DATA", "~/mine")
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("cifar10")
    for place in (home / "mine", home / ".cache/equipoise/data", home / "data"):
        assert str(place) in str(caught.value)


def test_a_missing_image_folder_offers_no_download(home):
    with pytest.raises(FileNotFoundError, match="An image folder was not found") as caught:
        load_dataset("image_folder", image_size=8)
    assert "download" not in str(caught.value)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="no dataset 'cifar11'; did you mean 'cifar10'"):
        load_dataset("cifar11")


def test_the_cache_folder(home, monkeypatch):
    assert cache_folder(None) == home / ".cache" / "equipoise"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert cache_folder(None) == home / "xdg" / "equipoise"
    monkeypatch.setenv("EQUIPOISE_CACHE", "~/mine")
    assert cache_folder(None) == home / "mine"
    assert cache_folder("~/given") == home / "given"


def test_candidates_exist(home):
    (home / "data" / "cifar10").mkdir(parents=True)
    roots = data_roots(None, home / "cache")
    assert candidate_folders(describe("cifar10"), roots)[:2] == [Path("data/cifar10"), Path("data")]


def test_nothing_global_is_drawn_while_loading():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load_dataset("digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
