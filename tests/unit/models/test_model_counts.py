"""Parameter counts, layer tables and Erdos-Renyi-kernel densities of the published networks."""

from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise.models import create

_TABLES = Path(__file__).with_name("published_layers.tsv")
_TABLED = (
    ("vgg_c", 10),
    ("vgg16", 10),
    ("wrn_28_4", 10),
    ("resnet34", 10),
    ("resnet50", 100),
    ("resnet18", 100),
)


def _meta_model(name: str, num_classes: int, stem: str = "cifar") -> nn.Module:
    size = 224 if stem == "imagenet" else 32
    with torch.device("meta"):
        return create(name, num_classes=num_classes, image_size=size, stem=stem)  # type: ignore[arg-type]


def _maskable(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of convolutions and linear layers, in the order of the parameters."""
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if name.endswith(".weight") and name.removesuffix(".weight") in layers
    }


def _erk(shapes: list[tuple[int, ...]], density: float) -> tuple[list[float], float, int]:
    """Densities, scale and number of dense layers of the capped distribution, written afresh."""
    sizes = [prod(shape) for shape in shapes]
    sums = [sum(shape) for shape in shapes]
    raw = [total / size for total, size in zip(sums, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        sparse = [i for i in range(len(shapes)) if i not in dense]
        budget = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = budget / sum(sums[i] for i in sparse)
        largest = max(raw[i] for i in sparse)
        if scale * largest <= 1:
            densities = [1.0 if i in dense else scale * raw[i] for i in range(len(shapes))]
            return densities, scale, len(dense)
        dense |= {i for i in sparse if raw[i] == largest}


def _published_layers(name: str) -> list[tuple[str, tuple[int, ...], int, float, float]]:
    rows = [line.split("\t") for line in _TABLES.read_text(encoding="utf-8").splitlines()[1:]]
    return [
        (row[2], tuple(map(int, row[3].split("x"))), int(row[4]), float(row[5]), float(row[6]))
        for row in rows
        if row[0] == name
    ]


@pytest.mark.parametrize(
    ("name", "classes", "stem", "total", "maskable", "num_layers", "biases", "norms"),
    [
        ("vgg_c", 10, "cifar", 11_323_466, 11_307_712, 16, 5_258, 10_496),
        ("vgg_c", 100, "cifar", 11_369_636, 11_353_792, 16, 5_348, 10_496),
        ("vgg16", 10, "cifar", 15_311_818, 15_302_848, 16, 522, 8_448),
        ("vgg16", 100, "cifar", 15_334_948, 15_325_888, 16, 612, 8_448),
        ("resnet18", 10, "cifar", 11_173_962, 11_164_352, 21, 10, 9_600),
        ("resnet18", 100, "cifar", 11_220_132, 11_210_432, 21, 100, 9_600),
        ("resnet34", 10, "cifar", 21_282_112, 21_265_088, 37, 0, 17_024),
        ("resnet34", 100, "cifar", 21_328_192, 21_311_168, 37, 0, 17_024),
        ("resnet50", 10, "cifar", 23_520_842, 23_467_712, 54, 10, 53_120),
        ("resnet50", 100, "cifar", 23_705_252, 23_652_032, 54, 100, 53_120),
        ("resnet50", 1000, "imagenet", 25_557_032, 25_502_912, 54, 1000, 53_120),
        ("wrn_28_4", 10, "cifar", 5_849_050, 5_841_840, 29, 10, 7_200),
        ("wrn_28_4", 100, "cifar", 5_872_180, 5_864_880, 29, 100, 7_200),
        ("wrn_22_2", 10, "cifar", 1_079_642, 1_076_912, 23, 10, 2_720),
    ],
)
def test_counts_are_the_published_ones(
    name: str,
    classes: int,
    stem: str,
    total: int,
    maskable: int,
    num_layers: int,
    biases: int,
    norms: int,
) -> None:
    model = _meta_model(name, classes, stem)
    shapes = _maskable(model)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    batch_norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(prod(shape) for shape in shapes.values()) == maskable
    assert len(shapes) == num_layers
    assert sum(layer.bias.numel() for layer in layers if layer.bias is not None) == biases
    assert sum(p.numel() for norm in batch_norms for p in norm.parameters()) == norms


@pytest.mark.parametrize(("name", "classes"), _TABLED)
def test_layers_have_the_published_names_shapes_and_order(name: str, classes: int) -> None:
    expected = [(parameter, shape) for parameter, shape, *_ in _published_layers(name)]
    assert list(_maskable(_meta_model(name, classes)).items()) == expected
    assert all(prod(shape) == size for _, shape, size, *_ in _published_layers(name))


@pytest.mark.parametrize(("name", "classes"), _TABLED)
def test_erk_densities_are_the_published_ones(name: str, classes: int) -> None:
    shapes = list(_maskable(_meta_model(name, classes)).values())
    rows = _published_layers(name)
    for density, column in ((0.1, 3), (0.01, 4)):
        expected = [row[column] for row in rows]
        assert _erk(shapes, density)[0] == pytest.approx(expected, abs=5.1e-6)


@pytest.mark.parametrize(
    ("name", "classes", "stem", "density", "scale", "num_dense"),
    [
        ("vgg_c", 10, "cifar", 0.01, 9.3367, 0),
        ("vgg_c", 10, "cifar", 0.1, 97.597, 2),
        ("resnet34", 10, "cifar", 0.01, 12.755, 1),
        ("resnet34", 10, "cifar", 0.1, 133.10, 4),
        ("resnet50", 100, "cifar", 0.01, 4.6004, 0),
        ("resnet50", 100, "cifar", 0.05, 23.002, 0),
        ("resnet50", 100, "cifar", 0.1, 46.073, 2),
        ("resnet50", 100, "cifar", 0.2, 93.952, 9),
        ("resnet50", 100, "cifar", 0.5, 296.47, 33),
        ("wrn_28_4", 10, "cifar", 0.01, 7.2796, 0),
        ("wrn_28_4", 10, "cifar", 0.1, 76.693, 4),
        ("resnet50", 1000, "imagenet", 0.2, 99.561, 8),
        ("resnet50", 1000, "imagenet", 0.1, 48.786, 1),
    ],
)
def test_erk_scales_and_dense_layers_are_the_published_ones(
    name: str, classes: int, stem: str, density: float, scale: float, num_dense: int
) -> None:
    shapes = list(_maskable(_meta_model(name, classes, stem)).values())
    densities, computed, dense = _erk(shapes, density)
    assert computed == pytest.approx(scale, rel=6e-5)
    assert dense == num_dense
    kept = sum(p * prod(shape) for p, shape in zip(densities, shapes, strict=True))
    assert kept == pytest.approx(density * sum(map(prod, shapes)), rel=1e-9)
