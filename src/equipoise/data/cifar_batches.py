"""CIFAR-10 and CIFAR-100 as their author publishes them: pickles of Python 2."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.data.files import (
    Bytes,
    Labels,
    Request,
    checksum,
    image_set,
    require_count,
    require_files,
    require_md5,
)
from equipoise.data.images import Dataset, ImageSet, check_labels


@dataclass(frozen=True, kw_only=True)
class CifarFiles:
    """The original files of one dataset.

    Args:
        folder: The folder that the published archive unpacks to.
        train: File name to published MD5, in order.
        test: File name to published MD5.
        labels: Key of the labels in the pickles.
    """

    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    labels: str


CIFAR_FILES = {
    "cifar10": CifarFiles(
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        labels="labels",
    ),
    "cifar100": CifarFiles(
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        labels="fine_labels",
    ),
}


def read_cifar_batches(folder: Path, request: Request) -> Dataset | None:
    """Both splits from the original pickles; None where `folder` has none of them."""
    files = CIFAR_FILES[request.info.name]
    names = (*files.train, *files.test)
    for place in (folder / files.folder, folder):
        if any((place / name).is_file() for name in names):
            require_files((place / name for name in names), request.info)
            return Dataset(
                _split(place, files.train, files.labels, request.info.num_train, request),
                _split(place, files.test, files.labels, request.info.num_test, request),
            )
    return None


def _split(
    place: Path, names: Mapping[str, str], label_key: str, count: int | None, request: Request
) -> ImageSet:
    """One split, its files in the published order."""
    parts: list[tuple[Bytes, Labels]] = []
    checksums = {}
    for name, md5 in names.items():
        path = place / name
        require_md5(checksum(path, "md5"), md5, path)
        checksums[name] = checksum(path)
        parts.append(_read_batch(path, label_key, request))
    images = np.concatenate([part[0] for part in parts])
    require_count(len(images), count, place)
    return image_set(request.info, images, np.concatenate([part[1] for part in parts]), checksums)


def _read_batch(path: Path, label_key: str, request: Request) -> tuple[Bytes, Labels]:
    """Images and labels of one pickle."""
    size = request.info.image_size
    assert size is not None
    try:
        with path.open("rb") as file:
            content: Any = _ArrayUnpickler(file, encoding="latin1").load()
        images = np.asarray(content["data"], np.uint8).reshape(-1, 3, size, size)
        labels = np.asarray(content[label_key], np.int64)
    except Exception as error:  # a pickle raises whatever its bytes lead to
        raise ValueError(
            f"{path} is not a batch of {request.info.title} ({error}); delete it and fetch it "
            "again."
        ) from error
    require_count(len(labels), len(images), path)
    check_labels(torch.from_numpy(labels), len(request.info.classes), path)
    return images, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds arrays, lists, strings and numbers; any other object is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """The few things that the pickle of an array names."""
        if name == "_reconstruct" and module in {
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        }:
            return np.zeros(0).__reduce__()[0]  # that function, wherever this NumPy keeps it
        if module == "numpy" and name in {"ndarray", "dtype"}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed")


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into old pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it names the encoding {encoding!r}")
    return text.encode("latin1")
