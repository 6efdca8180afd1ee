"""The curves of the page: Bokeh plots whose axes the page's own script switches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from equipoise.records import RunRecords
from equipoise.reports.curves import (
    EPOCHS,
    TEST_ACCURACY,
    Axis,
    column,
    mean_column,
    x_axes,
    y_axes,
)
from equipoise.reports.extras import require
from equipoise.reports.palette import arm_dash

HEIGHT = 460
TARGET = "curves"
SCALES: tuple[Literal["linear"], Literal["log"]] = ("linear", "log")
_FORMATS = {"epochs": "0", "seconds": "0,0.0", "passes": "0,0.00", "flops": "0,0.00"}


def plot_item(arms: Mapping[str, Sequence[RunRecords]], colors: Mapping[str, str]) -> Any:
    """Builds two plots of the same data, with a linear and a logarithmic vertical axis.

    A plot of BokehJS cannot change its scale, so the script shows one of the two. Every line has a
    source with all quantities as columns by the names of their axes, and two columns ``x`` and
    ``y`` that are drawn; to switch an axis is to copy a column. A renderer is tagged with the
    position of its arm and with ``mean`` or ``seed``. What reacts to the pointer is one more,
    invisible renderer, ``points``, that the script fills with the points in sight: one renderer
    has one tooltip, where as many tooltips as lines would cover one another.

    Args:
        arms: Runs by label; at least one has a record.
        colors: Colour of each label until the page's script chooses by its ground.

    Returns:
        The item that ``Bokeh.embed.embed_item`` of BokehJS takes, a JSON value.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    require("bokeh")
    from bokeh.core.types import ID
    from bokeh.embed import json_item
    from bokeh.layouts import column as stack

    runs = [run for arm in arms.values() for run in arm]
    axes = (*x_axes(runs), *y_axes(runs))
    plots = [_empty_plot(scale) for scale in SCALES]
    for position, (label, arm) in enumerate(arms.items()):
        _draw_arm(plots, position, label, arm, axes, colors[label])
    _add_hover(plots, x_axes(runs))
    return json_item(stack(plots, sizing_mode="stretch_width"), ID(TARGET))


def script() -> str:
    """BokehJS itself, to be put into the page: nothing is fetched when the page is read."""
    require("bokeh")
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)


def _empty_plot(scale: Literal["linear", "log"]) -> Any:
    """Axes and tools; transparent, so that the ground of the page is seen."""
    from bokeh.models import DataRange1d
    from bokeh.plotting import figure

    plot = figure(
        name=scale,
        y_axis_type=scale,
        visible=scale == SCALES[0],
        height=HEIGHT,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag=None,
        active_scroll=None,
        toolbar_location="above",
        x_range=DataRange1d(only_visible=True),
        y_range=DataRange1d(only_visible=True),
        x_axis_label=EPOCHS.title,
        y_axis_label=TEST_ACCURACY.title,
        background_fill_alpha=0.0,
        border_fill_alpha=0.0,
        outline_line_alpha=0.0,
    )
    plot.toolbar.logo = None
    for axis in plot.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = "14px"
        axis.major_label_text_font_size = "13px"
        axis.minor_tick_line_color = None
    return plot


def _draw_arm(
    plots: Sequence[Any],
    position: int,
    label: str,
    runs: Sequence[RunRecords],
    axes: Sequence[Axis],
    color: str,
) -> None:
    """Seeds thin, their mean thick; a single seed is its own mean."""
    started = [run for run in runs if run.epochs]
    for run in started if len(started) > 1 else []:
        source = _source(
            {axis.name: column(run, axis) for axis in axes}, f"{label}, seed {run.seed}"
        )
        line, dots = {"line_width": 1.0, "alpha": 0.45}, {"size": 4, "alpha": 0.45}
        _draw_curve(plots, source, [position, "seed"], color, line, dots)
    if started:
        one = f"seed {started[0].seed}"
        who = f"{label}, {one if len(started) == 1 else f'mean of {len(started)} seeds'}"
        source = _source({axis.name: mean_column(started, axis) for axis in axes}, who)
        thick = {"line_width": 3.0, "line_dash": arm_dash(position)}
        _draw_curve(plots, source, [position, "mean"], color, thick, {"size": 7})


def _draw_curve(
    plots: Sequence[Any],
    source: Any,
    tags: list[Any],
    color: str,
    line: Mapping[str, Any],
    dots: Mapping[str, Any],
) -> None:
    """One line with its dots, in every plot, from one source."""
    for plot in plots:
        plot.line("x", "y", source=source, color=color, **line).tags = tags
        plot.scatter("x", "y", source=source, color=color, **dots).tags = tags


def _source(columns: Mapping[str, list[float]], who: str) -> Any:
    """All quantities of a line, its name, and what is drawn at first."""
    from bokeh.models import ColumnDataSource

    # Six digits are more than a plot can show, and a third of the page's data.
    data: dict[str, Any] = {
        name: [float(f"{value:.6g}") for value in values] for name, values in columns.items()
    }
    data |= {"x": data[EPOCHS.name], "y": data[TEST_ACCURACY.name]}
    return ColumnDataSource({**data, "who": [who] * len(data["x"])})


def _add_hover(plots: Sequence[Any], costs: Sequence[Axis]) -> None:
    """The tool that shows the values of a point, and the renderer that it listens to."""
    from bokeh.models import ColumnDataSource, HoverTool

    names = ("who", "what", "x", "y", *(axis.name for axis in costs))
    source = ColumnDataSource({name: [] for name in names})
    rows = [
        (axis.title.split(" (")[0], f"@{axis.name}{{{_FORMATS[axis.name]}}}{axis.unit}")
        for axis in costs
    ]
    # Bokeh escapes the values.
    tooltips = [("", "@who"), ("", "@what"), *rows]
    for plot in plots:
        points = plot.scatter("x", "y", source=source, size=10, alpha=0.0, name="points")
        hover = HoverTool(renderers=[points], tooltips=tooltips, limit=3, visible=False)
        plot.add_tools(hover)
