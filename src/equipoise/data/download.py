"""Fetching the published files of a dataset, only when that is asked for."""

from __future__ import annotations

import os
import tarfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from equipoise.data.cifar_batches import CIFAR_FILES
from equipoise.data.files import checksum
from equipoise.data.svhn import SVHN_MD5

_PIECE = 2**20
_PATIENCE = 30.0  # seconds without a byte


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One published file.

    Args:
        url: Where it is published.
        md5: Published checksum.
        members: For a tar archive, the files to take out of it; empty to keep the file itself.
    """

    url: str
    md5: str
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File name."""
        return urlsplit(self.url).path.rpartition("/")[2]


def _cifar(name: str, archive: str, md5: str) -> tuple[Remote, ...]:
    """The archive of CIFAR-10 or CIFAR-100."""
    files = CIFAR_FILES[name]
    members = tuple(f"{files.folder}/{file}" for file in (*files.train, *files.test))
    return (Remote(url=f"https://www.cs.toronto.edu/~kriz/{archive}", md5=md5, members=members),)


_FASHION_HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
REMOTES: dict[str, Sequence[Remote]] = {
    "cifar10": _cifar("cifar10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    "cifar100": _cifar("cifar100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    "fashion_mnist": tuple(
        Remote(url=f"{_FASHION_HOME}{name}-ubyte.gz", md5=md5)
        for name, md5 in (
            ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310"),
        )
    ),
    "svhn": tuple(
        Remote(url=f"http://ufldl.stanford.edu/housenumbers/{name}", md5=md5)
        for name, md5 in SVHN_MD5.items()
    ),
}


def download(name: str, folder: Path, on_progress: Callable[[int, int], None] | None) -> None:
    """Fetches the files of a dataset into a folder.

    Contract: a file appears under its own name only when it is complete and its checksum is
    right; archives are removed once they are unpacked, and nothing of them is written but the
    expected files.

    Args:
        name: Of the dataset.
        folder: Made when it is missing.
        on_progress: Called with (bytes so far, bytes in all) of each file; 0 in all if unknown.

    Raises:
        ConnectionError: A file cannot be fetched.
        ValueError: The dataset cannot be downloaded, a checksum is wrong, or a file is missing
            in its archive.
    """
    if name not in REMOTES:
        raise ValueError(
            f"{name!r} cannot be downloaded; download=True works for {', '.join(REMOTES)}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for remote in REMOTES[name]:
        path = folder / remote.name
        if not path.is_file() or checksum(path, "md5") != remote.md5:
            _fetch(remote, path, on_progress)
        if remote.members:
            _unpack(path, remote.members, folder)
            path.unlink()


def _fetch(remote: Remote, path: Path, on_progress: Callable[[int, int], None] | None) -> None:
    """One file, checked before it gets its name."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        try:
            with (
                urllib.request.urlopen(remote.url, timeout=_PATIENCE) as source,
                partial.open("wb") as target,
            ):
                total = int(source.headers.get("Content-Length") or 0)
                while piece := source.read(_PIECE):
                    target.write(piece)
                    if on_progress is not None:
                        on_progress(target.tell(), total)
        except OSError as error:  # also URLError, timeouts and broken connections
            raise ConnectionError(
                f"{remote.url} could not be fetched ({error}); check the network, or fetch it "
                f"elsewhere and put it or its contents into {path.parent}."
            ) from error
        found = checksum(partial, "md5")
        if found != remote.md5:
            raise ValueError(
                f"{remote.url} gave a file with MD5 {found}, where {remote.md5} is published; "
                "try again later."
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    """Writes a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _unpack(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Writes the named files of a tar archive, and nothing else that it may hold."""
    try:
        with tarfile.open(archive) as tar:
            for name in members:
                source = tar.extractfile(name)
                if source is None:
                    raise KeyError(f"{name} is not a file")
                _replace(folder / name, source.read())
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{archive} is not the expected archive ({error}); delete it and try again."
        ) from error
