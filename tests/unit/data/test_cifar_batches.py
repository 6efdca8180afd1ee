"""CIFAR from small pickles in the original layout."""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equipoise.data import cifar_batches
from equipoise.data.catalogue import describe
from equipoise.data.cifar_batches import CIFAR_FILES, read_cifar_batches
from equipoise.data.files import Request

TRAIN = tuple(CIFAR_FILES["cifar10"].train)


class Files:
    """Pickles of four images each, whose contents count as the published ones."""

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.monkeypatch = name, monkeypatch
        self.original = CIFAR_FILES[name]
        self.root, self.folder = folder, folder / self.original.folder
        self.folder.mkdir()
        self.md5: dict[str, str] = {}
        random = np.random.default_rng(0)
        self.data, self.labels = {}, {}
        for file in (*self.original.train, *self.original.test):
            self.data[file] = random.integers(0, 256, (4, 3072), dtype=np.uint8)
            self.labels[file] = random.integers(0, 10, 4).tolist()
            self.publish(file, self.content(file))
        info = replace(describe(name), num_train=4 * len(self.original.train), num_test=4)
        self.request = Request(info=info, cache_dir=folder / "cache")

    def content(self, file: str, **changes) -> bytes:
        value = {
            "batch_label": "b",
            self.original.labels: self.labels[file],
            "data": self.data[file],
        }
        return pickle.dumps({**value, **changes}, protocol=2)

    def publish(self, file: str, content: bytes) -> None:
        (self.folder / file).write_bytes(content)
        self.md5[file] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        files = replace(
            self.original,
            train={key: self.md5.get(key, "") for key in self.original.train},
            test={key: self.md5.get(key, "") for key in self.original.test},
        )
        self.monkeypatch.setitem(CIFAR_FILES, self.name, files)

    def read(self):
        return read_cifar_batches(self.root, self.request)


@pytest.fixture
def files(tmp_path, monkeypatch) -> Files:
    return Files("cifar10", tmp_path, monkeypatch)


def test_reads_the_batches_in_order(files):
    data = files.read()
    expected = np.concatenate([files.data[name] for name in TRAIN]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images, expected)
    assert data.train.labels.tolist() == [label for name in TRAIN for label in files.labels[name]]
    assert np.array_equal(data.test.images.flatten(1), files.data["test_batch"])
    assert tuple(data.train.checksums) == TRAIN
    digest = hashlib.sha256((files.folder / "test_batch").read_bytes()).hexdigest()
    assert data.test.checksums == {"test_batch": digest}


def test_the_folder_itself_may_be_given(files):
    assert len(read_cifar_batches(files.folder, files.request).train) == 20


def test_cifar100_uses_the_fine_labels(tmp_path, monkeypatch):
    files = Files("cifar100", tmp_path, monkeypatch)
    files.publish("train", files.content("train", coarse_labels=[0] * 4, fine_labels=[99, 1, 2, 3]))
    data = files.read()
    assert data.train.labels.tolist() == [99, 1, 2, 3]
    assert data.train.classes[99] == "worm"
    assert len(data.test) == 4


def test_folders_called_train_and_test_are_no_batches(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    request = Request(info=describe("cifar100"), cache_dir=tmp_path)
    assert read_cifar_batches(tmp_path, request) is None


def test_a_pickle_of_python_2_is_read(files):
    """Protocol 2 as written by Python 2: byte strings (opcodes U and T) instead of text."""
    data, labels = files.data["test_batch"], files.labels["test_batch"]
    content = (
        b"\x80\x02}(U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        b"U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x04M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + (4 * 3072).to_bytes(4, "little") + data.tobytes() + b"tbu."
    )
    files.publish("test_batch", content)
    test = files.read().test
    assert np.array_equal(test.images.flatten(1), data)
    assert test.labels.tolist() == labels


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


class HarmfulEncoding:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, ("text", "rot13")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Harmful(), "names (posix|nt).mkdir, which is not allowed"),
        (HarmfulEncoding(), "names the encoding 'rot13'"),
        (np.float64, "names numpy.float64, which is not allowed"),
        (print, "names __builtin__.print, which is not allowed"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused(files, value, reason, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    files.publish("test_batch", files.content("test_batch", extra=value))
    with pytest.raises(ValueError, match=f"test_batch is not a batch of CIFAR-10 .it {reason}"):
        files.read()
    assert not Path("made-by-a-pickle").exists()


def test_a_file_is_not_unpickled_before_its_checksum_is_right(files, monkeypatch):
    path = files.folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(cifar_batches, "_ArrayUnpickler", None)
    files.monkeypatch.setattr(cifar_batches, "_read_batch", lambda *_: pytest.fail("unpickled"))
    monkeypatch.setitem(
        CIFAR_FILES,
        "cifar10",
        replace(CIFAR_FILES["cifar10"], train={"data_batch_3": files.md5["data_batch_3"]}),
    )
    with pytest.raises(ValueError, match=r"data_batch_3 has MD5 \w+, where \w+ is published"):
        files.read()


def test_a_missing_batch_is_named(files):
    (files.folder / "data_batch_4").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"data_batch_4 is missing in .*cifar-10-batches-py"
    ):
        files.read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 2, 10]}, "run from 0 to 10, where .0, 10. was expected"),
        ({"labels": [0, 1, 2]}, "has 3 images, where 4 were expected"),
        ({"data": np.zeros((4, 3000), np.uint8)}, "is not a batch of CIFAR-10"),
        ({"data": None}, "is not a batch of CIFAR-10"),
    ],
)
def test_wrong_contents(files, changes, message):
    files.publish("data_batch_1", files.content("data_batch_1", **changes))
    with pytest.raises(ValueError, match=f"data_batch_1 {message}"):
        files.read()


def test_a_pickle_without_labels(files):
    files.publish("test_batch", pickle.dumps({"data": files.data["test_batch"]}, protocol=2))
    with pytest.raises(ValueError, match=r"test_batch is not a batch of CIFAR-10 .'labels'."):
        files.read()


def test_a_truncated_pickle(files):
    files.publish("test_batch", files.content("test_batch")[:-5])
    with pytest.raises(ValueError, match="test_batch is not a batch of CIFAR-10"):
        files.read()


def test_a_wrong_number_of_images(files):
    files.request = replace(files.request, info=replace(files.request.info, num_test=5))
    with pytest.raises(ValueError, match="has 4 images, where 5 were expected"):
        files.read()
