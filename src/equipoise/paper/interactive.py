"""The plots of the page: what is drawn against is switched for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from equipoise.paper.pictures import color_of
from equipoise.paper.plots import COSTS, Line, Panel
from equipoise.reports.extras import require

HEIGHT = 360
_DASHES = ("solid", "dashed", "dotdash")


def plot_item(panels: Sequence[Panel], target: str) -> Any:
    """Builds the panels of one table or figure, in rows of two.

    A renderer is named ``line`` or ``band`` and tagged with the place of its line's colour; its
    source has all columns besides ``x``, ``y``, ``low`` and ``high``, which are drawn. A plot is
    tagged with its choices, so that a script can copy columns and change titles.

    Args:
        panels: At least one.
        target: Id of the element that takes it.

    Returns:
        The item that ``Bokeh.embed.embed_item`` of BokehJS takes, a JSON value.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    require("bokeh")
    from bokeh.core.types import ID
    from bokeh.embed import json_item
    from bokeh.layouts import column, row

    plots = [_plot(panel) for panel in panels]
    rows = [
        row(plots[place : place + 2], sizing_mode="stretch_width")
        for place in range(0, len(plots), 2)
    ]
    return json_item(column(rows, sizing_mode="stretch_width"), ID(target))


def _plot(panel: Panel) -> Any:
    """One panel."""
    from bokeh.models import HoverTool
    from bokeh.plotting import figure

    first = panel.choices[COSTS[0]]
    plot = figure(
        title=panel.title,
        height=HEIGHT,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        active_drag=None,
        toolbar_location="above",
        x_axis_label=first.x_title,
        y_axis_label=first.y_title,
        background_fill_alpha=0.0,
        border_fill_alpha=0.0,
        outline_line_alpha=0.0,
        tags=[
            {name: [one.x, one.y, one.x_title, one.y_title] for name, one in panel.choices.items()}
        ],
    )
    plot.toolbar.logo = None
    for axis in plot.axis:
        axis.axis_label_text_font_style = "normal"
        axis.minor_tick_line_color = None
    dots = [_draw(plot, line, first.x, first.y) for line in panel.lines]
    if dots:
        tooltips = [("", "@who"), ("", "@x, @y")]
        plot.add_tools(HoverTool(renderers=dots, tooltips=tooltips, visible=False))
        plot.legend.background_fill_alpha = 0.0
        plot.legend.label_text_font_size = "11px"
        legend = plot.legend[0]
        plot.add_layout(legend, "below")
        legend.update(ncols=2, border_line_alpha=0.0, spacing=10, margin=0)
        plot.legend.click_policy = "hide"
    return plot


def _draw(plot: Any, line: Line, x: str, y: str) -> Any:
    """One line with its band and dots, all under one entry of the legend."""
    from bokeh.models import ColumnDataSource

    data: dict[str, Any] = {
        name: [float(f"{value:.5g}") for value in values] for name, values in line.columns.items()
    }
    data |= {"x": data[x], "y": data[y], "low": data[f"{y}_low"], "high": data[f"{y}_high"]}
    source = ColumnDataSource(data | {"who": [line.label] * len(data["x"])})
    color = color_of(line)
    dash = "dotted" if line.printed else _DASHES[(line.color + 1) % 3]
    shared = {"source": source, "legend_label": line.label}
    band = plot.varea("x", "low", "high", fill_color=color, fill_alpha=0.15, **shared)
    drawn = plot.line("x", "y", line_color=color, line_width=2, line_dash=dash, **shared)
    fill = 0.0 if line.printed else 1.0
    dots = plot.scatter(
        "x", "y", line_color=color, fill_color=color, fill_alpha=fill, size=5, **shared
    )
    for renderer, name in ((band, "band"), (drawn, "line"), (dots, "dots")):
        renderer.tags = [line.color]
        renderer.name = name
    return dots
