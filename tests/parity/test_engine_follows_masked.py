"""A training in the engine is the training on masked weights, but for rounding.

Two sums of the same numbers in another order differ in the last bits. Training amplifies that: a
network that learns fast moves apart after some dozen steps, whoever computes it. So what must hold
is told step by step, from the same state each time, at a tight tolerance; and for trainings that
run freely, where the network is small enough to stay together, and otherwise by their results.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise import to_dense
from equipoise.correction import NoCorrection
from equipoise.data import Dataset, load_dataset, synthetic
from equipoise.engine.layers import SparseLayer
from equipoise.engine.library import unavailable_because

toy: Any = import_module("tests.unit.training.toy")
layers: Any = import_module("tests.unit.topology.compact_layers")

missing = unavailable_because()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))

SMALL = {
    "model": "small_cnn",
    "width": 0.25,
    "sparsity": 0.9,
    "batch_size": 16,
    "train_samples": 256,
    "epochs": 13,
    "learning_rate": 0.02,
}
LARGE: dict[str, dict[str, Any]] = {
    "vgg16": {"model": "vgg16", "width": 0.125},
    "resnet18": {"model": "resnet18", "width": 0.125},
    "wrn_22_2 with dropout": {"model": "wrn_22_2", "width": 0.25, "dropout": 0.3},
    "small_cnn, channels last": {"model": "small_cnn", "channels_last": True},
    "mlp by half": {"model": "mlp", "width": 0.2, "sparsity": 0.5},
}
STEPS = 15
TOPOLOGIES = ("static", "set", "rigl", "set_itop", "rigl_itop")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nothing is timed either, so that nothing depends on how busy the machine is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with toy.untimed():
        yield
    torch.set_num_threads(before)


def pair(data: Dataset | None = None, **changes: Any) -> tuple[Any, Any]:
    """The same run on masked weights and in the engine."""
    masked, engine = (toy.session(data, engine=kind, **changes) for kind in ("dense", "sparse"))
    assert not masked.uses_engine
    assert engine.uses_engine
    assert any(isinstance(m, SparseLayer) for m in engine.model.modules())
    return masked, engine


def digits() -> Dataset:
    found: Dataset = load_dataset("digits")
    return found


def losses(session: Any, count: int) -> Iterator[float]:
    """The losses of the next steps, whatever epochs they are in."""
    while True:
        toy.begin_epoch(session)
        for group in session.batches():
            before, size = float(session._loss_sum), sum(batch.size for batch in group)
            session.train_step(group)
            yield (float(session._loss_sum) - before) / size
            count -= 1
            if count == 0:
                return
        session.finish_epoch()


def masks(session: Any) -> dict[str, Tensor]:
    return dict(session.topology.masks)


def synchronise(masked: Any, engine: Any) -> None:
    """Gives the engine the weights, statistics, masks and momenta of the masked run."""
    engine.topology.load_state_dict(masked.topology.state_dict())
    own = dict(engine.model.named_parameters()) | dict(engine.model.named_buffers())
    weights = masked.topology.parameters
    for name, tensor in (*masked.model.named_parameters(), *masked.model.named_buffers()):
        twin = own.get(name)
        if twin is None:
            twin = own[name.replace("weight", "values")]
            index = own[name.replace("weight", "index")]
            assert name in weights
            copy_entries(twin, tensor, index)
            copy_momentum(masked, engine, tensor, twin, index)
        else:
            twin.data.copy_(tensor.data)
            copy_momentum(masked, engine, tensor, twin, None)


def copy_entries(compact: Tensor, dense: Tensor, index: Tensor | None) -> None:
    compact.data.copy_(dense.data if index is None else dense.data.flatten()[index])


def copy_momentum(masked: Any, engine: Any, a: Tensor, b: Tensor, index: Tensor | None) -> None:
    for key, value in masked.optimizer.state.get(a, {}).items():
        copy_entries(engine.optimizer.state[b][key], value, index)


def largest_difference(masked: Any, engine: Any) -> float:
    """Of any weight, relative to the largest of its layer."""
    a, b = (layers.dense_weights(s.topology) for s in (masked, engine))
    return max(
        float((a[n] - b[n]).abs().max()) / max(1e-3, float(a[n].abs().max()))
        for n in a
        if a[n].numel()
    )


def statistics_differ(masked: Any, engine: Any) -> float:
    """Of any running statistic, relative to the largest of its layer."""
    own = dict(engine.model.named_buffers())
    found = [
        float((b - own[n]).abs().max()) / max(1e-3, float(b.abs().max()))
        for n, b in masked.model.named_buffers()
    ]
    return max(found, default=0.0)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_free_training_stays_on_the_masked_one(topology: str) -> None:
    """Masked runs whose first weights differ in their last bit part at steps 40 to 90, if at all.

    They do so where one value crosses zero before a ReLU; losses then differ by 0.01 to 0.1 and
    accuracies by up to 0.03. The engine may do no worse.
    """
    changes = SMALL | {"topology": topology}
    changes |= {} if topology == "static" else {"interval": 13}
    masked, engine = pair(digits(), **changes)
    assert layers.same(masks(masked), masks(engine))
    assert largest_difference(masked, engine) == 0.0
    alike, apart = 0, []
    for a, b in zip(losses(masked, 200), losses(engine, 200), strict=True):
        apart.append(abs(a - b))
        same = alike == len(apart) - 1 and layers.same(masks(masked), masks(engine))
        alike += int(same)
    assert max(apart[:27]) < 1e-5
    assert alike >= 27  # the first two rewirings chose the same weights
    assert max(apart) < 0.3
    assert (masked.step, masked.topology.num_rewirings) == (
        engine.step,
        engine.topology.num_rewirings,
    )
    assert masked.topology.num_rewirings >= (0 if topology == "static" else 12)
    scores = [s._score(s.images.test).accuracy for s in (masked, engine)]
    assert min(scores) > 0.5
    # Three standard errors of a difference between two accuracies near 0.8 on 355 images are 0.09.
    assert abs(scores[0] - scores[1]) < 0.09
    assert engine.topology.verify() == []
    rates = [s.topology.exploration_rate for s in (masked, engine)]
    assert rates[0] == pytest.approx(rates[1], abs=0.01)


@pytest.mark.parametrize("topology", ["set", "rigl"])
@pytest.mark.parametrize("network", LARGE)
def test_every_step_is_the_masked_one(network: str, topology: str) -> None:
    """Each from the same state: loss, all weights, statistics, random numbers and rewirings."""
    changes = {"topology": topology, "interval": 7, "sparsity": 0.9, "learning_rate": 0.02}
    changes |= {"batch_size": 8, "epochs": 10, "augment": "no"}
    side = 32 if network in ("vgg16", "resnet18", "wrn_22_2 with dropout") else 8
    data = synthetic(num_train=96, num_test=8, image_size=side, channels=3)
    masked, engine = pair(data, **(changes | LARGE[network]))
    both = losses(masked, STEPS), losses(engine, STEPS)
    differing = chosen = 0
    apart: list[float] = []
    for step in range(STEPS):
        state = torch.get_rng_state()
        a = next(both[0])
        drawn = torch.get_rng_state()
        torch.set_rng_state(state)
        b = next(both[1])
        assert torch.equal(torch.get_rng_state(), drawn)
        assert abs(a - b) < 1e-5 * max(1.0, abs(a)), step
        differing += sum(int((m != masks(engine)[n]).sum()) for n, m in masks(masked).items())
        assert statistics_differ(masked, engine) < 1e-5, step
        if layers.same(masks(masked), masks(engine)):
            apart.append(largest_difference(masked, engine))
        chosen += masked.topology.num_active
        synchronise(masked, engine)
    assert masked.topology.num_rewirings == engine.topology.num_rewirings == STEPS // 7
    # Where rounding puts a value on the other side of a ReLU, its gradient is there or is not.
    assert sum(each > 1e-5 for each in apart) <= 3
    assert max(apart) < 1e-2
    # Weights or gradients that are nearly alike may change places.
    assert differing < 1e-3 * chosen / STEPS * masked.topology.num_rewirings


@pytest.mark.parametrize("corrector", ["agent", "no_gamma", "svrg"])
def test_corrected_trainings_agree_until_the_first_rewiring(corrector: str) -> None:
    """After it the masked run also corrects what grew since the snapshot; the cost stays equal."""
    changes = SMALL | {"topology": "set", "interval": 40, "corrector": corrector, "epochs": 4}
    masked, engine = pair(digits(), **changes)
    values = set()
    for step, (a, b) in enumerate(zip(losses(masked, 64), losses(engine, 64), strict=True), 1):
        used = masked.corrector.coefficient_value
        if step <= 40:
            assert a == pytest.approx(b, abs=1e-5)
            assert engine.corrector.coefficient_value == pytest.approx(used, abs=1e-5)
            values.add(used)
        # The refresh of the fourth epoch, at step 49, sees the weights that the rewiring chose.
        assert engine.corrector.coefficient_value == pytest.approx(used, abs=0.1)
    assert masked.topology.num_rewirings == engine.topology.num_rewirings == 1
    assert values == {1.0} if corrector == "svrg" else len(values) == 3
    records = [toy.without_time(session.finish_epoch()) for session in (masked, engine)]
    for name in ("data_passes", "forward_samples", "backward_samples", "training_flops"):
        assert records[0][name] == records[1][name]
    assert records[0]["data_passes"] == pytest.approx(12 if corrector == "svrg" else 1 + 3 * 10 / 3)


@pytest.mark.parametrize("topology", ["set", "rigl"])
def test_after_a_rewiring_the_correction_changes_no_mean(topology: str) -> None:
    changes = SMALL | {"topology": topology, "interval": 3, "corrector": "svrg"}
    _, engine = pair(digits(), **changes)
    toy.begin_epoch(engine)
    groups = list(engine.batches())
    for group in groups[:7]:
        engine.train_step(group)
    assert engine.topology.num_rewirings == 2
    plain = NoCorrection(engine.model, engine.corrector.loss_fn)
    names = [name for name in dict(engine.model.named_parameters()) if name.endswith("values")]
    means = {}
    for kind, corrector in (("plain", plain), ("corrected", engine.corrector)):
        gradients = [gradient(engine, corrector, group[0]) for group in groups]
        means[kind] = {n: torch.stack([g[n] for g in gradients]).mean(dim=0) for n in gradients[0]}
        if kind == "plain":
            first = gradients[0]
        else:
            changed = {n: gradients[0][n] != first[n] for n in names}
    for name, mean in means["plain"].items():
        assert float((means["corrected"][name] - mean).abs().max()) < 2e-6, name
    for name in names:
        layer = engine.model.get_submodule(name.removesuffix(".values"))
        kept = torch.isin(layer.index, engine.corrector.positions[name])
        assert not bool(changed[name][~kept].any())
        assert bool(changed[name][kept].any())
    assert sum(int((~torch.isin(i, now(engine, n))).sum()) for n, i in positions(engine)) > 20


def positions(session: Any) -> Any:
    return session.corrector.positions.items()


def now(session: Any, name: str) -> Tensor:
    index: Tensor = session.model.get_submodule(name.removesuffix(".values")).index
    return index


def gradient(session: Any, corrector: Any, batch: Any) -> dict[str, Tensor]:
    session.optimizer.zero_grad()
    corrector.backward(batch)
    return {n: p.grad.clone() for n, p in session.model.named_parameters() if p.grad is not None}


MANY: dict[str, Any] = import_module("tests.parity.test_plain_loop").OPTIMIZERS
# They mix the numbers of a matrix, or of all parameters, so that zeros count too.
NOT_BY_ELEMENT = {"Adafactor", "LBFGS"}


@pytest.mark.parametrize("optimizer", sorted(MANY.keys() - {"Muon"}))
def test_every_optimizer_trains_the_active_weights(optimizer: str) -> None:
    """Of Muon there is nothing to test: it takes matrices only."""
    data = synthetic(num_train=48, num_test=8)
    masked, engine = pair(data, model="small_cnn", width=0.25, sparsity=0.8, topology="static")
    before = layers.dense_weights(engine.topology)
    for session in (masked, engine):
        session.topology._attachment.remove()
        session.optimizer = MANY[optimizer](session.model)
        session.topology.attach(session.optimizer)
        for batch in islice(session.loader.epoch(0), 2):
            session.optimizer.step(closure(session, batch))
    after = layers.dense_weights(engine.topology)
    assert all(bool(torch.isfinite(w).all()) for w in after.values())
    assert not any(torch.equal(after[n], before[n]) for n in after)
    if optimizer not in NOT_BY_ELEMENT:
        expected = layers.dense_weights(masked.topology)
        off = [~torch.isclose(after[n], w, rtol=1e-3, atol=1e-4) for n, w in expected.items()]
        # Where a gradient is next to nothing, those that divide by it show how it was rounded.
        assert int(sum(o.sum() for o in off)) <= 0.02 * masked.topology.num_active
    for name, parameter in engine.model.named_parameters():
        state = engine.optimizer.state.get(parameter, {})
        kept = [v for v in state.values() if isinstance(v, Tensor) and v.ndim > 0]
        if name.endswith("values") and optimizer != "LBFGS":
            assert all(v.shape == parameter.shape for v in kept), name
            assert parameter.numel() == engine.topology.plan[name.replace("values", "weight")]
    assert engine.topology.verify() == masked.topology.verify() == []


def closure(session: Any, batch: Any) -> Any:
    """Loss and gradient of a batch."""

    def evaluate() -> Tensor:
        session.optimizer.zero_grad()
        loss = F.cross_entropy(session.model(batch.x), batch.y)
        loss.backward()
        return loss

    return evaluate


def test_a_trained_network_is_the_same_one_in_plain_torch() -> None:
    masked, engine = pair(digits(), **SMALL | {"topology": "set", "interval": 5, "epochs": 1})
    for session in (masked, engine):
        toy.all_epochs(session)
    x = next(masked.loader.epoch(0)).x
    plain = to_dense(engine.model)
    assert list(plain.state_dict()) == list(masked.model.state_dict())
    for each in (masked.model, engine.model, plain):
        each.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(x), engine.model(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(plain(x), masked.model(x), rtol=1e-4, atol=1e-4)
