"""One function that finds and reads a dataset by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from equipoise.data.catalogue import describe
from equipoise.data.cifar_batches import read_cifar_batches
from equipoise.data.cifar_parquet import read_cifar_parquet
from equipoise.data.digits import read_digits
from equipoise.data.download import download as fetch
from equipoise.data.files import Progress, Request
from equipoise.data.folder import read_image_folder
from equipoise.data.idx import read_fashion_mnist
from equipoise.data.images import Dataset
from equipoise.data.places import cache_folder, candidate_folders, data_roots, not_found
from equipoise.data.svhn import read_svhn

# Each reads a folder, or gives None where nothing of the dataset is in it.
_READERS: dict[str, tuple[Callable[[Path, Request], Dataset | None], ...]] = {
    "cifar10": (read_cifar_parquet, read_cifar_batches),
    "cifar100": (read_cifar_parquet, read_cifar_batches),
    "fashion_mnist": (read_fashion_mnist,),
    "image_folder": (read_image_folder,),
    "svhn": (read_svhn,),
}


def load_dataset(
    name: str,
    *,
    data_dir: Path | str | None = None,
    cache_dir: Path | str | None = None,
    download: bool = False,
    image_size: int | None = None,
    on_progress: Progress | None = None,
) -> Dataset:
    """Reads both splits of a dataset into memory, verified and in the order of its files.

    The files are looked for in `data_dir` alone if it is given, else in the folder that
    EQUIPOISE_DATA names, ``./data``, the cache folder, ``~/data`` and ``/usr/share/datasets``;
    in each of them first in a subfolder with the name of the dataset.

    Contract: nothing is fetched unless `download` is set, and no pickle is loaded that could run
    code. Only the cache folder (and, when downloading, the data folder) is written to.

    Args:
        name: One of `dataset_names()`.
        data_dir: Folder with the files.
        cache_dir: Where slowly decoded images are kept; else EQUIPOISE_CACHE, else
            ``~/.cache/equipoise``.
        download: Whether to fetch the files from their publisher where none are found, into
            `data_dir` or the cache folder.
        image_size: Height and width to reduce to; needed for ``"image_folder"``, elsewhere a
            divisor of the size of the dataset.
        on_progress: Called with (done, total): images while they are decoded, bytes while they
            are fetched.

    Returns:
        Training and test split.

    Raises:
        FileNotFoundError: Files are missing.
        ValueError: There is no such dataset, or a file is truncated, damaged or of another one.
        ModuleNotFoundError: A package of the extra ``data`` is missing.
        ConnectionError: A file could not be fetched.

    Example:
        >>> digits = load_dataset("digits")
        >>> len(digits.train), len(digits.test), digits.train.image_size
        (1442, 355, 8)
        >>> load_dataset("cifar")
        Traceback (most recent call last):
        ValueError: There is no dataset 'cifar'; did you mean 'cifar10'? The names are cifar10, ...
    """
    info = describe(name)
    cache = cache_folder(cache_dir)
    request = Request(info=info, cache_dir=cache, on_progress=on_progress, image_size=image_size)
    if name == "digits":
        return _resized(read_digits(info), image_size)
    roots = data_roots(data_dir, cache)
    try:
        dataset = _found(request, roots)
    except FileNotFoundError:  # some files are there
        if not download:
            raise
        dataset = None
    if dataset is None and download:
        target = roots[0] if data_dir is not None else cache / "data"
        fetch(name, target / name, on_progress)
        dataset = _found(request, (target,))
    if dataset is None:
        raise not_found(info, roots)
    return _resized(dataset, image_size)


def _found(request: Request, roots: tuple[Path, ...]) -> Dataset | None:
    """The dataset from the first folder that has it."""
    for folder in candidate_folders(request.info, roots):
        for read in _READERS[request.info.name]:
            dataset = read(folder, request)
            if dataset is not None:
                return dataset
    return None


def _resized(dataset: Dataset, image_size: int | None) -> Dataset:
    """Both splits at the size that was asked for."""
    if image_size is None:
        return dataset
    return Dataset(dataset.train.resized(image_size), dataset.test.resized(image_size))
