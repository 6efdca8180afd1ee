from importlib import import_module
from io import BytesIO
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from equipoise.reports import group_by_label
from equipoise.reports.figures import figure_png

synthetic = import_module("tests.unit.reports.synthetic_runs")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, without the time that rendering takes."""
    saved: list[Figure] = []

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def titles(figure: Figure) -> list[tuple[str, str]]:
    return [(panel.get_xlabel(), panel.get_ylabel()) for panel in figure.axes]


def test_a_picture_is_rendered_large_enough_to_read() -> None:
    image = imread(BytesIO(figure_png(group_by_label(synthetic.two_arms()), "rigl")), format="png")
    height, width = image.shape[:2]
    assert width > 1500
    assert height > 1000
    assert image[..., :3].std() > 0.05


def test_panels_of_accuracy_and_loss_against_three_costs(drawn: list[Figure]) -> None:
    figure_png(group_by_label(synthetic.two_arms()), "rigl")
    assert titles(drawn[0])[:6] == [
        (cost, value)
        for value in ("Test accuracy (%)", "Training loss")
        for cost in ("Epochs", "Training FLOPs (in 1e12)", "Training time (s)")
    ]
    assert [value for _, value in titles(drawn[0])[7:]] == [
        "Coefficient of the old gradient",
        "Exploration (% of weights ever active)",
    ]


def test_what_does_not_change_has_no_panel(drawn: list[Figure]) -> None:
    figure_png({"a": [synthetic.training_run("a", rewired=False)]}, None)
    assert len(drawn[0].axes) == 7


def test_every_seed_is_a_line_and_so_is_the_mean(drawn: list[Figure]) -> None:
    figure_png(group_by_label(synthetic.two_arms(num_seeds=3)), "rigl")
    lines = drawn[0].axes[0].get_lines()
    thick = [line for line in lines if line.get_linewidth() > 2]
    assert (len(lines), len(thick)) == (8, 2)
    assert [line.get_label() for line in thick] == ["rigl", "rigl+agent"]
    assert len({line.get_color() for line in thick}) == 2
    assert len({line.get_linestyle() for line in thick}) == 2


def test_losses_over_decades_have_a_logarithmic_axis(drawn: list[Figure]) -> None:
    for last in (0.5, 0.001):
        rows = [synthetic.record(1, train_loss=1.0), synthetic.record(2, train_loss=last)]
        figure_png({"a": [synthetic.run("a", 0, rows)]}, None)
    assert [figure.axes[3].get_yscale() for figure in drawn] == ["linear", "log"]
    assert drawn[1].axes[0].get_yscale() == "linear"
    assert "0.01" in [label.get_text() for label in drawn[1].axes[3].get_yticklabels()]


def test_bars_add_up_to_the_seconds_of_an_epoch(drawn: list[Figure]) -> None:
    figure_png({"a": [synthetic.run("a", 0, [synthetic.record(2)])]}, None)
    bars = [bar for bar in drawn[0].axes[6].patches if isinstance(bar, Rectangle)]
    assert sum(bar.get_width() for bar in bars) == pytest.approx(10.0)


def test_labels_are_taken_literally() -> None:
    for label in ("$\\frac{$", "_hidden", "a" * 200, "100% & <b>"):
        assert figure_png({label: [synthetic.training_run(label, epochs=2)]}, None)


def test_runs_without_records_or_with_one_do_not_stop_it() -> None:
    assert figure_png({"a": [synthetic.run("a", 0, [])]}, None)
    assert figure_png({"a": [synthetic.run("a", 0, [synthetic.record(1)])]}, None)
