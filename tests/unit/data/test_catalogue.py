"""The list of datasets, which must not cost an import of torch."""

import subprocess
import sys

import pytest

import equipoise.data
from equipoise.data import dataset_names, describe


def test_names_are_sorted_and_described():
    names = dataset_names()
    assert names == ("cifar10", "cifar100", "digits", "fashion_mnist", "image_folder", "svhn")
    assert names == tuple(sorted(names))
    assert all(describe(name).name == name for name in names)


@pytest.mark.parametrize("name", dataset_names())
def test_descriptions_are_consistent(name):
    info = describe(name)
    assert len(info.mean) == len(info.std) == info.channels
    assert len(set(info.classes)) == len(info.classes)
    assert info.summary
    assert info.title


def test_the_hundred_classes():
    classes = describe("cifar100").classes
    assert len(classes) == 100
    assert list(classes) == sorted(classes)
    assert (classes[0], classes[60], classes[99]) == ("apple", "plain", "worm")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("CIFAR-10", "cifar10"),
        ("cifar-100", "cifar100"),
        ("FashionMNIST", "fashion_mnist"),
        ("fashionmnist", "fashion_mnist"),
        ("svnh", "svhn"),
        ("folder", "image_folder"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"no dataset '{wrong}'; did you mean '{near}'"):
        describe(wrong)


def test_a_name_like_no_other_is_answered_with_the_list():
    with pytest.raises(ValueError, match="no dataset 'qqq'; the names are cifar10, cifar100, "):
        describe("qqq")


def test_names_are_listed_without_torch_or_numpy():
    code = (
        "import sys, equipoise.data as data\n"
        "data.dataset_names(), data.describe('svhn'), dir(data)\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'PIL', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_reading_needs_no_optional_package_to_be_imported():
    code = (
        "import sys, equipoise.data as data\n"
        "[getattr(data, name) for name in data.__all__]\n"
        "heavy = {'sklearn', 'PIL', 'pyarrow', 'scipy.io'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_every_export_exists_and_no_submodule_hides_one():
    for name in equipoise.data.__all__:
        assert getattr(equipoise.data, name).__name__ == name
    assert not set(equipoise.data.__all__) & set(equipoise.data._HOMES.values())
    assert set(equipoise.data.__all__) <= set(dir(equipoise.data))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = equipoise.data.nothing
