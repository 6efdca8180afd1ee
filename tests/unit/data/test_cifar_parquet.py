"""CIFAR from small Parquet files, and the cache of what was decoded."""

import hashlib
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from equipoise.data.catalogue import describe
from equipoise.data.cifar_parquet import read_cifar_parquet
from equipoise.data.files import Request


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, kind, **options)
    return buffer.getvalue()


def random_images(num: int, seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 3, size, size), dtype=np.uint8)


def write(path: Path, images, labels, *, column: str = "label", kind: str = "PNG") -> None:
    encoded = [image if isinstance(image, bytes) else encode(image, kind=kind) for image in images]
    pictures = [{"bytes": source, "path": f"{row}.png"} for row, source in enumerate(encoded)]
    pq.write_table(pa.table({"img": pictures, column: pa.array(labels, pa.int64())}), path)


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train, self.test = random_images(7, 0), random_images(3, 1)
        self.train_labels, self.test_labels = [6, 9, 9, 4, 1, 1, 2], [3, 8, 8]
        self.first = folder / "train-00000-of-00002.parquet"
        self.second = folder / "train-00001-of-00002.parquet"
        write(self.first, self.train[:4], self.train_labels[:4])
        write(self.second, self.train[4:], self.train_labels[4:], kind="WEBP")
        write(folder / "test-00000-of-00001.parquet", self.test, self.test_labels)
        self.progress: list[tuple[int, int]] = []
        self.request = Request(
            info=replace(describe("cifar10"), num_train=7, num_test=3),
            cache_dir=folder / "cache",
            on_progress=lambda done, total: self.progress.append((done, total)),
        )

    def read(self):
        return read_cifar_parquet(self.folder, self.request)

    def cached(self) -> list[Path]:
        return sorted((self.folder / "cache").iterdir())


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


def check(files: Files, data) -> None:
    assert np.array_equal(data.train.images, files.train)
    assert np.array_equal(data.test.images, files.test)
    assert data.train.labels.tolist() == files.train_labels
    assert data.test.labels.tolist() == files.test_labels


def test_reads_all_shards_in_order_png_and_webp(files):
    data = files.read()
    check(files, data)
    digest = hashlib.sha256(files.first.read_bytes()).hexdigest()
    assert data.train.checksums[files.first.name] == digest
    assert set(data.train.checksums) == {files.first.name, files.second.name}
    assert data.train.images.dtype.is_floating_point is False


def test_progress_counts_images_over_all_shards(files):
    files.read()
    assert files.progress == [(4, 7), (7, 7), (3, 3)]


@pytest.mark.parametrize("subfolder", ["plain_text", "data"])
def test_subfolders_of_the_hub_are_known(tmp_path, subfolder):
    (tmp_path / subfolder).mkdir()
    files = Files(tmp_path / subfolder)
    check(files, read_cifar_parquet(tmp_path, files.request))


def test_cifar100_has_its_own_column(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        write(path, random_images(2, seed), [99, 0], column="fine_label")
    info = replace(describe("cifar100"), num_train=2, num_test=2)
    data = read_cifar_parquet(tmp_path, Request(info=info, cache_dir=tmp_path / "cache"))
    assert data.train.labels.tolist() == [99, 0]


def test_an_empty_folder_has_no_dataset(tmp_path):
    request = Request(info=describe("cifar10"), cache_dir=tmp_path)
    assert read_cifar_parquet(tmp_path, request) is None


# The cache.


def test_the_second_reading_decodes_nothing(files, monkeypatch):
    files.read()
    assert len(files.cached()) == 2
    files.progress.clear()
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    check(files, files.read())
    assert files.progress == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "other", "not even a zip"])
def test_a_damaged_cache_is_made_again_without_a_word(files, damage):
    files.read()
    for path in files.cached():
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 1
        path.write_bytes(
            {
                "truncated": bytes(content[: len(content) // 2]),
                "empty": b"",
                "flipped": bytes(content),
                "other": b"\x93NUMPY",
                "not even a zip": b"hello" * 100,
            }[damage]
        )
    files.progress.clear()
    check(files, files.read())
    assert files.progress[-1] == (3, 3)
    files.progress.clear()
    check(files, files.read())
    assert files.progress == []


def test_changed_files_are_decoded_anew(files):
    files.read()
    files.train_labels[0] = 0
    write(files.first, files.train[:4], files.train_labels[:4])
    check(files, files.read())


def test_no_partial_file_stays_when_decoding_fails(files):
    write(files.second, [b"nothing"] * 3, [0, 1, 2])
    with pytest.raises(ValueError, match="cannot be decoded"):
        files.read()
    assert not (files.folder / "cache").exists()


def test_a_cache_that_cannot_be_written_costs_time_only(files):
    (files.folder / "cache").write_text("a file, where a folder is needed")
    with pytest.warns(UserWarning, match="could not be kept in .*cache .*; set EQUIPOISE_CACHE"):
        check(files, files.read())


# What can be wrong with the files.


def test_a_missing_shard(files):
    files.second.unlink()
    with pytest.raises(FileNotFoundError, match=r"has 1 of the 2 files train\*.parquet"):
        files.read()


def test_a_missing_split(files):
    (files.folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"has 0 of the 1 files test\*.parquet"):
        files.read()


def test_a_truncated_file(files):
    files.first.write_bytes(files.first.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{files.first.name} is not a complete Parquet file"):
        files.read()


def test_a_file_with_damaged_pages(files):
    content = bytearray(files.first.read_bytes())
    content[4:2000] = bytes(1996)
    files.first.write_bytes(content)
    with pytest.raises(ValueError, match=f"{files.first.name} cannot be (read|decoded)"):
        files.read()


def test_a_damaged_picture_is_named(files):
    sources = [encode(image) for image in files.train[4:]]
    write(files.second, [sources[0], sources[1][:60], sources[2]], [0, 1, 2])
    with pytest.raises(ValueError, match=f"Image 5 of .*{files.second.name} cannot be decoded"):
        files.read()


def test_a_picture_of_another_size(files):
    write(files.second, random_images(3, 0, size=16), [0, 1, 2])
    with pytest.raises(ValueError, match=r"Image 4 .* has 16 x 16 pixels, where 32 x 32 were exp"):
        files.read()


def test_a_label_out_of_range(files):
    write(files.second, files.train[4:], [0, 1, 10])
    with pytest.raises(ValueError, match=f"{files.second.name} run from 0 to 10, where .0, 10."):
        files.read()


def test_the_columns_of_another_dataset(files):
    write(files.first, files.train[:4], [0, 1, 2, 3], column="fine_label")
    with pytest.raises(ValueError, match="has the columns img, fine_label, where img and label we"):
        files.read()


def test_a_wrong_number_of_images(files):
    files.request = replace(files.request, info=replace(files.request.info, num_train=50_000))
    with pytest.raises(ValueError, match=r"train\*.parquet has 7 images, where 50000 were expecte"):
        files.read()


@pytest.mark.parametrize(("module", "package"), [("pyarrow.parquet", "pyarrow"), ("PIL", "PIL")])
def test_a_missing_package_is_named(files, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    if module == "PIL":
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(
        ModuleNotFoundError, match=rf'needs {package}, .* run: pip install "equipoise\[data\]"'
    ):
        files.read()
