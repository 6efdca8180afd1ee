import contextlib
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.topology import (
    Rewiring,
    Topology,
    gradient_magnitude,
    rigl,
    set_rewiring,
)


def mlp(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batch(seed: Any) -> Any:
    return torch.rand(5, 8, generator=torch.Generator().manual_seed(seed))


def loss_of(model: Any, seed: Any = 0) -> Any:
    return model(batch(seed)).square().mean()


def weights(topology: Topology) -> Any:
    return list(topology.parameters.values())


class Recorder:
    """A growth score that writes down every gradient it is given."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def __call__(self, weight: Any, gradient: Any, mask: Any, generator: Any) -> Any:
        self.gradients.append(gradient.clone())
        return gradient.abs()


def recorded(total_steps: Any = 100, interval: Any = 1, **settings: Any) -> Any:
    score = Recorder()
    return score, Rewiring(total_steps=total_steps, interval=interval, grow=score, **settings)


def snapshot(model: Any, optimizer: Any) -> Any:
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = {
        (n, key): value.clone()
        for n, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, torch.Tensor)
    }
    return weights, state


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["static", "set", "rigl"])
def test_no_optimizer_has_to_be_known(name: Any, kind: Any) -> None:
    model = mlp()
    plan = {"static": None, "set": set_rewiring, "rigl": rigl}[kind]
    topology = Topology(
        model, sparsity=0.7, rewiring=plan and plan(40, interval=2), distribution="uniform"
    )
    optimizer = OPTIMIZERS[name](model.parameters())
    topology.attach(optimizer)
    for step in range(8):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        assert topology.verify() == []
        assert {n: int(m.sum()) for n, m in topology.masks.items()} == dict(topology.plan)
    assert topology.num_steps == 8
    assert topology.num_rewirings == (0 if kind == "static" else 4)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replaced_step_changes_nothing_but_dropped_and_grown_weights(name: Any) -> None:
    model = mlp()
    topology = Topology(model, sparsity=0.7, rewiring=rigl(40, interval=3), distribution="uniform")
    optimizer = OPTIMIZERS[name](model.parameters())
    topology.attach(optimizer)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    before_weights, before_state = snapshot(model, optimizer)
    masks = dict(topology.masks)
    optimizer.zero_grad()
    loss_of(model, 7).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    optimizer.step()
    assert topology.num_rewirings == 1
    after_weights, after_state = snapshot(model, optimizer)
    moved = 0
    for n, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, gradients[n]), "the gradients are put back"
        survives = torch.ones_like(p, dtype=torch.bool)
        if n in masks:
            survives = masks[n] & topology.masks[n] & (after_weights[n] != 0)
            moved += int((masks[n] != topology.masks[n]).sum())
        assert torch.equal(before_weights[n][survives], after_weights[n][survives])
    assert moved > 0
    for (n, key), value in before_state.items():
        kept = value.shape == before_weights[n].shape
        where = (
            topology.masks.get(n, torch.ones_like(value, dtype=torch.bool))
            & (after_weights[n] != 0)
            if kept
            else ...
        )
        assert torch.equal(value[where], after_state[n, key][where])


def test_grown_weights_start_at_zero_with_fresh_state_and_survivors_stay() -> None:
    model = mlp()
    plan = set_rewiring(40, interval=3, prune_fraction=0.5)
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    topology.attach(optimizer)
    plain = mlp()  # the same run without the rewiring
    mask_only = Topology(plain, sparsity=0.5)
    reference = torch.optim.AdamW(plain.parameters(), lr=0.01)
    mask_only.attach(reference)
    for step in range(3):
        for net, optim in ((model, optimizer), (plain, reference)):
            optim.zero_grad()
            loss_of(net, step).backward()
            optim.step()
    assert topology.num_rewirings == 1
    for name, weight in topology.parameters.items():
        old, new = mask_only.masks[name], topology.masks[name]
        grown, survivors = new & ~old, new & old
        assert int(grown.sum()) > 0
        assert not bool(weight[grown].any())
        other = mask_only.parameters[name]
        kept = survivors & (weight.detach() != 0)
        assert torch.equal(weight[kept], other[kept])
        for key in ("exp_avg", "exp_avg_sq"):
            assert not bool(optimizer.state[weight][key][grown].any())
            assert torch.equal(
                optimizer.state[weight][key][kept], reference.state[other][key][kept]
            )


def test_a_dropped_and_regrown_weight_starts_afresh_too() -> None:
    model = nn.Linear(4, 1, bias=False)
    plan = Rewiring(
        total_steps=10,
        interval=2,
        stop=1.0,
        grow=lambda weight, gradient, mask, generator: mask.float(),
        prune_fraction=1.0,
        schedule="constant",
    )
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology.attach(optimizer)
    mask = topology.masks["weight"]
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    assert torch.equal(mask, topology.masks["weight"]), "the same positions were grown again"
    assert not bool(model.weight.any())
    assert not bool(optimizer.state[model.weight]["momentum_buffer"].any())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_growth_sees_the_raw_gradient_whatever_is_done_to_grad(set_to_none: Any) -> None:
    model = mlp()
    score, plan = recorded()
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    for step in range(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(model, step).backward()
        raw = [p.grad.clone() for p in weights(topology)]
        for p in model.parameters():
            p.grad.mul_(-3).add_(1)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        score.gradients.clear()
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(raw, score.gradients, strict=True))


def test_growth_can_see_the_corrected_gradient() -> None:
    model = mlp()
    score, plan = recorded(signal="corrected")
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    loss_of(model).backward()
    for p in model.parameters():
        p.grad.mul_(-3).add_(1)
    optimizer.step()
    for weight, seen in zip(weights(topology), score.gradients, strict=True):
        assert torch.equal(weight.grad, seen)


@pytest.mark.parametrize("replaces_step", [True, False])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulated_gradients_are_summed_raw(replaces_step: Any, set_to_none: Any) -> None:
    model = mlp()
    score, plan = recorded(interval=2, replaces_step=replaces_step)
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    for step in range(4):
        optimizer.zero_grad(set_to_none=set_to_none)
        raw = [torch.zeros_like(p) for p in weights(topology)]
        for micro in range(3):
            before = [
                torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in weights(topology)
            ]
            loss_of(model, 10 * step + micro).backward()
            for total, p, old in zip(raw, weights(topology), before, strict=True):
                total += p.grad - old
                p.grad.add_(0.5)  # a correction after every backward
        score.gradients.clear()
        optimizer.step()
        if step % 2:
            assert topology.num_rewirings == (step + 1) // 2
            for total, seen in zip(raw, score.gradients, strict=True):
                torch.testing.assert_close(total, seen)
        else:
            assert score.gradients == []


@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_abandoned_gradient_leaves_no_trace(set_to_none: bool) -> None:
    model = mlp()
    score, plan = recorded()
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    (loss_of(model, 1) * 1e30 * 1e30).backward()  # overflows
    optimizer.zero_grad(set_to_none=set_to_none)
    loss_of(model, 2).backward()
    raw = [p.grad.clone() for p in weights(topology)]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(raw, score.gradients, strict=True))


def test_a_gradient_that_stops_coming_is_not_taken_from_memory() -> None:
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    topology = Topology(model, sparsity=0.5, rewiring=rigl(40, interval=1, replaces_step=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    masks = dict(topology.masks)
    (model["a"](torch.rand(2, 6)).sum() + model["b"](torch.rand(2, 6)).sum()).backward()
    optimizer.zero_grad()
    model["a"](torch.rand(2, 6)).square().sum().backward()
    optimizer.step()
    assert torch.equal(masks["b.weight"], topology.masks["b.weight"])
    assert not torch.equal(masks["a.weight"], topology.masks["a.weight"])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("replaces_step", [False, True])
def test_a_step_skipped_by_the_gradient_scaler_is_not_counted(
    fused: Any, replaces_step: Any
) -> None:
    model = mlp()
    score, plan = recorded(interval=2, replaces_step=replaces_step)
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    topology.attach(optimizer)

    def step(seed: Any, factor: Any = 1.0) -> None:
        optimizer.zero_grad()
        scaler.scale(loss_of(model, seed) * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    step(0)
    assert topology.num_steps == 1
    masks, kept = dict(topology.masks), snapshot(model, optimizer)[0]
    step(1, math.inf)
    assert (topology.num_steps, topology.num_rewirings) == (1, 0)
    assert all(topology.masks[n] is masks[n] for n in masks)
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters())
    assert all(p.grad is not None for p in model.parameters())
    scale = scaler.get_scale()
    optimizer.zero_grad()
    scaler.scale(loss_of(model, 2)).backward()
    raw = [p.grad.clone() for p in weights(topology)]
    scaler.step(optimizer)
    scaler.update()
    assert scale == 512.0
    assert (topology.num_steps, topology.num_rewirings) == (2, 1)
    assert all(torch.equal(a, b) for a, b in zip(raw, score.gradients, strict=True))
    if replaces_step:
        bias = dict(model.named_parameters())["0.bias"]
        assert torch.equal(bias, kept["0.bias"])
    assert topology.verify() == []


def test_a_closure_works_and_cannot_be_replaced() -> None:
    model = mlp()
    topology = Topology(model, sparsity=0.5, rewiring=rigl(40, interval=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology.attach(optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    assert optimizer.step(closure).detach() > 0
    bias = model[0].bias.detach().clone()
    with pytest.warns(UserWarning, match="replaces_step has no effect on a step with a closure"):
        optimizer.step(closure=closure)
    assert not torch.equal(bias, model[0].bias), "the step was taken"
    assert topology.num_rewirings == 1
    optimizer.step(closure)
    optimizer.step(closure)  # warns once only
    assert topology.num_rewirings == 2
    assert topology.verify() == []


def test_lbfgs_does_not_crash() -> None:
    model = mlp()
    topology = Topology(model, sparsity=0.5, rewiring=set_rewiring(40, interval=2))
    optimizer: Any = torch.optim.LBFGS(model.parameters(), max_iter=3)
    topology.attach(optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    assert topology.num_rewirings == 2
    assert topology.verify() == []


def two_optimizers(model: Any) -> Any:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return matrices, rest


@pytest.mark.parametrize("replaces_step", [False, True])
def test_several_optimizers_count_as_one_step(replaces_step: Any) -> None:
    model = mlp()
    topology = Topology(
        model, sparsity=0.5, rewiring=rigl(40, interval=2, replaces_step=replaces_step)
    )
    one: Any = torch.optim.Muon([model[0].weight], lr=0.01)
    two = torch.optim.AdamW([model[2].weight, model[0].bias, model[2].bias], lr=0.01)
    topology.attach(one, two)
    for step in range(4):
        model.zero_grad()
        loss_of(model, step).backward()
        biases = model[0].bias.detach().clone(), model[2].bias.detach().clone()
        before = topology.num_steps, dict(topology.masks)
        first = model[0].weight.detach().clone()
        one.step()
        due = step % 2 == 1
        assert (topology.num_steps, dict(topology.masks)) == before
        assert torch.equal(first, model[0].weight) == (due and replaces_step)
        assert not bool(model[0].weight[~topology.masks["0.weight"]].any())
        two.step()
        assert topology.num_steps == step + 1
        assert torch.equal(biases[0], model[0].bias) == (due and replaces_step)
        assert torch.equal(biases[1], model[2].bias) == (due and replaces_step)
        assert topology.verify() == []
    assert topology.num_rewirings == 2
    state = two.state[model[2].weight]
    assert not bool(state["exp_avg"][~topology.masks["2.weight"]].any())


def test_an_optimizer_of_other_parameters_of_the_model_may_be_listed() -> None:
    model = mlp()
    matrices, rest = two_optimizers(model)
    topology = Topology(model, sparsity=0.5, rewiring=rigl(40, interval=1))
    one, two = torch.optim.SGD(matrices, lr=0.1), torch.optim.SGD(rest, lr=0.1)
    topology.attach(one, two)
    bias = model[0].bias.detach().clone()
    loss_of(model).backward()
    one.step()
    two.step()
    assert torch.equal(bias, model[0].bias)
    assert topology.num_rewirings == 1


def test_what_cannot_be_attached_is_refused() -> None:
    model = mlp()
    matrices, rest = two_optimizers(model)
    topology = Topology(model, sparsity=0.5)
    with pytest.raises(ValueError, match=r"no attached optimizer trains 0\.weight, 2\.weight"):
        topology.attach(torch.optim.SGD(rest, lr=0.1))
    with pytest.raises(ValueError, match=r"no attached optimizer trains 2\.weight; attach every"):
        topology.attach(torch.optim.SGD(matrices[:1], lr=0.1))
    with pytest.raises(ValueError, match=r"no attached optimizer trains 0\.weight, 2\.weight"):
        topology.attach()
    good = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.AdamW(mlp().parameters())
    for optimizers in ((other,), (good, other)):
        with pytest.raises(ValueError, match=r"AdamW trains none of .* \(0\.weight, 2\.weight\)"):
            topology.attach(*optimizers)
    with pytest.raises(ValueError, match="the same optimizer is listed twice"):
        topology.attach(good, good)
    assert not good._optimizer_step_post_hooks, "a refused attachment leaves no hook behind"
    topology.attach(good)
    with pytest.raises(ValueError, match="this topology is attached already"):
        topology.attach(good)


def test_a_removed_attachment_does_nothing_and_another_may_follow() -> None:
    model = mlp()
    topology = Topology(model, sparsity=0.5, rewiring=rigl(40, interval=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with topology.attach(optimizer) as handle:
        loss_of(model).backward()
        optimizer.step()
    handle.remove()
    assert (topology.num_steps, topology.num_rewirings) == (1, 1)
    loss_of(model).backward()
    optimizer.step()
    assert topology.num_steps == 1
    assert len(topology.verify()) == 2
    assert not model[0].weight._backward_hooks
    topology.attach(optimizer)
    assert topology.verify() == []
    loss_of(model).backward()
    optimizer.step()
    assert topology.num_steps == 2


def test_nothing_is_kept_alive_by_the_hooks() -> None:
    model = mlp()
    topology = Topology(model, sparsity=0.5, rewiring=rigl(40, interval=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    gone = [weakref.ref(thing) for thing in (model, topology, optimizer)]
    del model, topology, optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_the_work_in_the_step_is_measured() -> None:
    parts = []

    def measure(part: Any, /, *, samples: Any = 0.0, forwards: Any = 0, backwards: Any = 0) -> Any:
        parts.append(part)
        return contextlib.nullcontext()

    model = mlp()
    topology = Topology(model, sparsity=0.5, rewiring=rigl(40, interval=2), measure=measure)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    for _ in range(2):
        loss_of(model).backward()
        optimizer.step()
    assert parts == ["topology"] * 3  # one step hook, and both hooks of the replaced step


def test_gradients_stay_dense_for_the_user() -> None:
    model = mlp()
    topology = Topology(model, sparsity=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    model(torch.rand(64, 8)).sum().backward()
    optimizer.step()
    assert int(model[2].weight.grad.count_nonzero()) > topology.plan["2.weight"]


def test_schedulers_and_clipping_work_beside_a_replaced_step() -> None:
    model = mlp()
    topology = Topology(model, sparsity=0.5, rewiring=rigl(40, interval=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    loss_of(model).backward()
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_gradient_taken_before_backward_does_not_count() -> None:
    model = mlp()
    score, plan = recorded()
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    torch.autograd.grad(loss_of(model, 3), list(weights(topology)))
    loss_of(model, 4).backward()
    raw = [p.grad.clone() for p in weights(topology)]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(raw, score.gradients, strict=True))


def test_a_tied_weight_is_masked_once_and_sees_both_gradients() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    model[2].weight = model[0].weight
    score, plan = recorded()
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    assert list(topology.masks) == ["0.weight"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    loss_of(model).backward()
    raw = model[0].weight.grad.clone()
    optimizer.step()
    assert torch.equal(raw, score.gradients[0])
    assert topology.verify() == []


@pytest.mark.parametrize("module", ["attention", "gru", "channels_last"])
def test_other_kinds_of_layers_train_under_a_rewiring(module: Any) -> None:
    torch.manual_seed(0)
    if module == "attention":
        model: Any = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        x = torch.rand(3, 5, 8)
    elif module == "gru":
        model = nn.GRU(8, 6, num_layers=2, batch_first=True)
        x = torch.rand(3, 5, 8)
    else:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        model = model.to(memory_format=torch.channels_last)
        x = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    topology = Topology(model, sparsity=0.7, rewiring=rigl(40, interval=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    topology.attach(optimizer)
    first = dict(topology.masks)
    for _ in range(4):
        optimizer.zero_grad()
        out = model(x)
        (out[0] if isinstance(out, tuple) else out).square().mean().backward()
        optimizer.step()
        assert topology.verify() == []
    assert topology.num_rewirings == 2
    assert any(not torch.equal(first[n], topology.masks[n]) for n in first)


def test_gradient_growth_takes_the_largest_gradients() -> None:
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    plan = Rewiring(
        total_steps=10,
        interval=1,
        grow=gradient_magnitude,
        prune_fraction=0.5,
        stop=1.0,
        schedule="constant",
    )
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    topology.attach(optimizer)
    inactive = (~topology.masks["weight"]).nonzero()[:, 1]
    x = torch.ones(1, 4)
    x[0, inactive[1]] = 5.0
    model(x).sum().backward()
    optimizer.step()
    assert bool(topology.masks["weight"][0, inactive[1]])
    assert not bool(topology.masks["weight"][0, inactive[0]])
