"""SVHN from small MATLAB files."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from equipoise.data.catalogue import describe
from equipoise.data.files import Request
from equipoise.data.svhn import SVHN_MD5, read_svhn


class Files:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
        for name in SVHN_MD5:
            self.write(name, X=self.images, y=np.array([[1], [9], [10], [2], [10]], np.uint8))
        info = replace(describe("svhn"), num_train=5, num_test=5)
        self.request = Request(info=info, cache_dir=folder / "cache")

    def write(self, name: str, **content) -> None:
        savemat(self.folder / name, content, do_compression=True)
        self.publish(name)

    def publish(self, name: str) -> None:
        content = (self.folder / name).read_bytes()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self.monkeypatch.setitem(SVHN_MD5, name, digest)

    def read(self):
        return read_svhn(self.folder, self.request)


@pytest.fixture
def files(tmp_path, monkeypatch) -> Files:
    return Files(tmp_path, monkeypatch)


def test_reads_both_splits_and_calls_ten_zero(files):
    data = files.read()
    assert data.train.labels.tolist() == [1, 9, 0, 2, 0]
    for row in range(5):
        assert np.array_equal(data.train.images[row], files.images[:, :, :, row].transpose(2, 0, 1))
    assert data.train.images.is_contiguous()
    content = (files.folder / "test_32x32.mat").read_bytes()
    assert data.test.checksums == {"test_32x32.mat": hashlib.sha256(content).hexdigest()}


def test_an_empty_folder_has_no_dataset(tmp_path):
    assert read_svhn(tmp_path, Request(info=describe("svhn"), cache_dir=tmp_path)) is None


def test_a_missing_file_is_named(files):
    (files.folder / "train_32x32.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_32x32.mat is missing in .* SVHN lie"):
        files.read()


def test_a_truncated_file_fails_its_checksum(files):
    path = files.folder / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"test_32x32.mat has MD5 .* is published; it is damaged"):
        files.read()


@pytest.mark.parametrize("damage", ["truncated", "text", "without labels", "floats"])
def test_contents_that_cannot_be_used(files, damage):
    name = "train_32x32.mat"
    path = files.folder / name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "text":
        path.write_bytes(b"not a matrix" * 50)
    elif damage == "without labels":
        files.write(name, X=files.images)
    else:
        files.write(name, X=files.images / 255, y=np.ones((5, 1)))
    files.publish(name)
    with pytest.raises(ValueError, match=f"{name} is not a MATLAB file with byte images X"):
        files.read()


def test_a_label_out_of_range(files):
    files.write("train_32x32.mat", X=files.images, y=np.array([[1], [2], [3], [4], [11]], np.uint8))
    with pytest.raises(ValueError, match=r"train_32x32.mat run from 1 to 11, where .0, 10. was"):
        files.read()


def test_wrong_numbers(files):
    files.write("train_32x32.mat", X=files.images, y=np.ones((4, 1), np.uint8))
    with pytest.raises(ValueError, match=r"train_32x32.mat has 4 images, where 5 were expected"):
        files.read()
    files.request = replace(files.request, info=replace(files.request.info, num_train=73_257))
    with pytest.raises(
        ValueError, match=r"train_32x32.mat has 5 images, where 73257 were expected"
    ):
        files.read()
