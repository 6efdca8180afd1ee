"""SVHN, published as MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from equipoise.data.files import (
    Request,
    checksum,
    image_set,
    require_count,
    require_files,
    require_md5,
)
from equipoise.data.images import Dataset, ImageSet, check_labels

SVHN_MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def read_svhn(folder: Path, request: Request) -> Dataset | None:
    """Both splits from the two cropped-digit files; None where `folder` has neither."""
    train, test = (folder / name for name in SVHN_MD5)
    if not train.is_file() and not test.is_file():
        return None
    require_files((train, test), request.info)
    return Dataset(
        _split(train, request.info.num_train, request), _split(test, request.info.num_test, request)
    )


def _split(path: Path, count: int | None, request: Request) -> ImageSet:
    """One split; the files label the digit 0 with 10."""
    from scipy.io import loadmat  # slow to import, and only SVHN needs it

    require_md5(checksum(path, "md5"), SVHN_MD5[path.name], path)
    try:
        content = loadmat(path, variable_names=("X", "y"))
        pixels, digits = content["X"], content["y"].reshape(-1).astype(np.int64)
        images = pixels.transpose(3, 2, 0, 1)
        if images.dtype != np.uint8:
            raise ValueError(f"X is {images.dtype}")
    except Exception as error:  # the MATLAB reader raises whatever its bytes lead to
        raise ValueError(
            f"{path} is not a MATLAB file with byte images X and labels y ({error}); delete it "
            "and fetch it again."
        ) from error
    require_count(len(images), count, path)
    require_count(len(digits), len(images), path)
    labels = np.where(digits == len(request.info.classes), 0, digits)
    check_labels(torch.from_numpy(labels), len(request.info.classes), path)
    return image_set(request.info, images, labels, {path.name: checksum(path)})
