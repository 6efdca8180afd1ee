"""What the gradient table does step by step."""

from __future__ import annotations

import copy
import io
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.correction import GradientTable, row_bytes
from equipoise.correction.columns import columns_of
from equipoise.topology import Topology, set_rewiring

Pair = tuple[Tensor, Tensor]


def build(*, double: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )
    return model.double() if double else model


def entropy(model: nn.Module, pair: Pair) -> Tensor:
    return F.cross_entropy(model(pair[0]), pair[1])


def without_dropout(model: nn.Sequential) -> None:
    assert isinstance(model[3], nn.Dropout)
    model[3].p = 0.0


def draw(num: int = 5, *, double: bool = True) -> list[Pair]:
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float64 if double else torch.float32
    return [
        (
            torch.randn(6, 1, 4, 4, generator=generator, dtype=dtype),
            torch.randint(3, (6,), generator=generator),
        )
        for _ in range(num)
    ]


def table_of(model: nn.Module, **more: Any) -> GradientTable[Pair]:
    return GradientTable(model, lambda pair: F.cross_entropy(model(pair[0]), pair[1]), **more)


def train(
    model: nn.Module,
    table: GradientTable[Pair] | None,
    batches: list[Pair],
    epochs: int,
    topology: Topology | None = None,
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if topology is not None:
        topology.attach(optimizer)
    for epoch in range(epochs):
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch))
        for key in order.tolist():
            optimizer.zero_grad()
            if table is None:
                torch.autograd.backward(F.cross_entropy(model(batches[key][0]), batches[key][1]))
            else:
                table.backward(batches[key], key)
            optimizer.step()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    taken = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def plain_gradient(model: nn.Module, pair: Pair) -> dict[str, Tensor]:
    other = copy.deepcopy(model)
    other.zero_grad()
    torch.autograd.backward(F.cross_entropy(other(pair[0]), pair[1]))
    return gradients(other)


def fill_with_garbage_(table: GradientTable[Pair], seed: int = 3) -> None:
    """Puts random numbers in the place of stored gradients, as the table itself would."""
    ledger = table._ledger
    generator = torch.Generator().manual_seed(seed)
    for key in list(ledger._rows):
        vector = torch.randn(ledger.columns.num_padded, generator=generator, dtype=ledger.dtype)
        vector = vector.masked_fill_(ledger.columns.padding, 0.0)
        ledger.store(key, vector, ledger.read(key))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("masked", [False, True])
def test_over_the_batches_the_mean_is_plain_whatever_the_table_holds(
    precision: Any, masked: bool
) -> None:
    """Property 6, and 3: a random garbage table, different coefficients for every parameter."""
    model, batches = build(), draw()
    without_dropout(model)
    topology = Topology(model, sparsity=0.6) if masked else None
    table = table_of(model, masks=topology, precision=precision)
    train(model, table, batches, 3, topology)
    fill_with_garbage_(table)
    sums: dict[str, Tensor] = {}
    moved = False
    for key, pair in enumerate(batches):
        one, net = copy.deepcopy(table), copy.deepcopy(model)
        one.model, one.loss_fn = net, partial(entropy, net)
        one._ledger._model = net
        one._ledger._seen = []
        net.zero_grad()
        one._ledger._masks = topology
        one.coefficient = 0.7
        one.backward(pair, key)
        plain = plain_gradient(model, pair)
        for name, gradient in gradients(net).items():
            moved = moved or not torch.allclose(gradient, plain[name])
            sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient - plain[name]
    assert moved
    for name, total in sums.items():
        assert total.abs().max() < 1e-10, name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_the_mean_is_that_of_the_rows_after_rewirings(precision: Any) -> None:
    model, batches = build(), draw(7)
    topology = Topology(model, sparsity=0.5, rewiring=set_rewiring(1000, interval=5))
    table = table_of(model, masks=topology, precision=precision)
    train(model, table, batches, 6, topology)
    assert topology.num_rewirings > 5
    ledger = table._ledger
    ledger.follow()
    total, count = torch.zeros_like(ledger._sums), torch.zeros_like(ledger._sums)
    for key in range(7):
        stored = ledger.read(key)
        assert stored is not None
        total += stored.vector
        count += 1.0 if stored.valid is None else stored.valid
    torch.testing.assert_close(
        ledger.mean(), (total / count.clamp_min(1)).to(ledger.dtype), rtol=1e-10, atol=1e-13
    )
    assert bool((count[ledger.columns.places] < 7).any())  # something was grown since


def test_the_differences_of_surviving_weights_add_up_to_zero_after_a_rewiring() -> None:
    model, batches = build(), draw(6)
    topology = Topology(model, sparsity=0.5, rewiring=set_rewiring(1000, interval=4))
    table = table_of(model, masks=topology)
    train(model, table, batches, 4, topology)
    ledger = table._ledger
    ledger.follow()
    mean = ledger.mean()
    differences = []
    for key in range(6):
        stored = ledger.read(key)
        assert stored is not None
        differences.append(ledger.difference(stored, mean))
    assert torch.stack(differences).sum(0).abs().max() < 1e-12
    assert torch.stack(differences).abs().max() > 1e-4


def test_a_grown_weight_is_corrected_only_once_its_batch_was_seen_again() -> None:
    """Property 22 and the hazard: exploded old gradients of grown weights never enter."""
    model, batches = nn.Linear(4, 1, bias=False).double(), [torch.ones(2, 4).double()] * 2

    class Masks:
        masks: ClassVar = {"weight": torch.tensor([[True, True, False, False]])}

    table = GradientTable(model, lambda x: (model(x) * x.sum()).sum(), masks=Masks())
    table.coefficient = 1.0
    batches = [torch.ones(2, 4).double(), 2 * torch.ones(2, 4).double()]
    for key in (0, 1):
        model.zero_grad()
        table.backward(batches[key], key)
    Masks.masks = {"weight": torch.tensor([[True, False, True, False]])}
    model.zero_grad()
    table.backward(batches[0], 0)
    plain = (batches[0] * batches[0].sum()).sum(0)
    assert model.weight.grad is not None
    moved = (model.weight.grad[0] - plain).abs() > 1e-6
    assert moved.tolist() == [True, False, False, False]
    model.zero_grad()
    table.backward(batches[1], 1)
    model.zero_grad()
    table.backward(batches[0], 0)  # by now both were seen with the grown weight
    moved = (model.weight.grad[0] - plain).abs() > 1e-6
    assert moved.tolist() == [True, False, True, False]


def test_the_coefficient_does_not_see_the_batch_that_it_is_used_for() -> None:
    """Property 8: another batch under the same key is corrected by the same coefficients."""
    model, batches = build(), draw()
    table = table_of(model)
    train(model, table, batches, 4)
    assert table.moments is not None
    before = table.moments.values()
    used = []
    for scale in (1.0, 50.0):
        net = copy.deepcopy(model)
        one = table_of(net)
        one.load_state_dict(copy.deepcopy(table.state_dict()))
        net.zero_grad()
        torch.manual_seed(5)
        one.backward((batches[0][0] * scale, batches[0][1]), 0)
        torch.manual_seed(5)
        plain = plain_gradient(net, (batches[0][0] * scale, batches[0][1]))
        found = gradients(net)
        used.append({n: found[n] - plain[n] for n in found})
    for name in used[0]:
        torch.testing.assert_close(used[0][name], used[1][name], rtol=1e-6, atol=1e-9)
    assert bool((before > 0).any())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_coefficient_0_is_the_plain_loop_bit_for_bit(optimizer: str) -> None:
    """Property 1, while the table fills and after, with a rewiring topology."""
    runs = []
    for with_table in (False, True):
        torch.manual_seed(4)
        model, batches = build(double=False), draw(double=False)
        topology = Topology(model, sparsity=0.5, rewiring=set_rewiring(1000, interval=4))
        table = table_of(model, masks=topology, coefficient=0.0) if with_table else None
        torch.manual_seed(9)
        train(model, table, batches, 3, topology)
        runs.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *runs))


def test_accumulation_adds_to_what_is_there_and_keeps_the_tensor() -> None:
    model, batches = build(), draw()
    table = table_of(model)
    train(model, table, batches, 3)
    model.eval()
    single = []
    for key in (1, 3):
        model.zero_grad()
        one = copy.deepcopy(table.state_dict())
        table.backward(batches[key], key)
        single.append(gradients(model))
        if key == 1:
            after = copy.deepcopy(table.state_dict())
    table.load_state_dict(one)
    table.load_state_dict(after)
    model.zero_grad()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    tensors = [p.grad for p in model.parameters()]
    table.backward(batches[3], 3, scale=0.5)
    for (name, p), tensor in zip(model.named_parameters(), tensors, strict=True):
        assert p.grad is tensor
        torch.testing.assert_close(p.grad, 1 + 0.5 * single[1][name])


def test_the_loss_scale_is_taken_out_of_what_is_stored() -> None:
    """Property 20."""
    found = []
    for scale in (1.0, 1024.0):
        model, batches = build(), draw()
        without_dropout(model)
        table = table_of(model)
        for key in (0, 1, 2, 0, 1, 2, 0):
            model.zero_grad()
            table.backward(batches[key], key, scale=scale)
        found.append({n: g / scale for n, g in gradients(model).items()})
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-9, atol=1e-12)


def test_what_is_not_finite_is_neither_stored_nor_learned_from() -> None:
    model, batches = build(), draw()
    table = table_of(model)
    train(model, table, batches, 3)
    before = copy.deepcopy(table.state_dict())
    model.zero_grad()
    table.backward((batches[0][0] * float("inf"), batches[0][1]), 0)
    after = table.state_dict()
    assert torch.equal(before["sums"], after["sums"])
    assert before["moments"] == after["moments"]
    assert all(torch.equal(before["rows"][k], after["rows"][k]) for k in before["rows"])


def test_a_far_too_large_gradient_is_held_back_with_one_warning() -> None:
    """The hazard: a channel that is nearly dead gives gradients hundreds of times too large."""
    model, batches = build(), draw()
    table = table_of(model, precision="fp32")
    train(model, table, batches, 5)
    model.zero_grad()
    # The same samples with labels that are never right, and a hundred times the loss.
    table.loss_fn = lambda pair: 1000 * F.cross_entropy(model(pair[0]), (pair[1] + 1) % 3)
    with pytest.warns(RuntimeWarning, match="times as large as usual"):
        table.backward(batches[0], 0)
    stored = table._ledger.read(0)
    assert stored is not None
    columns = table._ledger.columns
    size = columns.group_sums((stored.vector**2).view(1, -1, 64).sum(2)).sqrt().sum()
    new = sum(float(g.norm()) for g in gradients(model).values())
    assert float(size) < 0.2 * new
    table.backward(batches[1], 1)  # the second time without a warning


@pytest.mark.parametrize("folder", [False, True])
def test_a_state_round_trip_mid_epoch_continues_bit_for_bit(folder: bool, tmp_path: Path) -> None:
    """Property 26, with rewirings, in memory and in files."""

    def parts(name: str) -> Any:
        model = build(double=False)
        topology = Topology(model, sparsity=0.5, rewiring=set_rewiring(1000, interval=4))
        where = tmp_path / name if folder else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        topology.attach(optimizer)
        return model, topology, optimizer, table_of(model, masks=topology, folder=where)

    batches = draw(7, double=False)

    def steps(all_parts: Any, first: int, last: int) -> None:
        _, _, optimizer, table = all_parts
        for step in range(first, last):
            optimizer.zero_grad()
            table.backward(batches[step * 3 % 7], step * 3 % 7)
            optimizer.step()

    one = parts("one")
    steps(one, 0, 17)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (one[0], one[2], one[3], one[1])], file)
    stream = torch.get_rng_state()
    steps(one, 17, 40)
    file.seek(0)
    two = parts("two")
    # In this order, so the table is loaded while the masks are still others.
    for part, state in zip((two[0], two[2], two[3], two[1]), torch.load(file), strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(stream)
    steps(two, 17, 40)
    assert all(map(torch.equal, one[0].state_dict().values(), two[0].state_dict().values()))
    a, b = one[3].state_dict(), two[3].state_dict()
    assert all(torch.equal(a["rows"][k], b["rows"][k]) for k in range(7))
    assert torch.equal(a["sums"], b["sums"])
    if folder:
        assert len(list((tmp_path / "two").glob("row-*.bin"))) == 7


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_the_memory_is_that_of_the_formula(precision: Any) -> None:
    """Property 27."""
    model, batches = build(double=False), draw(double=False)
    topology = Topology(model, sparsity=0.5)
    table = table_of(model, masks=topology, precision=precision)
    train(model, table, batches, 1, topology)
    padded = columns_of(model, topology.masks).num_padded
    per_entry = {"fp32": 4.0, "bf16": 2.0, "int8": 1 + 1 / 32, "int4": 0.5 + 1 / 32}[precision]
    assert table.num_bytes == len(batches) * padded * per_entry
    assert table.num_bytes == len(batches) * row_bytes(padded, precision)


def test_maps_with_channels_last_are_corrected_alike() -> None:
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model, batches = build(), draw()
        model[0] = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
        batches = [(x.repeat(1, 3, 1, 1) + torch.arange(3).view(3, 1, 1), y) for x, y in batches]
        without_dropout(model)
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        topology = Topology(model, sparsity=0.5)
        table = table_of(model, masks=topology)
        train(model, table, batches, 3, topology)
        found.append(model.state_dict())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    """Property 29."""
    model, batches = build(), draw()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3).double()))
    table = table_of(model)
    train(model, table, batches, 3)
    assert model[0].weight.grad is None
    assert model.unused.grad is None
    model[0].weight.requires_grad_(True)
    model.zero_grad()
    table.backward(batches[0], 0)  # other parameters: the table starts again
    assert len(table) == 1


def test_an_exception_leaves_gradients_and_table_as_they_were() -> None:
    """Property 28."""
    model, batches = build(), draw()
    table = table_of(model)
    train(model, table, batches, 2)
    tensors = [p.grad for p in model.parameters()]
    state = copy.deepcopy(table.state_dict())

    def fail(pair: Pair) -> Tensor:
        raise KeyError("no")

    table.loss_fn = fail
    with pytest.raises(KeyError):
        table.backward(batches[0], 0)
    assert all(p.grad is t for p, t in zip(model.parameters(), tensors, strict=True))
    assert torch.equal(state["sums"], table.state_dict()["sums"])


def test_mistakes_get_one_sentence() -> None:
    model, batches = build(), draw()
    with pytest.raises(ValueError, match="precision is one of int4, int8, bf16, fp32; got 'int2'"):
        table_of(model, precision="int2")
    with pytest.raises(ValueError, match="coefficient takes a finite number"):
        table_of(model, coefficient=float("nan"))
    table = table_of(model)
    train(model, table, batches, 1)
    with pytest.raises(ValueError, match="stored in int8, expected int4"):
        table_of(model, precision="int4").load_state_dict(table.state_dict())
    with pytest.raises(ValueError, match="do not fit this model"):
        table_of(nn.Linear(2, 2)).load_state_dict(table.state_dict())
    with pytest.raises(ValueError, match="has format None"):
        table.load_state_dict({})


def test_without_a_key_a_gradient_is_plain_and_nothing_is_stored() -> None:
    model, batches = build(), draw()
    table = table_of(model, coefficient=1.0)
    train(model, table, batches, 2)
    state = copy.deepcopy(table.state_dict())
    model.zero_grad()
    torch.manual_seed(5)
    table.backward(batches[0])
    torch.manual_seed(5)
    plain = plain_gradient(model, batches[0])
    assert all(torch.equal(g, plain[n]) for n, g in gradients(model).items())
    assert torch.equal(state["sums"], table.state_dict()["sums"])


def test_forget_empties_the_table_and_keeps_the_coefficient() -> None:
    model, batches = build(), draw()
    table = table_of(model)
    train(model, table, batches, 4)
    assert table.moments is not None
    values = table.moments.values()
    table.forget()
    assert len(table) == 0
    assert table.coefficient_value == 0.0
    model.zero_grad()
    table.backward(batches[0], 0)
    assert torch.equal(table.moments.values(), values)


def test_gathered_vectors_are_independent() -> None:
    """Only the table's own memory is written again in the next step."""
    model = torch.nn.Linear(3, 2)
    columns = columns_of(model, {"weight": torch.eye(2, 3).bool()})
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    first = columns.gather(ones, torch.float32)
    second = columns.gather({"weight": 2 * ones["weight"]}, torch.float32)
    assert first[columns.places].tolist() == [1.0] * 4
    assert second[columns.places].tolist() == [2.0, 2.0, 0.0, 0.0]
