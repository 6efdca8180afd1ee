import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.experiments.families import changed
from equipoise.experiments.store import FoundCell, find
from equipoise.experiments.values import Cell, Experiment, Measure, Scale
from equipoise.paper.evidence import Evidence, Found
from equipoise.paper.reading import (
    accuracy_after,
    baseline_of,
    correlation_of,
    late_correlation,
    log_norm,
    log_seconds,
    mean_accuracy,
    paired,
    relative_passes,
    robust_after,
)
from equipoise.paper.rules import (
    Measured,
    Outcome,
    Pair,
    Verdict,
    above,
    alike,
    all_of,
    below,
    beyond,
    equivalent,
    not_much_below,
    reaches,
    turned,
    verdict_of,
)
from equipoise.paper.special import (
    between,
    explained,
    largest_gain,
    most_saved,
    sooner,
    theorem_1,
    time_ratio,
)
from equipoise.records import epoch_after
from equipoise.reports.statistics import PairedInterval, paired_interval
from equipoise.settings import Run

fake = import_module("tests.unit.paper.fake_store")

RUN = changed(Run(), epochs=10)
MEASURES: tuple[Measure, ...] = ("gradient_norms", "gradient_correlation", "perturbed_gradients")
EXPERIMENT = Experiment(
    name="figure-0",
    title="Two arms",
    quantity="test accuracy",
    cells=lambda scale: tuple(
        Cell(panel=panel, arm=arm, run=run, measures=MEASURES, attacked=(0.5, 1.0))
        for panel, seed in (("VGG-C, SET", 0.9), ("VGG-C, RigL", 0.8))
        for arm, run in (
            (panel.split(", ")[1], changed(RUN, sparsity=seed)),
            (f"A-{panel.split(', ')[1]}", changed(RUN, sparsity=seed, corrector="agent")),
            ("SVRG", changed(RUN, sparsity=seed, corrector="svrg")),
        )
    ),
    budgets=(0.1, 0.5, 1.0),
)
NUMBERS = st.lists(st.floats(-50, 50), min_size=3, max_size=6)


def evidence(store: Path, scale: Scale = "cpu", seeds: int = 3) -> Evidence:
    found = find(EXPERIMENT, scale, range(seeds), [store])
    return Evidence(scale, {"figure-0": Found(EXPERIMENT, scale, tuple(found))})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AGENT is 8 points above plain at twice the passes, SVRG 30 below."""
    folder = tmp_path_factory.mktemp("store")
    gains = {"none": (0.0, 1.0), "agent": (0.08, 2.0), "svrg": (-0.3, 3.0)}

    def make(cell: Cell) -> dict[str, float]:
        gain, passes = gains[cell.run.correction.corrector]
        return {"gain": gain, "passes": passes}

    fake.write_experiment(folder, "cpu", EXPERIMENT, make)
    return folder


def interval(low: float, high: float, n: int = 3) -> PairedInterval:
    return PairedInterval(n, (low + high) / 2, low, high, 0.95)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.1, 3, "yes"), (-0.5, 0.5, "no"), (-4, -2, "no"), (-0.5, 4, "open"), (0.0, 0.4, "no")],
)
def test_an_effect_is_there_absent_or_undecided(low: float, high: float, outcome: str) -> None:
    assert beyond(interval(low, high))[0].value == outcome


def test_a_bound_must_be_cleared_by_the_whole_interval() -> None:
    assert beyond(interval(9, 14), by=10.0)[0] is Outcome.OPEN
    assert beyond(interval(11, 14), by=10.0)[0] is Outcome.YES
    assert beyond(interval(2, 9), by=10.0)[0] is Outcome.NO


def test_an_effect_smaller_than_published_holds_in_part() -> None:
    assert reaches(interval(3, 6), 5.0)[0] is Outcome.YES
    assert reaches(interval(1, 4), 5.0)[0] is Outcome.PARTLY
    assert reaches(interval(-1, 4), 5.0)[0] is Outcome.NO
    assert reaches(interval(-1, 6), 5.0)[0] is Outcome.OPEN


def test_no_influence_needs_the_whole_interval_within_the_margin() -> None:
    assert equivalent(interval(-0.9, 0.9), 1.0)[0] is Outcome.YES
    assert equivalent(interval(-0.9, 1.1), 1.0)[0] is Outcome.OPEN
    assert equivalent(interval(1.1, 2.0), 1.0)[0] is Outcome.NO


@pytest.mark.parametrize(
    "decide", [beyond, lambda one: reaches(one, 5.0), lambda one: equivalent(one, 1.0)]
)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_pairs_decide_nothing(
    decide: Callable[[PairedInterval], tuple[Outcome, str]], n: int
) -> None:
    outcome, why = decide(paired_interval([2.0 + 0.001 * place for place in range(n)]))
    assert outcome is Outcome.OPEN
    assert "no runs" in why if n == 0 else f"{n} of at least 3" in why


@given(NUMBERS)
def test_the_answer_flips_with_the_sign(differences: list[float]) -> None:
    one = paired_interval(differences)
    up, down = beyond(one)[0], beyond(turned(one))[0]
    assert not (up is Outcome.YES and down is not Outcome.NO)
    assert turned(turned(one)) == one
    again = paired_interval([-value for value in differences])
    assert turned(one).low == pytest.approx(again.low, rel=1e-9, abs=1e-9)
    assert equivalent(one, 1.0)[0] is equivalent(turned(one), 1.0)[0]


@given(st.lists(st.sampled_from(Outcome), max_size=5))
def test_a_verdict_does_not_depend_on_the_order_and_needs_a_yes(outcomes: list[Outcome]) -> None:
    measured = [Measured(where="", outcome=one, effect="", n=3) for one in outcomes]
    verdict = verdict_of(measured)
    assert verdict is verdict_of(measured[::-1])
    positive = {Outcome.YES, Outcome.PARTLY} & set(outcomes)
    assert (verdict in (Verdict.HOLDS, Verdict.IN_PART)) == bool(positive)
    if verdict is Verdict.HOLDS:
        assert set(outcomes) == {Outcome.YES}
    if verdict is Verdict.DOES_NOT_HOLD:
        assert Outcome.NO in outcomes


def test_a_direction_is_found_in_every_panel_with_its_cost(store: Path) -> None:
    rule = above(Pair("figure-0", "A-*", "*"), reading=accuracy_after(1.0))
    measured = rule.judge(evidence(store))
    assert [one.where.split(":")[0] for one in measured] == ["VGG-C, SET", "VGG-C, RigL"]
    assert verdict_of(measured) is Verdict.HOLDS
    assert [one.passes for one in measured] == [2.0, 2.0]
    assert measured[0].n == 3
    assert measured[0].effect.startswith("+")
    assert "points [" in measured[0].effect
    other = below(Pair("figure-0", "A-*", "*"), reading=accuracy_after(1.0))
    assert verdict_of(other.judge(evidence(store))) is Verdict.DOES_NOT_HOLD


def test_a_collapse_is_a_loss_beyond_ten_points(store: Path) -> None:
    final = accuracy_after(1.0)
    svrg = below(Pair("figure-0", "SVRG", "*"), reading=final, by=10.0)
    agent = below(Pair("figure-0", "*", "A-*"), reading=final, by=10.0)
    assert verdict_of(svrg.judge(evidence(store))) is Verdict.HOLDS
    assert verdict_of(agent.judge(evidence(store))) is Verdict.DOES_NOT_HOLD
    both = all_of(svrg, agent)
    assert verdict_of(both.judge(evidence(store))) is Verdict.IN_PART
    assert both.experiments == ("figure-0",)


def test_what_is_measured_besides_is_read_by_seed(store: Path) -> None:
    one = evidence(store).found["figure-0"].cells[0]
    assert robust_after(1.0).of(one)[0] == pytest.approx(30.0, abs=1.0)
    assert robust_after(0.7).of(one) == {}
    assert correlation_of("active").of(one)[1] == pytest.approx(0.6, abs=0.03)
    assert correlation_of("all").of(one)[1] == pytest.approx(0.15, abs=0.03)
    assert late_correlation().of(one)[2] == pytest.approx(0.32, abs=0.02)
    assert math.exp(log_norm().of(one)[0]) == pytest.approx(3.0, abs=0.05)
    same = alike(Pair("figure-0", "A-*", "*"), reading=log_norm(), margin=math.log(1.1))
    assert verdict_of(same.judge(evidence(store))) is Verdict.HOLDS
    assert "10 %" in same.words


def test_pairs_are_those_of_common_seeds(store: Path, tmp_path: Path) -> None:
    cells = evidence(store).found["figure-0"].cells
    fake.write_cell(tmp_path, "cpu", cells[1].cell, [1, 2])
    few = evidence(tmp_path).found["figure-0"].cells[1]
    assert paired(few, cells[0], mean_accuracy()).n == 2
    assert relative_passes(few, cells[0]) == 1.0
    assert relative_passes(FoundCell(cell=few.cell, runs=(), planned=3), cells[0]) is None


def test_nothing_trained_is_not_tested(tmp_path: Path) -> None:
    nothing = evidence(tmp_path)
    rules = (
        above(Pair("figure-0", "A-*", "*"), reading=accuracy_after(1.0)),
        not_much_below(Pair("figure-0", "A-*", "*"), reading=robust_after(1.0), margin=2.0),
        largest_gain(Pair("figure-0", "A-*", "*"), (0.5, 1.0), 11.4),
        most_saved(Pair("figure-0", "A-*", "*"), 52.1),
        sooner([Pair("figure-0", "A-*", "*")], "training_seconds", "seconds"),
        time_ratio(Pair("figure-0", "A-*", "*"), 2.0),
    )
    for rule in rules:
        measured = rule.judge(nothing)
        assert verdict_of(measured) is Verdict.NOT_TESTED
        assert {one.why for one in measured} == {"no runs"}


def test_the_largest_gain_is_one_setting(store: Path) -> None:
    rule = largest_gain(Pair("figure-0", "A-*", "*"), (0.5, 1.0), 5.0)
    (one,) = rule.judge(evidence(store))
    assert one.interval is not None
    others = [
        paired(arm, base, accuracy_after(share)).mean
        for share in (0.5, 1.0)
        for base, arm in (
            evidence(store).found["figure-0"].cells[0:2],
            evidence(store).found["figure-0"].cells[3:5],
        )
    ]
    assert one.interval.mean == max(value for value in others if value is not None)


def test_time_counts_only_where_the_seeds_of_an_arm_agree(store: Path, tmp_path: Path) -> None:
    import json

    rule = time_ratio(Pair("figure-0", "A-*", "*", "SET"), 1.0)
    (one,) = rule.judge(evidence(store))
    assert one.outcome is Outcome.YES
    assert "times [" in one.effect
    fake.write_experiment(tmp_path, "cpu", EXPERIMENT)
    cell = evidence(tmp_path).found["figure-0"].cells[0]
    path = cell.runs[0].folder / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    slow = [{**row, "training_seconds": 2 * row["training_seconds"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in slow))
    (one,) = rule.judge(evidence(tmp_path))
    assert one.outcome is Outcome.OPEN
    assert "differ" in one.why
    assert len(log_seconds().of(cell)) == 3


def test_cells_of_different_panels_are_compared(store: Path) -> None:
    rule = between(
        "figure-0",
        ("VGG-C, SET", "SET"),
        ("VGG-C, RigL", "RigL"),
        late_correlation(),
        lambda one: beyond(one, expected=0.01),
        "",
        sign=-1,
    )
    (one,) = rule.judge(evidence(store))  # 90 % against 80 %
    assert one.outcome is Outcome.YES
    absent = between("figure-0", ("no", "a"), ("no", "b"), late_correlation(), beyond, "")
    assert absent.judge(evidence(store)) == ()


def test_a_control_explains_what_it_reaches(store: Path) -> None:
    arms = ("SET", "A-SET", "A-SET")
    explains = explained("figure-0", "VGG-C, SET", arms, accuracy_after(0.5, 1.0), 1.0)
    assert verdict_of(explains.judge(evidence(store))) is Verdict.HOLDS
    arms = ("SET", "SVRG", "A-SET")
    fails = explained("figure-0", "VGG-C, SET", arms, accuracy_after(0.5, 1.0), 1.0)
    assert verdict_of(fails.judge(evidence(store))) is Verdict.DOES_NOT_HOLD


def test_the_theorem_needs_no_runs() -> None:
    outcomes = [one.outcome.value for one in theorem_1().judge(Evidence("cpu", {}))]
    assert outcomes == ["yes", "no", "no", "no"]


@pytest.mark.parametrize(
    ("arm", "arms", "base"),
    [
        ("A-RigL", ("A-RigL", "RigL", "RigL+SVRG"), "RigL"),
        ("RigL+SVRG", ("A-RigL", "RigL", "RigL+SVRG"), "RigL"),
        ("RigL", ("A-RigL", "RigL", "RigL+SVRG"), None),
        ("A-SET-ITOP (as its ITOP code)", ("SET-ITOP", "A-SET-ITOP"), "SET-ITOP"),
        ("BSR-Net, BatchNorm refreshed", ("BSR-Net", "A-BSR-Net"), "BSR-Net"),
        ("AGENT", ("Reduce LR", "AGENT"), "Reduce LR"),
        ("No gamma", ("Fixed c", "No gamma", "Ours"), "Ours"),
        ("HYDRA", ("BSR-Net", "A-BSR-Net", "HYDRA"), "BSR-Net"),
        ("gamma 0.5", ("gamma 0.1", "gamma 0.5"), "gamma 0.1"),
        ("gamma 0.1", ("gamma 0.1", "gamma 0.5"), None),
    ],
)
def test_the_base_of_an_arm(arm: str, arms: tuple[str, ...], base: str | None) -> None:
    assert baseline_of(arm, arms) == base


def test_a_budget_is_an_epoch() -> None:
    assert [epoch_after(share, 12) for share in (0.01, 0.1, 0.35, 0.45, 1.0)] == [1, 1, 4, 5, 12]
