"""Data, devices and states that fit a session, and those that do not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from equipoise.data import FolderLoader, ResizedCrop, synthetic
from equipoise.training import build
from equipoise.training.session import Session

toy = import_module("tests.unit.training.toy")

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_samples": 73}, "--train-samples asks for 73 images, but synthetic has 72"),
        ({"test_samples": 41}, "--test-samples asks for 41 images, but synthetic has 40"),
        ({"image_size": 5}, "image_size=5 does not divide"),
        ({"validation": 0.001}, "validation_fraction=0.001 of 72 samples leaves a part empty"),
        ({"sparsity": 1.5}, "--sparsity is the fraction"),
        ({"model": "mlp", "dropout": 0.5}, "mlp has no dropout"),
        ({"model": "mlp", "stem": "imagenet"}, "mlp has no choice of stem"),
        ({"topology": "set", "interval": 2.5}, "interval is a whole number of steps"),
        ({"optimizer": "sgdw", "weight_decay": 1.5}, "SGDW takes"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        toy.session(**changes)
    assert "\n" not in str(caught.value)


def test_the_state_of_another_network_is_refused() -> None:
    state = toy.session(width=0.2).state_dict()
    with pytest.raises(
        ValueError, match=r"^the checkpoint does not fit this run \(.*\); "
    ) as caught:
        toy.session().load_state_dict(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["model", "optimizer", "corrector", "topology", "meter", "random", "position"]
)
def test_a_state_without_one_of_its_parts_is_refused(missing: str) -> None:
    state = toy.session().state_dict()
    del state[missing]
    with pytest.raises(ValueError, match=r"^the checkpoint does not fit this run"):
        toy.session().load_state_dict(state)


def test_the_state_is_plain(tmp_path: Path) -> None:
    for changes in ({"corrector": "agent", "optimizer": "adamw"}, {"precision": "fp16"}):
        session = toy.session(topology="rigl", interval=2, **changes)
        toy.one_epoch(session)
        torch.save(session.state_dict(), tmp_path / "state.pt")
        torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of noisy colours, of several sizes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, colour in enumerate(([200, 40, 40], [40, 200, 40], [40, 40, 200])):
            folder = tmp_path / "pictures" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                size = (36 + 4 * number, 40)
                noise = generator.integers(-40, 40, (*size, 3))
                Image.fromarray(np.uint8(np.array(colour) + noise)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_a_folder_of_pictures_is_streamed(pictures: Path) -> None:
    run = toy.make_run(
        dataset="image_folder",
        data_dir=pictures,
        image_size=32,
        model="small_cnn",
        width=0.5,
        batch_size=8,
        corrector="agent",
        learning_rate=0.05,
        epochs=4,
        validation=0.25,
    )
    session = Session(run)
    assert isinstance(session.loader, FolderLoader)
    assert isinstance(session.loader.augmentation, ResizedCrop)
    assert [len(images) for images in session.images if images is not None] == [18, 6, 12]
    refresh = [tuple(batch) for batch in session.refresh_batches()]
    epoch = [tuple(batch) for group in session.batches() for batch in group]
    assert toy.differences(refresh, epoch) == []
    assert epoch[0][0].shape == (8, 3, 32, 32)
    records = toy.all_epochs(session)
    assert [record.data_passes for record in records] == pytest.approx([1, 13 / 3, 23 / 3, 11])
    assert records[-1].test_accuracy > 0.6
    again = toy.all_epochs(Session(run))
    assert list(map(toy.without_time, again)) == list(map(toy.without_time, records))


def test_a_folder_of_pictures_has_a_usual_size(pictures: Path) -> None:
    run = toy.make_run(dataset="image_folder", data_dir=pictures)
    images = build.select_images(build.load_images(run.data), run.data)
    assert build.image_shape(images.train, run.data) == (3, 224)
    with pytest.raises(FileNotFoundError, match=r"was not found: looked for .* in .*nothing"):
        Session(toy.make_run(dataset="image_folder", data_dir=pictures / "nothing"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "takes auto, cpu"),
        ("mps", "takes auto, cpu"),
        ("cuda", "sees no CUDA|"),
        ("", "takes"),
    ],
)
def test_devices_that_are_not_there(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=words) as caught:
        build.resolve_device(name)
    assert "--device" in str(caught.value)
    assert build.resolve_device("auto") == build.resolve_device("cpu") == torch.device("cpu")


def test_a_device_number_that_is_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert build.resolve_device("cuda:1") == torch.device("cuda", 1)
    assert build.resolve_device("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"^--device cuda:2 .* there are 2 CUDA devices"):
        build.resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("augment", "channels", "size", "expected"),
    [
        ("auto", 3, 32, True),
        ("auto", 3, 8, False),
        ("auto", 1, 32, False),
        ("yes", 1, 8, True),
        ("no", 3, 32, False),
    ],
)
def test_augmentation_is_for_colour_images_unless_asked(
    augment: str, channels: int, size: int, expected: bool
) -> None:
    data = synthetic(num_train=8, num_test=4, channels=channels, image_size=size)
    loader: Any = build.train_loader(data.train, toy.make_run(augment=augment), torch.device("cpu"))
    assert (loader.augmentation is not None) == expected
    test: Any = build.test_loader(data.test, toy.make_run(augment=augment), torch.device("cpu"))
    assert test.augmentation is None
