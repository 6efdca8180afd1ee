import math
from importlib import import_module
from typing import Any

import pytest

from equipoise.reports import (
    PairedInterval,
    arms_table,
    caveats,
    compare_runs,
    comparison_table,
    summarize_arm,
    verdict_sentence,
)
from equipoise.reports.numbers import effect, magnitude, ratio, spread
from equipoise.reports.page import page_html
from equipoise.reports.statistics import Spread

synthetic = import_module("tests.unit.reports.synthetic_runs")
record, run = synthetic.record, synthetic.run


def arm(label: str, accuracies: list[float], cost: float = 1.0, **changes: Any) -> list[Any]:
    return [
        run(
            label,
            seed,
            [
                record(
                    epoch,
                    test_accuracy=accuracy * epoch / 4,
                    data_passes=cost * epoch,
                    training_flops=cost * 1000.0 * epoch,
                    training_seconds=cost * 10.0 * epoch,
                    learning_rate=0.1 if epoch < 4 else 0.001,
                    **changes,
                )
                for epoch in (1, 2, 3, 4)
            ],
        )
        for seed, accuracy in enumerate(accuracies)
    ]


def against(b: list[Any], a: list[Any]) -> Any:
    return compare_runs(b + a, "a").against[0]


def test_the_sentence_says_all_of_it() -> None:
    found = against(arm("b", [0.42, 0.53, 0.61], cost=2.0), arm("a", [0.40, 0.50, 0.60]))
    assert verdict_sentence(found) == (
        "b against a (n = 3 pairs): at equal epochs test accuracy +2.0 points [-0.5, +4.5], "
        "no difference; at equal FLOPs -24.0 points [-37.1, -10.9], worse; at equal seconds "
        "-24.0 points [-37.1, -10.9], worse; one epoch costs 2.00 times the passes."
    )


def test_one_pair_has_a_difference_but_no_interval() -> None:
    found = against(arm("b", [0.42]), arm("a", [0.40]))
    assert "(n = 1 pair): at equal epochs test accuracy +2.0 points, not enough seeds" in (
        verdict_sentence(found)
    )
    assert any("there is no interval" in sentence for sentence in caveats(found))


def test_missing_is_said() -> None:
    found = against(arm("b", [0.42, 0.5], cost=9.0), arm("a", [0.40, 0.5]))
    assert "at equal FLOPs missing; at equal seconds missing" in verdict_sentence(found)
    assert any("At equal FLOPs 2 of 2 pairs are missing" in sentence for sentence in caveats(found))


def test_no_seed_in_common_is_said() -> None:
    found = against(arm("b", [0.4, 0.5])[1:], arm("a", [0.4]))
    assert verdict_sentence(found) == "b against a: no seed in common, so there is no pair."
    assert [sentence for sentence in caveats(found) if "Left out" in sentence] == [
        "Left out of the pairs: seed 1, which only b has.",
        "Left out of the pairs: seed 0, which only a has.",
    ]


def test_a_cut_before_the_learning_rate_was_annealed_is_said() -> None:
    found = against(arm("b", [0.4, 0.5], cost=2.0), arm("a", [0.4, 0.5]))
    assert any(
        "At equal FLOPs b was cut at epoch 2 of 4 (2 of 2 pairs), in mid-schedule: its learning "
        "rate was 0.1, not yet annealed to the 0.001 of its end" in sentence
        for sentence in caveats(found)
    )
    assert not any("At equal epochs" in sentence for sentence in caveats(found))


def test_a_constant_learning_rate_is_not_cut_in_mid_schedule() -> None:
    b = [
        run("b", s, [record(n, training_flops=3e9 * n, learning_rate=0.1) for n in (1, 2, 3, 4)])
        for s in (0, 1)
    ]
    a = [run("a", s, [record(n, learning_rate=0.1) for n in (1, 2, 3, 4)]) for s in (0, 1)]
    assert not any("mid-schedule" in sentence for sentence in caveats(against(b, a)))


def test_few_pairs_say_what_they_could_have_shown() -> None:
    few = against(arm("b", [0.42, 0.53, 0.61]), arm("a", [0.40, 0.50, 0.60]))
    assert any("(n = 3)" in text and "2.5 at equal epochs" in text for text in caveats(few))
    accuracies = [0.4 + 0.01 * n for n in range(12)]
    many = against(arm("b", accuracies), arm("a", accuracies[::-1]))
    assert not any("half-width" in sentence for sentence in caveats(many))


def test_reaching_the_loss_of_the_baseline_is_said_with_its_cost() -> None:
    b = [
        run("b", s, [record(n, train_loss=5.0 - 2 * n, data_passes=3.0 * n) for n in (1, 2, 3, 4)])
        for s in (0, 1)
    ]
    a = [run("a", s, [record(n, train_loss=5.0 - n) for n in (1, 2, 3, 4)]) for s in (0, 1)]
    assert caveats(against(b, a))[0] == (
        "b reached the final training loss of a after 0.50 [0.50, 0.50] times its epochs "
        "and 1.50 [1.50, 1.50] times its data passes."
    )
    b[1] = run("b", 1, [record(1, train_loss=9.0)])
    first, second = caveats(against(b, a))[:2]
    assert "loss of a in 1 of 2 pairs after 0.50 times its epochs" in first
    assert "never reached the final training loss of a in 1 of 2 pairs" in second


def test_pairs_that_diverged_are_said() -> None:
    b = arm("b", [0.4, 0.5])
    b[1] = run("b", 1, [record(n, train_loss=math.nan) for n in (1, 2, 3, 4)])
    text = " ".join(caveats(against(b, arm("a", [0.4, 0.5]))))
    assert "1 of 2 pairs are left out of training loss because a value is not finite" in text
    assert "looks better than it is" in text


def test_different_devices_are_said() -> None:
    runs = [run("a", 0, [record(1)], device="cpu"), run("b", 0, [record(1)], device="gpu")]
    assert any("cpu; gpu" in text for text in caveats(compare_runs(runs, "a").against[0]))
    alike = [run("a", 0, [record(1)], device="cpu"), run("b", 0, [record(1)], device="cpu")]
    assert not any("device" in text for text in caveats(compare_runs(alike, "a").against[0]))


def test_different_engines_are_said_once() -> None:
    used = {"used": True, "instructions": "avx2"}
    runs = [
        run("a", 0, [record(1)], engine={"used": False}),
        run("b", 0, [record(1)], engine=used),
        run("c", 0, [record(1)], engine=used),
        run("c", 1, [record(1)]),
    ]
    notes = "\n".join(comparison_table(compare_runs(runs, "a")).notes)
    sentence = (
        "Seconds compare engines as well as methods: masks ran a and c (seed 1), the avx2 engine "
        "ran b and c (seed 0)."
    )
    assert notes.count("engine") == sentence.count("engine")
    assert sentence in notes
    pytest.importorskip("jinja2")
    pytest.importorskip("bokeh")
    assert sentence in page_html(runs, "a")
    alike = [run("a", 0, [record(1)]), run("b", 0, [record(1)], engine={"used": False})]
    assert "engine" not in "\n".join(comparison_table(compare_runs(alike, "a")).notes)


def test_the_table_has_a_row_per_arm_and_matching() -> None:
    runs = arm("b", [0.42, 0.53, 0.61], cost=2.0) + arm("a", [0.40, 0.50, 0.60]) + arm("c", [0.1])
    table = comparison_table(compare_runs(runs, "a"))
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [(row[0], row[1], row[2]) for row in table.rows] == [
        ("b", "equal epochs", "4 / 4"),
        ("b", "equal FLOPs", "2 / 4"),
        ("b", "equal seconds", "2 / 4"),
        ("c", "equal epochs", "4 / 4"),
        ("c", "equal FLOPs", "4 / 4"),
        ("c", "equal seconds", "4 / 4"),
    ]
    assert table.rows[1][3:5] == ("-24.0 [-37.1, -10.9]", "worse")
    assert table.notes[0].startswith("b against a (n = 3 pairs)")
    assert any(note.startswith("c against a (n = 1 pair)") for note in table.notes)


def test_the_table_shows_missing_as_missing() -> None:
    runs = arm("b", [0.42], cost=9.0) + arm("a", [0.40])
    row = comparison_table(compare_runs(runs, "a")).rows[1]
    assert row[2:] == ("- / 4", "-", "not enough seeds", "-", "not enough seeds", "0 of 1")


def test_the_arms_table_shows_mean_and_deviation_and_what_is_unfinished() -> None:
    runs = [
        run("a", seed, [record(1, test_accuracy=0.5 + 0.01 * seed)], run={"epochs": 2})
        for seed in (0, 1, 2)
    ]
    table = arms_table([summarize_arm(runs)])
    assert table.rows[0][:4] == ("a", "3", "1", "51.00 \u00b1 1.00")
    assert table.notes == ("a is unfinished for seed 0, 1, 2: fewer epochs than planned.",)
    assert "Peak device memory (MiB)" not in table.columns


def test_memory_of_an_accelerator_has_a_column_where_there_is_one() -> None:
    made = run("a", 0, [record(1, peak_device_memory_bytes=3 * 2**20)])
    table = arms_table([summarize_arm([made]), summarize_arm([run("b", 0, [record(1)])])])
    assert table.columns[-1] == "Peak device memory (MiB)"
    assert [row[-1] for row in table.rows] == ["3", "-"]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (PairedInterval(3, 0.003, -0.008, 0.014, 0.95), "+0.3 [-0.8, +1.4]"),
        (PairedInterval(3, 0.002, 0.0001, 0.0039, 0.95), "+0.20 [+0.01, +0.39]"),
        (PairedInterval(1, -0.02, None, None, 0.95), "-2.0"),
        (PairedInterval(0, None, None, None, 0.95), "-"),
    ],
)
def test_an_end_is_never_rounded_to_zero(interval: PairedInterval, expected: str) -> None:
    assert effect(interval, scale=100.0) == expected


def test_numbers_are_short() -> None:
    assert [magnitude(value) for value in (0.123, 3.0, 12.34, 12345.6)] == [
        "0.12",
        "3",
        "12.3",
        "12,346",
    ]
    assert magnitude(math.nan) == "nan"
    assert spread(Spread(0, None, None), str) == "-"
    assert ratio(PairedInterval(0, None, None, None, 0.95)) == "-"
