"""The page of the paper: the ledger on top, then all tables and figures; nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from equipoise.paper.evidence import Evidence, Found
from equipoise.paper.interactive import HEIGHT, plot_item
from equipoise.paper.ledger import Entry, counted, setting_words
from equipoise.paper.plots import panels_of
from equipoise.paper.rules import MIN_PAIRS, Measured, Verdict
from equipoise.paper.tables import tables_of
from equipoise.reports.extras import require
from equipoise.reports.interactive import script
from equipoise.reports.palette import BASELINE_DARK, BASELINE_LIGHT, DARK, LIGHT

_KINDS = {
    Verdict.HOLDS: "holds",
    Verdict.IN_PART: "in-part",
    Verdict.DOES_NOT_HOLD: "does-not-hold",
    Verdict.NOT_TESTED: "not-tested",
}
_COSTS = (
    ("epochs", "epochs"),
    ("passes", "passes over the data"),
    ("flops", "FLOPs"),
    ("seconds", "seconds"),
)


def page_html(evidence: Evidence, entries: Sequence[Entry]) -> str:
    """Renders the page.

    Args:
        evidence: What there is.
        entries: The ledger of it.

    Returns:
        The text of an HTML file, which forbids itself to fetch anything.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    require("jinja2", "bokeh")
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # BokehJS reads references in the order in which they were written.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = environment.from_string(_file("equipoise.paper", "paper.html"))
    plots: dict[str, Any] = {}
    items = [_item(found, plots) for found in evidence.found.values()]
    return template.render(
        title=f"The paper's tables, figures and claims at scale {evidence.scale}",
        css=_file("equipoise.reports", "page.css") + _file("equipoise.paper", "paper.css"),
        scale=evidence.scale,
        reductions=evidence.reductions,
        counts=f"Claims of the paper: {counted(entries)}",
        entries=[_entry(entry) for entry in entries],
        items=items,
        costs=_COSTS,
        data={
            "plots": plots,
            "light": [BASELINE_LIGHT, *LIGHT],
            "dark": [BASELINE_DARK, *DARK],
        },
        bokeh=script(),
        script=_file("equipoise.paper", "paper.js"),
    )


def _file(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _item(found: Found, plots: dict[str, Any]) -> dict[str, Any]:
    """One table or figure; its plot goes into `plots`."""
    name = found.experiment.name
    done, planned = found.runs
    panels = panels_of(found)
    drawn = [panel for panel in panels if panel.lines]
    if drawn:
        plots[f"plot-{name}"] = plot_item(drawn, f"plot-{name}")
    missing = [f"{panel.title}: {', '.join(panel.missing)}" for panel in panels if panel.missing]
    state = "all" if done == planned else "some" if done else "none"
    return {
        "name": name,
        "short": name.replace("table-", "T").replace("figure-", "F"),
        "title": found.experiment.title,
        "heading": f"{name.replace('-', ' ').capitalize()}. {found.experiment.title}",
        "quantity": found.experiment.quantity.capitalize(),
        "runs": f"{done} of {planned} runs" if planned else "no runs needed",
        "state": state,
        "notes": found.notes,
        "plot": bool(drawn),
        "height": (HEIGHT + 10) * ((len(drawn) + 1) // 2),
        "caption": _caption(found),
        "missing": "; ".join(missing),
        "tables": tables_of(found),
        "command": found.command if planned else "",
    }


def _caption(found: Found) -> str:
    """How the plot is read."""
    if not found.cells:
        return "Drawn from the formula alone."
    band = "Lines are means over the seeds that are there, bands one deviation to each side."
    if found.experiment.name.startswith("table-"):
        return f"{band} Dotted with open dots: the paper's."
    return band


def _short(one: Measured) -> str:
    """A setting in a few words."""
    cost = "" if one.passes is None else f" at {one.passes:.1f} times the passes"
    return f"{one.where}: {one.effect}{cost}"


def _entry(entry: Entry) -> dict[str, Any]:
    """One claim."""
    lines = [setting_words(one) for one in entry.measured]
    deciding = [one for one in entry.measured if one.interval is not None and one.n >= MIN_PAIRS]
    first = "; ".join(_short(one) for one in deciding[:2])
    more = f"; and {len(deciding) - 2} more" if len(deciding) > 2 else ""
    return {
        "name": entry.claim.name,
        "words": entry.claim.words,
        "where": entry.claim.where[:1].upper() + entry.claim.where[1:],
        "published": entry.claim.published,
        "verdict": entry.verdict.value,
        "kind": _KINDS[entry.verdict],
        "why": entry.why,
        "rule": entry.claim.rule.words,
        "lines": lines,
        "first": first + more or entry.why,
        "experiments": entry.claim.rule.experiments,
        "commands": entry.commands,
    }
