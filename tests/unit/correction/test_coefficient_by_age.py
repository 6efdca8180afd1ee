"""What a coefficient by age does with the evidence that it is given."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import AgeAdaptive, Constant, GradientCorrector
from equipoise.correction.moments import Moments
from equipoise.topology import Topology, set_rewiring


def feed(moments: Moments, cov: float, n: int = 400, noise: float = 1.0, seed: int = 0) -> None:
    """Steps whose true coefficient is `cov`, with two parameters."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        b = torch.rand(2, generator=generator, dtype=torch.float64) + 0.5
        a = cov * b + noise * torch.randn(2, generator=generator, dtype=torch.float64)
        moments.observe(a, b, 2 * torch.ones(2, dtype=torch.float64))


def moments(**more: Any) -> Moments:
    return Moments(2, torch.device("cpu"), **more)


@pytest.mark.parametrize("cov", [0.2, 0.5, 0.9])
def test_the_coefficient_is_a_lower_bound_that_closes_with_the_noise(cov: float) -> None:
    """Property 10, and 4.4 of the rules: standard errors in place of a factor."""
    last = 0.0
    for noise in (1.0, 0.1, 0.001):
        found = moments(decay=0.99)
        feed(found, cov, noise=noise)
        used = found.values()
        assert bool((used <= cov + 0.03).all())
        assert float(used.sum()) > last
        last = float(used.sum())
    assert last == pytest.approx(2 * cov, abs=1e-3)


def test_noise_and_negative_correlation_give_exactly_0() -> None:
    below = [moments() for _ in range(20)]
    for seed, one in enumerate(below):
        feed(one, -0.5, noise=0.5, seed=seed)
    assert all(one.values().tolist() == [0.0, 0.0] for one in below)
    shares = []
    for seed in range(60):
        one = moments(decay=0.9, confidence=2.0)
        feed(one, 0.0, n=60, seed=seed)
        shares.append(float((one.values() == 0.0).double().mean()))
    assert sum(shares) / len(shares) > 0.85


def test_identical_gradients_give_exactly_1() -> None:
    one = moments()
    for b in (1.0, 3.0, 0.2):
        t = torch.tensor([b, 2 * b], dtype=torch.float64)
        one.observe(t, t, t)
    assert one.values().tolist() == [1.0, 1.0]
    assert one.evidence().rho_squared == pytest.approx(1.0)
    assert one.evidence().variance_ratio == pytest.approx(0.0)


def test_parameters_are_drawn_towards_the_network() -> None:
    def used(prior: float) -> list[float]:
        one = moments(prior=prior, confidence=0.0)
        for _ in range(3):
            one.observe(
                torch.tensor([0.0, 100.0], dtype=torch.float64),
                torch.tensor([1.0, 200.0], dtype=torch.float64),
                torch.ones(2, dtype=torch.float64),
            )
        return one.values().tolist()

    assert used(0.0) == pytest.approx([0.0, 0.5])
    alone, drawn = used(0.0)[0], used(4.0)[0]
    assert alone < drawn < used(1e9)[0] == pytest.approx(100 / 201)


def test_the_predicted_variance_is_that_of_the_formula() -> None:
    """Property 7: R(c) = 1 - (2 c A - c^2 B) / S."""
    one = moments()
    feed(one, 0.5, noise=0.0)
    for c in (0.0, 0.1, 0.5, 1.0):
        b = one.old_variance
        assert one.evidence(c).variance_ratio == pytest.approx(1 - (2 * c * 0.5 - c * c) * b / 4)
    best = one.evidence().rho_squared
    assert one.evidence(0.5).variance_ratio == pytest.approx(1 - best)


def test_ages_have_evidence_of_their_own_and_younger_ones_stand_in() -> None:
    coefficient = AgeAdaptive(confidence=0.0)
    one = torch.ones(1, dtype=torch.float64)
    for _ in range(4):
        coefficient.advance()
        for age, slope in enumerate((1.0, 0.8, 0.4)):
            coefficient.plan(1)
            coefficient.watch(slope * one, one, one, one)
            assert age < 3
    coefficient.advance()
    planned = [coefficient.plan(1) for _ in range(5)]
    values = [float(p) for p in planned if p is not None]
    assert values == pytest.approx([1.0, 0.8, 0.4, 0.4, 0.4])


def test_age_is_the_sum_of_the_learning_rates() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    coefficient = AgeAdaptive(optimizer)
    coefficient.advance()
    for rate in (0.1, 0.01):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.ones(1)
        optimizer.step()
        coefficient.plan(1)
    assert coefficient._age == pytest.approx(0.11)


def test_after_a_rewiring_old_evidence_does_not_count_until_the_next_refresh() -> None:
    coefficient = AgeAdaptive(confidence=0.0)
    one = torch.ones(1, dtype=torch.float64)
    for _ in range(3):
        coefficient.advance()
        for _ in range(3):
            coefficient.plan(1)
            coefficient.watch(0.7 * one, one, one, one)
    coefficient.advance()
    coefficient.plan(1)
    before = coefficient.plan(1)
    coefficient.rewired()
    after = coefficient.plan(1)
    assert before is not None
    assert after is not None
    assert (float(before), float(after)) == (pytest.approx(0.7), 0.0)
    coefficient.advance()
    coefficient.plan(1)
    again = coefficient.plan(1)
    assert again is not None
    assert float(again) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("rho_squared", "cost", "left_out"), [(0.4, 1.0, True), (0.6, 1.0, False), (0.4, 0.1, False)]
)
def test_the_gate_follows_the_break_even_rule_and_looks_again(
    rho_squared: float, cost: float, left_out: bool
) -> None:
    coefficient = AgeAdaptive(gate=True, old_pass_cost=cost)
    one = torch.ones(1, dtype=torch.float64)
    passes = []
    for _ in range(60):
        coefficient.advance()
        assert not coefficient.idle  # since there is an age at which the old pass pays
        for share in (1.0, 0.9, rho_squared):
            planned = coefficient.plan(1)
            if planned is not None:
                coefficient.watch(share * one, share * one, one, one)
        passes.append(planned is not None)
    assert (sum(passes[20:]) < 40) == left_out
    if left_out:
        assert 4 <= sum(passes[20:]) <= 7  # one in seven looks again
        assert coefficient.skipped == 60 - sum(passes)


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def test_a_gated_step_is_a_plain_step_bit_for_bit() -> None:
    """Property 23."""

    class Never(AgeAdaptive):
        def plan(self, num_groups: int) -> Tensor | None:
            return None

    results = []
    for coefficient in (Never(), Constant(0.0)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 1))
        corrector = GradientCorrector(model, lambda x: model(x).square().mean(), coefficient)  # noqa: B023
        batches = [torch.randn(8, 4) for _ in range(3)]
        corrector.refresh(batches)
        torch.manual_seed(1)
        for batch in batches:
            corrector.backward(batch)
        results.append([*gradients(model), *model.buffers(), torch.get_rng_state()])
    assert all(map(torch.equal, *results))


def rests(coefficient: AgeAdaptive, pays: list[bool]) -> str:
    """Refreshes that are made (R) or left out (-), given whether old passes would pay then."""
    one = torch.ones(1, dtype=torch.float64)
    found = ""
    for useful in pays:
        coefficient.advance()
        found += "-" if coefficient.idle else "R"
        if coefficient.idle:
            continue
        share = 0.9 if useful else 0.1
        for _ in range(30):
            if coefficient.plan(1) is not None:
                coefficient.watch(share * one, share * one, one, one)
    return found


def test_after_an_interval_of_no_use_refreshes_are_left_out_for_longer_and_longer() -> None:
    coefficient = AgeAdaptive(gate=True)
    pattern = rests(coefficient, [False] * 34)
    early = pattern.index("-")
    assert early < 5  # as soon as there is some evidence about most ages
    assert pattern[early:] == "-R--R----R--------R--------R--------"[: len(pattern) - early]
    assert coefficient.rested == pattern.count("-")
    assert rests(AgeAdaptive(gate=True), [True] * 30) == "R" * 30
    assert rests(AgeAdaptive(gate=False), [False] * 30) == "R" * 30


def test_a_retry_that_is_of_use_ends_the_rest() -> None:
    coefficient = AgeAdaptive(gate=True)
    for _ in range(40):
        if coefficient.idle:
            break
        rests(coefficient, [False])
    assert rests(coefficient, [False, False, False]) == "R--"
    later = rests(coefficient, [True] * 30)
    assert later.endswith("R" * 10)
    assert coefficient._patience == 0
    again = rests(coefficient, [False] * 40)
    assert again.lstrip("R").startswith("-R--R")  # from the start


class Declined(AgeAdaptive):
    """Old passes never pay, once anything is known."""

    def _pays(self, found: Any) -> bool:
        return False


def gated(dropout: float = 0.3) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    coefficient = Declined(optimizer, gate=True)
    return (
        model,
        optimizer,
        GradientCorrector(model, lambda x: model(x).square().mean(), coefficient),
    )


def gated_steps(parts: Any, first: int, last: int) -> list[int]:
    """Trains, four steps an epoch; says at which steps a refresh went over the data."""
    _, optimizer, corrector = parts
    batches = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    made = []

    def told(step: int) -> Any:
        made.append(step)
        yield from batches

    for step in range(first, last):
        if step % 4 == 0:
            corrector.refresh(told(step))
        optimizer.zero_grad()
        corrector.backward(batches[step % 4])
        optimizer.step()
    return made


def test_a_refresh_that_is_left_out_makes_no_pass_and_its_steps_are_plain() -> None:
    parts = gated()
    made = gated_steps(parts, 0, 80)
    assert len(made) < 10
    assert parts[2].coefficient.rested == 20 - len(made)
    while not parts[2].coefficient.idle:
        parts[2].refresh([torch.ones(16, 8)])
    assert parts[2].coefficient_value == 0.0
    model, _, corrector = parts
    other = copy.deepcopy(model)
    batch = torch.randn(16, 8)
    found = []
    for net, step in ((model, corrector.backward), (other, None)):
        net.zero_grad()
        torch.manual_seed(1)
        if step is None:
            torch.autograd.backward(net(batch).square().mean())
        else:
            step(batch)
        found.append([*gradients(net), *net.buffers(), torch.get_rng_state()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("stop", range(9, 50, 3))
def test_a_rest_is_resumed_bit_for_bit(stop: int) -> None:
    one, two = gated(0.0), gated(0.0)
    before = gated_steps(one, 0, stop)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in one], file)
    file.seek(0)
    for part, state in zip(two, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    after = gated_steps(one, stop, 80)
    assert gated_steps(two, stop, 80) == after
    assert len(before + after) < 10
    assert all(map(torch.equal, one[0].state_dict().values(), two[0].state_dict().values()))
    assert one[2].coefficient.state_dict().keys() == two[2].coefficient.state_dict().keys()
    assert one[2].coefficient.rested == two[2].coefficient.rested > 10


def mismatched(mismatch: Any, shift: float) -> tuple[float, AgeAdaptive]:
    """Distance from the minimum where the full gradient is off by `shift`."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    targets = 2 * torch.randn(160, dtype=torch.float64)
    targets -= targets.mean()
    batches = list(targets.split(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    coefficient = AgeAdaptive(optimizer, mismatch=mismatch)
    corrector = GradientCorrector(
        model, lambda t: (model.weight - t).square().mean() / 2, coefficient
    )
    generator = torch.Generator().manual_seed(2)
    for _ in range(40):
        corrector.refresh([b + shift for b in batches])
        for i in torch.randperm(40, generator=generator).tolist():
            optimizer.zero_grad()
            corrector.backward(batches[i])
            optimizer.step()
    return float(model.weight.detach().abs()), coefficient


def test_a_full_gradient_of_other_batches_is_noticed() -> None:
    """Properties 12 and 15: with a mismatch neither shrinking nor recentring follows it."""
    exact, _ = mismatched("shrink", 0.0)
    assert exact < 1e-2  # nothing is taken for a mismatch where there is none
    for mismatch in ("shrink", "recentre"):
        found, _ = mismatched(mismatch, 2.0)
        assert found < 0.7  # a coefficient of 1 would end at 2


def small(rewire: bool) -> tuple[nn.Module, Topology, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    rewiring = set_rewiring(1000, interval=4) if rewire else None
    topology = Topology(model, sparsity=0.5, rewiring=rewiring)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    topology.attach(optimizer)
    corrector = GradientCorrector(
        model, lambda x: model(x).square().mean(), AgeAdaptive(optimizer), topology=topology
    )
    return model, topology, optimizer, corrector


def test_only_weights_active_at_both_times_are_corrected() -> None:
    """The hazard, with masks on dense tensors."""
    model, topology, _, corrector = small(rewire=False)
    batches = [torch.randn(16, 8) for _ in range(4)]
    corrector.coefficient = Constant(1.0)
    corrector.refresh(batches)
    before = topology.masks["0.weight"]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    grown = torch.zeros_like(before)
    grown.view(-1)[(~before).flatten().nonzero()[:3]] = True
    dropped = torch.zeros_like(before)
    dropped.view(-1)[before.flatten().nonzero()[:3]] = True
    topology._weights["0.weight"].replace_((before | grown) & ~dropped, grown, ())
    corrected: list[Tensor] = []
    plain: list[Tensor] = []
    for coefficient, into in ((Constant(1.0), corrected), (Constant(0.0), plain)):
        corrector.coefficient = coefficient
        model.zero_grad()
        corrector.backward(batches[0])
        into.extend(gradients(model))
    moved = corrected[0] != plain[0]
    assert bool(moved.any())
    assert not bool((moved & ~(before & topology.masks["0.weight"])).any())


def test_a_state_round_trip_mid_epoch_continues_bit_for_bit() -> None:
    """Property 26, with rewirings between refreshes."""
    batches = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(6)]

    def steps(parts: Any, first: int, last: int) -> None:
        _, _, optimizer, corrector = parts
        for step in range(first, last):
            if step % 6 == 0:
                corrector.refresh(batches)
            optimizer.zero_grad()
            corrector.backward(batches[step % 6])
            optimizer.step()

    one, two = small(rewire=True), small(rewire=True)
    steps(one, 0, 22)
    file = io.BytesIO()
    torch.save([one[i].state_dict() for i in (0, 2, 3, 1)], file)
    steps(one, 22, 40)
    file.seek(0)
    for i, state in zip((0, 2, 3, 1), torch.load(file, weights_only=True), strict=True):
        two[i].load_state_dict(state)
    steps(two, 22, 40)
    assert all(map(torch.equal, one[0].state_dict().values(), two[0].state_dict().values()))
    assert one[3].coefficient.by_age() == two[3].coefficient.by_age()


def test_a_dead_channel_warns_once_and_does_no_harm() -> None:
    """The hazard built: after growth into a channel without variance old gradients explode."""
    torch.manual_seed(0)
    first = nn.Linear(4, 3, bias=False)
    model = nn.Sequential(first, nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    with torch.no_grad():
        first.weight[1] = 1e-7 * torch.randn(4)  # hardly alive: BatchNorm multiplies by 316
    batches = [torch.randn(16, 4).double() for _ in range(8)]
    corrector = GradientCorrector(
        model, lambda x: (model(x).squeeze() - x.sum(1)).square().mean(), AgeAdaptive()
    )
    corrector.refresh(batches)
    corrector.backward(batches[0])
    with torch.no_grad():
        first.weight[1] = torch.randn(4).double()  # by now the channel is alive
    plain = copy.deepcopy(model)

    def walk() -> None:
        for batch in batches[1:]:
            model.zero_grad()
            corrector.backward(batch)

    with pytest.warns(RuntimeWarning, match="channels that are nearly dead") as caught:
        walk()
    assert len(caught) == 1
    torch.autograd.backward((plain(batches[7]).squeeze() - batches[7].sum(1)).square().mean())
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert float((p.grad - q.grad).norm()) < 0.2 * float(q.grad.norm()) + 0.05


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"decay": 1.0}, "decay is in"),
        ({"confidence": -1.0}, "confidence is a finite number"),
        ({"prior": float("inf")}, "prior is a finite number"),
        ({"old_pass_cost": 0.0}, "old_pass_cost is the cost"),
        ({"mismatch": "ignore"}, "mismatch is 'shrink' or 'recentre'"),
    ],
)
def test_mistakes_get_one_sentence(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AgeAdaptive(**arguments)
