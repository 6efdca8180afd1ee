"""Which parameters of a model are masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from torch.nn.parameter import UninitializedParameter

Include = Callable[[str, nn.Parameter], bool]
"""``(name, parameter) -> whether it is masked``."""

_WITH_WEIGHT = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def sparse_parameters(
    model: nn.Module, *, include: Include | None = None
) -> dict[str, nn.Parameter]:
    """Finds the parameters whose entries are connections, by the type of the owning module.

    These are the weights of linear, bilinear and (transposed) convolution layers, the input
    projections of `torch.nn.MultiheadAttention` (its output projection is a linear layer), and
    the input, recurrent and projection weights of RNN, LSTM and GRU layers and cells; subclasses
    count as their parents. Never biases, normalisation, embeddings (also where a linear layer is
    tied to one), nor parameters that belong directly to other modules, and never frozen ones. The
    model is not changed.

    Args:
        model: Any module.
        include: Replaces the rule: asked with name and parameter for every trainable parameter
            that has at least one dimension and one entry. Tied parameters are asked for once.

    Returns:
        Parameters by the names of ``model.named_parameters()``, in that order; tied ones once.

    Raises:
        ValueError: A parameter of a lazy module has no shape yet.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        >>> list(sparse_parameters(model))
        ['2.weight']
    """
    wanted: set[int] = set()
    refused: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            refused.add(id(module.weight))
        wanted.update(map(id, _connections(module)))
    chosen = {}
    for name, parameter in model.named_parameters():
        asked = include is not None or id(parameter) in wanted - refused
        if not parameter.requires_grad or not asked:
            continue
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(
                f"{name} belongs to a lazy module and has no shape yet; run one batch through the "
                f"model before its topology is made."
            )
        if parameter.ndim == 0 or parameter.numel() == 0:
            continue
        if include is None or include(name, parameter):
            chosen[name] = parameter
    return chosen


def _connections(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of this one module, children left out, whose entries are connections."""
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        if isinstance(module, _WITH_WEIGHT):
            connects = name == "weight"
        elif isinstance(module, nn.MultiheadAttention):
            connects = name in _PROJECTIONS
        elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
            connects = name.startswith("weight_")
        else:
            connects = False
        if connects:
            yield parameter
