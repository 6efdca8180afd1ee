from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from equipoise.reports.page import page_html

synthetic = import_module("tests.unit.reports.synthetic_runs")
headless = import_module("tests.unit.reports.headless_browser")

MISSING = headless.missing_program()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is not installed")

EVIL = "</script><img src=x onerror=window.broken=1>$$x$$"
STATE = """
const plots = ["linear", "log"].map((name) => Bokeh.documents[0].get_model_by_name(name));
const plot = plots.find((one) => one.visible);
const lines = plot.renderers.filter((one) => one.tags.length && one.glyph.type === "Line");
return {
  x: lines.map((one) => Array.from(one.data_source.data.x)),
  y: lines.map((one) => Array.from(one.data_source.data.y)),
  visible: lines.map((one) => one.visible),
  tags: lines.map((one) => one.tags),
  shown: plots.filter((one) => one.visible).map((one) => one.name),
  end: plot.x_range.end,
  titles: [plot.below[0].axis_label, plot.left[0].axis_label],
  color: lines[0].glyph.line_color.value ?? lines[0].glyph.line_color,
};
"""
PLACE = """
const view = [...Bokeh.index][0].child_views.find((one) => one.model.visible);
const line = view.model.renderers.find((one) => one.tags[1] === "mean");
const data = line.data_source.data, box = view.el.getBoundingClientRect();
return [box.left + view.frame.x_scale.compute(data.x[2]),
        box.top + view.frame.y_scale.compute(data.y[2])].map(Math.round);
"""
TOOLTIP = """
const words = (node) => [...node.childNodes].map((one) => one.nodeName === "STYLE" ? ""
  : (one.textContent && !one.shadowRoot && !one.childNodes.length ? one.textContent : "")
  + (one.shadowRoot ? words(one.shadowRoot) : "") + words(one)).join(" ");
return words(document.body);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless.Browser(1280, 1600) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_html(synthetic.two_arms(), "rigl"), encoding="utf-8")
    return path


def complaints(browser: Any) -> list[str]:
    """What the console holds beside plain information."""
    return [entry["message"] for entry in browser.log() if entry["level"] != "INFO"]


def test_the_page_loads_in_silence_and_asks_for_nothing(browser: Any, page: Path) -> None:
    browser.requests()
    browser.open(page)
    assert complaints(browser) == []
    own = [url for url in browser.requests() if not url.startswith(("data:", "blob:", "chrome:"))]
    assert own == [page.resolve().as_uri()]


def test_switching_the_axis_changes_the_curve(browser: Any, page: Path) -> None:
    browser.open(page)
    before, picture = browser.run(STATE), browser.screenshot()
    assert before["x"][0][:3] == [1, 2, 3]
    browser.run("document.querySelector('button[data-x=passes]').click()")
    after = browser.run(STATE)
    assert after["titles"][0].startswith("Data passes")
    corrected = after["tags"].index([1, "mean"])
    assert after["x"][corrected][:2] == pytest.approx([10 / 3, 20 / 3], rel=1e-4)
    assert after["y"] == before["y"]
    browser.run_async("requestAnimationFrame(() => setTimeout(arguments[0], 300))")
    assert browser.screenshot() != picture
    assert browser.run(STATE)["end"] > 2 * before["end"]
    pressed = (
        "return [...document.querySelectorAll('[data-x][aria-pressed=true]')].map(b=>b.dataset.x)"
    )
    assert browser.run(pressed) == ["passes"]
    assert complaints(browser) == []


def test_switching_the_quantity_changes_the_curve(browser: Any, page: Path) -> None:
    browser.open(page)
    before = browser.run(STATE)
    browser.run(
        "const one = document.getElementById('y-axis'); one.value = 'train_loss';"
        "one.dispatchEvent(new Event('change'));"
    )
    after = browser.run(STATE)
    assert after["titles"][1] == "Training loss"
    assert after["x"] == before["x"]
    assert max(after["y"][0]) < 5 < min(before["y"][0])


def test_a_logarithmic_axis_can_be_had(browser: Any, page: Path) -> None:
    browser.open(page, "#y=train_loss")
    assert browser.run(STATE)["shown"] == ["linear"]
    browser.run("document.getElementById('log-scale').click()")
    browser.run_async("requestAnimationFrame(() => setTimeout(arguments[0], 300))")
    assert browser.run(STATE)["shown"] == ["log"]
    assert browser.run(STATE)["titles"] == ["Epochs", "Training loss"]
    assert browser.run("return location.hash") == "#x=epochs&y=train_loss&log=1"
    browser.move_pointer(*browser.run(PLACE))
    assert "rigl, mean of 3 seeds" in browser.run(TOOLTIP)
    assert complaints(browser) == []


def test_arms_and_seeds_are_clicked_off_and_on(browser: Any, page: Path) -> None:
    browser.open(page)
    click = "document.querySelector('button[data-arm=\"1\"]').click()"
    browser.run(click)
    state = browser.run(STATE)
    assert [tag for tag, seen in zip(state["tags"], state["visible"], strict=True) if seen] == [
        [0, "seed"],
        [0, "seed"],
        [0, "seed"],
        [0, "mean"],
    ]
    browser.run("document.getElementById('show-seeds').click()")
    assert sum(browser.run(STATE)["visible"]) == 1
    browser.run(click)
    assert sum(browser.run(STATE)["visible"]) == 2
    assert browser.run("return location.hash") == "#x=epochs&y=test_accuracy&seeds=0"


def test_an_address_opens_the_view_that_it_names(browser: Any, page: Path) -> None:
    browser.open(page, "#x=flops&y=test_loss&hide=0&seeds=0")
    state = browser.run(STATE)
    assert state["titles"] == ["Training FLOPs (in 1e12)", "Test loss"]
    assert sum(state["visible"]) == 1
    browser.open(page, "#x=constructor&y=nonsense&hide=7")
    state = browser.run(STATE)
    assert state["titles"] == ["Epochs", "Test accuracy (%)"]
    assert complaints(browser) == []


def test_pointing_at_a_dot_shows_its_values(browser: Any, page: Path) -> None:
    browser.open(page, "#y=train_loss")
    browser.move_pointer(*browser.run(PLACE))
    shown = browser.run(TOOLTIP)
    loss = browser.run(STATE)["y"][3][2]
    assert "rigl, mean of 3 seeds" in shown
    assert f"Training loss: {loss:.5g}" in shown


def test_labels_stay_text_in_the_page_and_in_its_tooltips(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "evil.html"
    runs = [synthetic.training_run(label, 0, epochs=5) for label in (EVIL, "plain")]
    path.write_text(page_html(runs, EVIL), encoding="utf-8")
    browser.open(path)
    browser.move_pointer(*browser.run(PLACE))
    assert EVIL in browser.run(TOOLTIP)
    assert browser.run("return window.broken ?? null") is None
    assert complaints(browser) == []


def test_the_page_fits_a_phone_and_follows_a_dark_ground(page: Path) -> None:
    with headless.Browser(390, 800, "--blink-settings=preferredColorScheme=0") as phone:
        phone.call(
            "goog/cdp/execute",
            {
                "cmd": "Emulation.setDeviceMetricsOverride",
                "params": {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True},
            },
        )
        phone.open(page)
        widths = phone.run("return [innerWidth, document.documentElement.scrollWidth]")
        assert widths == [390, 390]
        assert phone.run(STATE)["color"] == "#d8d8d8"
        ground = "return getComputedStyle(document.body).backgroundColor"
        assert phone.run(ground) == "rgb(20, 23, 26)"


def test_a_page_without_curves_loads_in_silence(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_text(page_html([synthetic.run("a", 0, [])], None), encoding="utf-8")
    browser.open(path, wait=False)
    assert complaints(browser) == []
