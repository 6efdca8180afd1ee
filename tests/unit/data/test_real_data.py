"""The published files themselves, where this machine has them."""

import hashlib
import os
import struct
from pathlib import Path

import pytest
import torch

from equipoise.data import Dataset, ImageLoader, dataset_names, load_dataset
from equipoise.data.catalogue import describe
from equipoise.data.cifar_batches import CIFAR_FILES, _read_batch
from equipoise.data.files import Request

pytestmark = pytest.mark.data
REPOSITORY = Path(__file__).parents[3]


def load(name: str, request: pytest.FixtureRequest) -> Dataset:
    """The dataset from EQUIPOISE_DATA, the usual places, or a data folder beside the repository."""
    beside = sorted(REPOSITORY.parent.glob("*/data"))
    cache = request.config.cache.mkdir("equipoise")  # kept between test runs
    reasons = []
    for folder in (None, *beside):
        try:
            return load_dataset(name, data_dir=folder, cache_dir=cache)
        except (FileNotFoundError, ModuleNotFoundError) as error:
            reasons.append(str(error))
    pytest.skip(reasons[0])


@pytest.fixture(scope="module")
def cifar10(request) -> Dataset:
    return load("cifar10", request)


def test_cifar10_is_complete_and_in_the_published_order(cifar10):
    for images, count in ((cifar10.train, 50_000), (cifar10.test, 10_000)):
        assert images.images.shape == (count, 3, 32, 32)
        assert images.images.dtype == torch.uint8
        assert images.labels.bincount().tolist() == [count // 10] * 10
        assert images.checksums
    assert cifar10.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert cifar10.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]


def test_the_usual_validation_split_of_cifar10(cifar10):
    train, validation = cifar10.train.split(0.1)
    assert (len(train), len(validation)) == (45_000, 5_000)
    assert len(ImageLoader(train, batch_size=128)) == 352


def test_the_mean_of_cifar10_is_the_constant(cifar10):
    mean = cifar10.train.images.double().mean((0, 2, 3)) / 255
    assert (mean - torch.tensor(cifar10.train.mean)).abs().max() < 1e-3


def batch_as_published(data: Dataset, names: list[bytes]) -> bytes:
    """The first 10,000 training images as the pickle of Python 2 that was published."""
    memo = 0
    out = bytearray()

    def remember() -> None:
        nonlocal memo
        memo += 1
        out.extend(b"q" + bytes([memo]) if memo < 256 else b"r" + struct.pack("<I", memo))

    def text(value: bytes) -> None:
        out.extend(b"U" + bytes([len(value)]) + value)
        remember()

    def listed(items, write) -> None:
        out.extend(b"]")
        remember()
        for start in range(0, len(items), 1000):
            out.extend(b"(")
            for item in items[start : start + 1000]:
                write(item)
            out.extend(b"e")

    out.extend(b"\x80\x02}")
    remember()
    out.extend(b"(")
    text(b"batch_label")
    text(b"training batch 1 of 5")
    text(b"labels")
    listed(data.train.labels[:10_000].tolist(), lambda label: out.extend(b"K" + bytes([label])))
    text(b"data")
    for named in (b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"):
        out.extend(named)
        remember()
    out.extend(b"K\x00\x85U\x01b\x87R")
    remember()
    out.extend(b"(K\x01M\x10'M\x00\x0c\x86cnumpy\ndtype\n")
    remember()
    out.extend(b"U\x02u1K\x00K\x01\x87R")
    remember()
    out.extend(b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T")
    out.extend(struct.pack("<I", 30_720_000) + data.train.images[:10_000].numpy().tobytes() + b"tb")
    text(b"filenames")
    listed(names, text)
    out.extend(b"u.")
    return bytes(out)


def picture_names(checksums) -> list[bytes]:
    """The original file names, which the Parquet files keep beside the pictures."""
    parquet = pytest.importorskip("pyarrow.parquet")
    first = sorted(checksums)[0]
    roots = (
        os.environ.get("EQUIPOISE_DATA"),
        REPOSITORY / "data",
        *REPOSITORY.parent.glob("*/data"),
    )
    for root in roots:
        for path in Path(root or REPOSITORY).glob(f"**/{first}") if root else ():
            if hashlib.sha256(path.read_bytes()).hexdigest() == checksums[first]:
                rows = parquet.read_table(path, columns=["img"]).column("img").to_pylist()
                return [row["path"].encode() for row in rows[:10_000]]
    pytest.skip("the file names of the pictures are in Parquet files only")


def test_the_first_batch_is_bit_for_bit_the_published_one(cifar10, tmp_path):
    content = batch_as_published(cifar10, picture_names(cifar10.train.checksums))
    published = CIFAR_FILES["cifar10"].train["data_batch_1"]
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == published
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    request = Request(info=describe("cifar10"), cache_dir=tmp_path)
    images, labels = _read_batch(path, "labels", request)
    assert torch.equal(torch.from_numpy(images), cifar10.train.images[:10_000])
    assert torch.equal(torch.from_numpy(labels), cifar10.train.labels[:10_000])


@pytest.mark.parametrize("name", [name for name in dataset_names() if describe(name).downloadable])
def test_whatever_is_here_agrees_with_the_catalogue(name, request):
    data, info = load(name, request), describe(name)
    assert (len(data.train), len(data.test)) == (info.num_train, info.num_test)
    assert data.train.images.shape[1:] == (info.channels, info.image_size, info.image_size)
    mean = data.train.images.double().mean((0, 2, 3)) / 255
    assert (mean - torch.tensor(info.mean)).abs().max() < 1e-3
