"""Fashion-MNIST from small IDX files."""

import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equipoise.data.catalogue import describe
from equipoise.data.files import Request
from equipoise.data.idx import FASHION_MNIST_MD5, parse_idx, read_fashion_mnist

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def encode(array: np.ndarray) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + shape + array.astype(np.uint8).tobytes()


class Files:
    """The four files, whose contents count as the published ones."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        random = np.random.default_rng(0)
        self.arrays = {
            name: random.integers(0, 256, (6 if name[0] == "t" and name[1] == "r" else 4, 28, 28))
            if "images" in name
            else random.integers(0, 10, 6 if name.startswith("train") else 4)
            for name in FASHION_MNIST_MD5
        }
        for name, array in self.arrays.items():
            self.publish(name, encode(array))
        info = replace(describe("fashion_mnist"), num_train=6, num_test=4)
        self.request = Request(info=info, cache_dir=folder / "cache")

    def publish(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self.monkeypatch.setitem(FASHION_MNIST_MD5, name, digest)

    def read(self):
        return read_fashion_mnist(self.folder, self.request)

    def compress(self, name: str) -> Path:
        path = self.folder / f"{name}.gz"
        path.write_bytes(gzip.compress((self.folder / name).read_bytes()))
        (self.folder / name).unlink()
        return path


@pytest.fixture
def files(tmp_path, monkeypatch) -> Files:
    return Files(tmp_path, monkeypatch)


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_plain_and_gzipped_files(files, compressed):
    if compressed:
        for name in FASHION_MNIST_MD5:
            files.compress(name)
    data = files.read()
    assert np.array_equal(data.train.images[:, 0], files.arrays[IMAGES])
    assert np.array_equal(data.train.labels, files.arrays[LABELS])
    assert np.array_equal(data.test.images[:, 0], files.arrays["t10k-images-idx3-ubyte"])
    assert data.test.labels.tolist() == files.arrays["t10k-labels-idx1-ubyte"].tolist()
    assert data.train.images.shape == (6, 1, 28, 28)
    assert data.train.classes[9] == "ankle_boot"
    suffix = ".gz" if compressed else ""
    name = IMAGES + suffix
    digest = hashlib.sha256((files.folder / name).read_bytes()).hexdigest()
    assert data.train.checksums[name] == digest
    assert set(data.train.checksums) == {name, LABELS + suffix}


def test_an_empty_folder_has_no_dataset(tmp_path):
    request = Request(info=describe("fashion_mnist"), cache_dir=tmp_path)
    assert read_fashion_mnist(tmp_path, request) is None


def test_a_missing_file_is_named(files):
    (files.folder / LABELS).unlink()
    with pytest.raises(FileNotFoundError, match=f"{LABELS} .plain or .gz. is missing in "):
        files.read()


def test_a_truncated_gzip_file(files):
    path = files.compress(IMAGES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{IMAGES}.gz is not a complete gzip file"):
        files.read()


def test_a_corrupt_gzip_file(files):
    path = files.compress(IMAGES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="delete it and fetch it again"):
        files.read()


def test_something_else_with_the_suffix_of_gzip(files):
    files.compress(IMAGES).write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="is not a complete gzip file"):
        files.read()


def test_a_wrong_magic_number(files):
    files.publish(IMAGES, encode(np.zeros((2, 3))))
    with pytest.raises(
        ValueError, match=f"{IMAGES} starts with the bytes 00000802, where 00000803 marks an IDX"
    ):
        files.read()


def test_a_truncated_plain_file(files):
    content = (files.folder / IMAGES).read_bytes()
    (files.folder / IMAGES).write_bytes(content[:-1])
    with pytest.raises(ValueError, match="holds 4703 bytes of data, where its header announces 47"):
        files.read()


def test_a_file_that_ends_in_its_header():
    with pytest.raises(ValueError, match="name ends within its header"):
        parse_idx(bytes((0, 0, 8, 3, 0, 0)), 3, Path("name"))


def test_a_changed_pixel_is_noticed_by_the_checksum(files):
    content = bytearray((files.folder / IMAGES).read_bytes())
    content[-1] ^= 1
    (files.folder / IMAGES).write_bytes(content)
    with pytest.raises(ValueError, match=f"{IMAGES} has MD5 .* is published; it is damaged"):
        files.read()


def test_a_label_out_of_range(files):
    files.publish(LABELS, encode(np.array([0, 1, 2, 3, 4, 10])))
    with pytest.raises(ValueError, match=f"{LABELS} run from 0 to 10, where .0, 10. was expected"):
        files.read()


def test_unequal_numbers_of_images_and_labels(files):
    files.publish(LABELS, encode(np.arange(5)))
    with pytest.raises(ValueError, match=f"{LABELS} has 5 images, where 6 were expected"):
        files.read()


def test_a_wrong_number_of_images(files):
    files.request = replace(files.request, info=replace(files.request.info, num_train=7))
    with pytest.raises(ValueError, match=f"{IMAGES} has 6 images, where 7 were expected"):
        files.read()
