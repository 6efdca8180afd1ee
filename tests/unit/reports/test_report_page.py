import json
import math
import re
from html.parser import HTMLParser
from importlib import import_module
from typing import Any

import pytest

from equipoise.reports.page import page_html

synthetic = import_module("tests.unit.reports.synthetic_runs")
record, run = synthetic.record, synthetic.run

EVIL = "</script><img src=x onerror=alert(1)>\"'&$$x$$"


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text.append(data)


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def words(page: str) -> str:
    return " ".join(" ".join(parsed(page).text).split())


def embedded(page: str) -> Any:
    """The data of the page; numbers that JSON does not know are an error."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found.group(1), parse_constant=refuse)


def test_the_verdict_comes_before_everything_else() -> None:
    page = words(page_html(synthetic.two_arms(), "rigl"))
    verdict = page.index("rigl+agent against rigl (n = 3 pairs): at equal epochs")
    for later in ("Curves", "Differences at equal cost", "Results and cost", "What the words mean"):
        assert verdict < page.index(later)
    assert page.startswith(2 * "rigl+agent against rigl " + "Equipoise report: 2 arms, 6 runs")


def test_the_page_is_one_file_that_fetches_nothing_and_forbids_it() -> None:
    page = page_html(synthetic.two_arms(), "rigl")
    for tag, attributes in parsed(page).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "a"}
        assert not {"src", "href", "srcset", "action", "data"} & attributes.keys()
    policy = next(a for t, a in parsed(page).tags if t == "meta" and "http-equiv" in a)["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert len(page) < 2_000_000


def test_everything_from_records_is_escaped() -> None:
    details = {"run": {EVIL: EVIL, "epochs": 3}, "device": EVIL}
    runs = [synthetic.training_run(EVIL, s, epochs=3, **details) for s in (0, 1)]
    runs += [synthetic.training_run("plain", s, epochs=3) for s in (0, 1)]
    page = page_html(runs, "plain")
    tags = [tag for tag, _ in parsed(page).tags]
    assert "img" not in tags
    assert tags.count("script") == 3
    assert EVIL not in page
    assert EVIL in words(page)
    assert EVIL in json.dumps(embedded(page), ensure_ascii=False).replace('\\"', '"')


def test_style_and_script_values_hold_numbers_and_colours_only() -> None:
    runs = [synthetic.training_run(EVIL, 0), synthetic.training_run("plain", 0)]
    for tag, attributes in parsed(page_html(runs, "plain")).tags:
        style = attributes.get("style") or ""
        assert re.fullmatch(r"[-a-z0-9 #:;.%]*", style), (tag, style)
        assert not any(name.startswith("on") for name in attributes)


def test_all_costs_and_what_was_measured_can_be_chosen() -> None:
    page = page_html([synthetic.training_run("a", s, validation=True) for s in (0, 1)], None)
    tags = parsed(page).tags
    buttons = [a["data-x"] for t, a in tags if t == "button" and "data-x" in a]
    assert buttons == ["epochs", "passes", "flops", "seconds"]
    options = {attributes["value"] for tag, attributes in tags if tag == "option"}
    assert {"test_accuracy", "train_loss", "validation_accuracy", "test_loss"} <= options
    assert {"sparsity", "exploration_rate"} <= options
    assert "coefficient" not in options


def test_without_validation_there_is_none_to_choose() -> None:
    assert "Validation" not in words(page_html([synthetic.training_run()], None))


def test_a_single_run_has_curves_and_no_verdict() -> None:
    page = page_html([synthetic.training_run("rigl", 0)], None)
    assert embedded(page)["colors"]["light"] == ["#0072b2"]
    text = words(page)
    assert "no baseline to compare with" in text
    assert "Differences at equal cost" not in text
    assert "1 run" in text


def test_unfinished_and_empty_runs_are_said_so() -> None:
    runs = [synthetic.training_run("a", 0, epochs=7, planned=20), run("a", 1, [])]
    text = words(page_html(runs, None))
    assert "Unfinished: 1 of 2 runs. The numbers are those of the last completed epoch." in text
    assert "Without a completed epoch: 1 of 2 runs, left out." in text
    assert "a, seed 0 (unfinished: 7 of 20 epochs)" in text
    assert "Unfinished" not in words(page_html([synthetic.training_run()], None))


def test_runs_without_any_record_make_a_page_without_curves() -> None:
    page = page_html([run("a", 0, [])], None)
    assert "page-data" not in page
    assert "Curves" not in words(page)


def test_one_seed_has_no_seed_lines_to_hide() -> None:
    runs = [synthetic.training_run("a", 0), synthetic.training_run("b", 0)]
    page = page_html(runs, "a")
    assert "not enough seeds" in words(page)
    assert "Thin lines" not in words(page)


def test_numbers_that_are_not_finite_stay_valid_json() -> None:
    rows = [record(1, train_loss=math.nan, test_loss=math.inf), record(2)]
    embedded(page_html([run("a", 0, rows), run("b", 0, rows)], "a"))


def test_settings_and_manifests_are_shown() -> None:
    text = words(page_html(synthetic.two_arms(), "rigl"))
    assert "Settings that are not the same in all arms" in text
    assert "correction.corrector none agent" in text
    assert text.count('"name": "Some processor"') == 6


def test_the_bars_are_to_scale() -> None:
    page = page_html(synthetic.two_arms(), "rigl")
    widths = [
        float(re.sub(r"[^\d.]", "", attributes["style"] or ""))
        for tag, attributes in parsed(page).tags
        if attributes.get("class") == "bar"
    ]
    assert widths == pytest.approx([100 * 3.05 / 7.65, 100.0], abs=0.01)


def test_interval_marks_lie_inside_their_box() -> None:
    page = page_html(synthetic.two_arms(), "rigl")
    marks = re.findall(r'<b style="left: ([\d.]+)%; width: ([\d.]+)%">', page)
    assert len(marks) == 3
    for left, width in marks:
        assert float(left) >= 0
        assert float(left) + float(width) <= 100


def test_a_baseline_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no run has the label 'dense'"):
        page_html(synthetic.two_arms(1, 2), "dense")


def test_the_text_is_not_escaped_twice() -> None:
    page = page_html([synthetic.training_run("a&b", 0, epochs=2)], None)
    assert "<h1>a&amp;b</h1>" in page
    assert "&amp;amp;" not in page
