"""Data: images as bytes, keyed augmentation, and batches that can be drawn again.

Names are imported when they are first used, so that listing the datasets does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise.data.augmentation import Augmentation as Augmentation
    from equipoise.data.augmentation import augment as augment
    from equipoise.data.augmentation import normalise as normalise
    from equipoise.data.batch import Batch as Batch
    from equipoise.data.catalogue import DatasetInfo as DatasetInfo
    from equipoise.data.catalogue import dataset_names as dataset_names
    from equipoise.data.catalogue import describe as describe
    from equipoise.data.folder import FolderDataset as FolderDataset
    from equipoise.data.folder import FolderSet as FolderSet
    from equipoise.data.folder import open_folder as open_folder
    from equipoise.data.folder_loader import FolderLoader as FolderLoader
    from equipoise.data.folder_loader import ResizedCrop as ResizedCrop
    from equipoise.data.images import Dataset as Dataset
    from equipoise.data.images import ImageSet as ImageSet
    from equipoise.data.loader import ImageLoader as ImageLoader
    from equipoise.data.loader import Loader as Loader
    from equipoise.data.sources import load_dataset as load_dataset
    from equipoise.data.synthetic_images import synthetic as synthetic

# No module of this package has the name of something it exports: importing a submodule sets it
# as an attribute of the package, and would hide the export.
_HOMES = {
    "Augmentation": "augmentation",
    "Batch": "batch",
    "Dataset": "images",
    "DatasetInfo": "catalogue",
    "FolderDataset": "folder",
    "FolderLoader": "folder_loader",
    "FolderSet": "folder",
    "ImageLoader": "loader",
    "ImageSet": "images",
    "Loader": "loader",
    "ResizedCrop": "folder_loader",
    "augment": "augmentation",
    "dataset_names": "catalogue",
    "describe": "catalogue",
    "load_dataset": "sources",
    "normalise": "augmentation",
    "open_folder": "folder",
    "synthetic": "synthetic_images",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
