"""Fetching archives, from a server on this machine only."""

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from equipoise.data import catalogue, load_dataset
from equipoise.data.cifar_batches import CIFAR_FILES
from equipoise.data.download import REMOTES, Remote, download


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Archive:
    """A small CIFAR-10 archive, whose contents count as the published ones."""

    def __init__(self, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        files = CIFAR_FILES["cifar10"]
        contents = {
            name: pickle.dumps(
                {"data": np.full((2, 3072), value, np.uint8), "labels": [value, 0]}, protocol=2
            )
            for value, name in enumerate((*files.train, *files.test))
        }
        self.members = {f"{files.folder}/{name}": value for name, value in contents.items()}
        self.path, self.address, self.monkeypatch = folder / "small.tar.gz", address, monkeypatch
        self.pack(self.members)
        small = replace(
            files,
            train={name: md5(contents[name]) for name in files.train},
            test={name: md5(contents[name]) for name in files.test},
        )
        monkeypatch.setitem(CIFAR_FILES, "cifar10", small)
        info = replace(catalogue.describe("cifar10"), num_train=10, num_test=2)
        monkeypatch.setitem(catalogue._BY_NAME, "cifar10", info)

    def pack(self, members: dict[str, bytes], links: dict[str, str] | None = None) -> None:
        with tarfile.open(self.path, "w:gz") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for name, target in (links or {}).items():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, target
                tar.addfile(member)
        self.publish(md5(self.path.read_bytes()))

    def publish(self, digest: str, name: str = "small.tar.gz") -> None:
        remote = Remote(url=f"{self.address}/{name}", md5=digest, members=tuple(self.members))
        self.monkeypatch.setitem(REMOTES, "cifar10", (remote,))


@pytest.fixture
def archive(served, monkeypatch) -> Archive:
    folder, address = served
    return Archive(folder, address, monkeypatch)


def files_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_an_archive_is_fetched_unpacked_and_read(archive, tmp_path):
    calls: list[tuple[int, int]] = []
    options = {"data_dir": tmp_path / "here", "cache_dir": tmp_path / "cache"}
    data = load_dataset(
        "cifar10", download=True, on_progress=lambda *both: calls.append(both), **options
    )
    assert data.train.labels.tolist() == [0, 0, 1, 0, 2, 0, 3, 0, 4, 0]
    assert data.test.images.unique().tolist() == [5]
    size = archive.path.stat().st_size
    assert calls[-1] == (size, size)
    assert files_below(tmp_path / "here" / "cifar10") == sorted(archive.members)
    archive.publish("nothing is fetched again", "gone")
    assert len(load_dataset("cifar10", download=True, **options).train) == 10


def test_without_a_data_folder_the_cache_takes_it(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EQUIPOISE_DATA", raising=False)
    with pytest.raises(FileNotFoundError):
        load_dataset("cifar10", cache_dir=tmp_path / "cache")
    load_dataset("cifar10", cache_dir=tmp_path / "cache", download=True)
    assert (tmp_path / "cache" / "data" / "cifar10" / "cifar-10-batches-py").is_dir()


def test_an_incomplete_set_is_completed(archive, tmp_path):
    options = {"data_dir": tmp_path / "here", "cache_dir": tmp_path / "cache"}
    load_dataset("cifar10", download=True, **options)
    (tmp_path / "here" / "cifar10" / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_2 is missing"):
        load_dataset("cifar10", **options)
    assert len(load_dataset("cifar10", download=True, **options).train) == 10


def test_single_files_are_kept_and_not_fetched_twice(served, tmp_path, monkeypatch):
    folder, address = served
    (folder / "a.bin").write_bytes(b"first")
    remote = Remote(url=f"{address}/a.bin", md5=md5(b"first"))
    monkeypatch.setitem(REMOTES, "svhn", (remote,))
    download("svhn", tmp_path / "here", None)
    assert (tmp_path / "here" / "a.bin").read_bytes() == b"first"
    (folder / "a.bin").unlink()
    download("svhn", tmp_path / "here", None)


def test_a_wrong_checksum_leaves_nothing_behind(archive, tmp_path):
    archive.publish("0" * 32)
    with pytest.raises(ValueError, match=r"small.tar.gz gave a file with MD5 \w+, where 0000"):
        download("cifar10", tmp_path / "here", None)
    assert files_below(tmp_path / "here") == []


def test_a_missing_page_is_one_sentence(archive, tmp_path):
    archive.publish("", "gone.tar.gz")
    with pytest.raises(ConnectionError, match=r"gone.tar.gz could not be fetched .*404.*; check"):
        download("cifar10", tmp_path / "here", None)
    assert files_below(tmp_path / "here") == []


def test_no_network_is_one_sentence(archive, tmp_path):
    archive.address = "http://127.0.0.1:1"
    archive.publish("")
    with pytest.raises(ConnectionError, match=r"could not be fetched .*refused.*; check the netwo"):
        load_dataset("cifar10", data_dir=tmp_path, cache_dir=tmp_path, download=True)


def test_a_broken_connection_is_noticed(served, tmp_path, monkeypatch):
    """The server announces more than it sends."""
    _, address = served

    def send_half(self: QuietHandler) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"half")

    monkeypatch.setattr(QuietHandler, "do_GET", send_half)
    monkeypatch.setitem(REMOTES, "svhn", (Remote(url=f"{address}/a.mat", md5=md5(b"whole")),))
    with pytest.raises((ValueError, ConnectionError), match=r"a.mat (gave|could not)"):
        download("svhn", tmp_path / "here", None)
    assert files_below(tmp_path / "here") == []


def test_only_the_expected_files_are_taken_out(archive, tmp_path):
    outside = {"../outside": b"x", "/tmp/equipoise-outside": b"x", "cifar-10-batches-py/more": b"x"}
    archive.pack({**archive.members, **outside})
    download("cifar10", tmp_path / "here", None)
    assert files_below(tmp_path / "here") == sorted(archive.members)
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/equipoise-outside").exists()


def test_a_link_out_of_the_archive_is_not_followed(archive, tmp_path):
    name = "cifar-10-batches-py/test_batch"
    members = {key: value for key, value in archive.members.items() if key != name}
    archive.pack(members, links={name: "/etc/hostname"})
    with pytest.raises(ValueError, match=r"small.tar.gz is not the expected archive"):
        download("cifar10", tmp_path / "here", None)


def test_an_archive_without_an_expected_file(archive, tmp_path):
    archive.pack({"cifar-10-batches-py/readme.html": b""})
    with pytest.raises(ValueError, match=r"is not the expected archive .*data_batch_1' not found"):
        download("cifar10", tmp_path / "here", None)


def test_what_cannot_be_downloaded(tmp_path):
    with pytest.raises(
        ValueError, match=r"'image_folder' cannot be downloaded; .* cifar10, cifar1"
    ):
        load_dataset("image_folder", data_dir=tmp_path, download=True, image_size=8)


def test_the_published_addresses_match_the_catalogue():
    assert set(REMOTES) == {
        name for name in catalogue.dataset_names() if catalogue.describe(name).downloadable
    }
    for remotes in REMOTES.values():
        for remote in remotes:
            assert len(remote.md5) == 32
            assert remote.name
