from typing import Any

import pytest
import torch
from torch import nn

from equipoise.topology.selection import sparse_parameters


class Custom(nn.Module):
    """Parameters with two dimensions that are no connections."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(16, 8))
        self.weight = nn.Parameter(torch.zeros(8, 8))
        self.fc = nn.Linear(8, 8)


class Sub(nn.Linear):
    """A subclass counts as its parent, but only by its weight."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.scale = nn.Parameter(torch.ones(4, 4))


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Linear(4, 3), ["weight"]),
        (Sub(), ["weight"]),
        (nn.Bilinear(3, 4, 5), ["weight"]),
        (nn.Conv1d(2, 4, 3), ["weight"]),
        (nn.Conv2d(2, 4, 3), ["weight"]),
        (nn.Conv2d(4, 4, 3, groups=4), ["weight"]),
        (nn.Conv3d(2, 4, 3), ["weight"]),
        (nn.ConvTranspose1d(2, 4, 3), ["weight"]),
        (nn.ConvTranspose2d(2, 4, 3), ["weight"]),
        (nn.ConvTranspose3d(2, 4, 3), ["weight"]),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
        (nn.RNN(3, 4), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.LSTM(3, 4, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (
            nn.GRU(3, 4, bidirectional=True),
            ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"],
        ),
        (nn.GRUCell(3, 4), ["weight_ih", "weight_hh"]),
        (nn.BatchNorm2d(4), []),
        (nn.LayerNorm((4, 4)), []),
        (nn.GroupNorm(2, 4), []),
        (nn.Embedding(9, 4), []),
        (nn.EmbeddingBag(9, 4), []),
        (nn.PReLU(4), []),
        (Custom(), ["fc.weight"]),
    ],
)
def test_the_owner_decides_and_not_the_shape_or_the_name(module: Any, names: Any) -> None:
    assert sorted(sparse_parameters(module)) == sorted(names)


def test_a_transformer_layer_is_covered() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert list(sparse_parameters(layer)) == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]


def test_a_weight_tied_to_an_embedding_is_left_out() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 9), "embed": nn.Embedding(9, 4)})
    assert list(sparse_parameters(model)) == ["fc.weight"]
    model["embed"].weight = model["fc"].weight
    assert list(sparse_parameters(model)) == []


def test_tied_weights_are_listed_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(sparse_parameters(model)) == ["0.weight"]


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    assert list(sparse_parameters(model)) == ["1.weight"]
    assert list(sparse_parameters(model, include=lambda name, p: p.ndim == 2)) == ["1.weight"]


def test_a_lazy_module_must_see_a_batch_first() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"0\.weight belongs to a lazy module .* run one batch"):
        sparse_parameters(model)
    model(torch.ones(2, 3))
    assert list(sparse_parameters(model)) == ["0.weight"]


def test_include_replaces_the_rule_and_is_asked_for_every_trainable_parameter() -> None:
    asked = []

    def include(name: Any, parameter: Any) -> Any:
        asked.append((name, parameter.ndim))
        return name == "position"

    assert list(sparse_parameters(Custom(), include=include)) == ["position"]
    assert asked == [("position", 2), ("weight", 2), ("fc.weight", 2), ("fc.bias", 1)]


def test_names_and_order_are_those_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    parameters = dict(model.named_parameters())
    chosen = sparse_parameters(model)
    assert list(chosen) == ["0.weight", "3.weight"]
    assert all(parameters[name] is parameter for name, parameter in chosen.items())
