"""Help, lists and mistakes are answered at once, and the two readers of words agree."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise import __version__, cli
from equipoise.data import dataset_names
from equipoise.listing import CORRECTORS, OBJECTIVES, TOPOLOGIES
from equipoise.models import model_names

COMMANDS = (
    *("train", "compare", "hydra", "evaluate", "attack", "export"),
    *("report", "analyse", "plan", "bench", "demo", "reproduce", "list"),
)

WITHOUT_TORCH = """
import sys
from equipoise.cli import main
codes = []
for words in {lines!r}:
    try:
        main(words)
    except SystemExit as ended:
        codes.append(ended.code)
    assert "torch" not in sys.modules, words
print("codes", codes)
"""


def test_help_lists_and_mistakes_do_not_load_torch() -> None:
    right = [[command, "--help"] for command in COMMANDS] + [["--help"], ["-h"], ["--version"]]
    right += [[], ["train", "-h"], ["list"], ["reproduce", "--list"]]
    wrong = [
        ["trian"],
        ["train", "--epocs", "3"],
        ["train", "--epochs", "three"],
        ["train", "--sparsity", "90"],
        ["compare", "--arms", "rigll", "set"],
        ["compare", "--arms", "rigl"],
        ["evaluate"],
        ["hydra", "--score-epochs", "0"],
        ["hydra", "--sparsity", "0"],
        ["hydra", "--finetune-rate", "0"],
        ["hydra", "--snapshot", "adversarial"],
        ["hydra", "--topology", "rigl"],
        ["attack"],
        ["attack", "x", "--module", "y"],
        ["attack", "x", "--eps", "8"],
        ["report", "--runs", "nothing"],
        ["demo", "corection"],
        ["reproduce", "table-12"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(lines=right + wrong)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"codes {[0] * len(right) + [2] * len(wrong)}" in done.stdout
    assert "Traceback" not in done.stderr


def plain(text: str) -> str:
    """Text without boxes and colours, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", text).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_with_a_text(command: str, call: Callable[..., Any]) -> None:
    result = call(command, "--help")
    assert (result.code, result.err) == (0, "")
    shown = plain(result.out)
    for name in cli._options(command):
        place = shown.find(f"--{name}")
        assert place >= 0, name
        # Its names and type end in a bracket or capitals; then comes a text that ends in a stop.
        assert re.match(rf"--{name}\b.*?[\]}}A-Zs] [a-zA-Z`].*?\.", shown[place:]), name
    assert "(no helptext" not in shown


def test_help_of_all_names_every_command(call: Callable[..., Any]) -> None:
    result = call("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert re.search(rf"\b{command} +[A-Z]", plain(result.out)), command


def test_the_version(call: Callable[..., Any]) -> None:
    assert call("--version") == (0, f"equipoise {__version__}\n", "")


def test_lists_name_everything(call: Callable[..., Any]) -> None:
    result = call("list")
    assert (result.code, result.err) == (0, "")
    words = set(result.out.split())
    everything = (*dataset_names(), *model_names(), *TOPOLOGIES, *CORRECTORS, *OBJECTIVES)
    assert [name for name in everything if name not in words] == []
    for flag in ("--dataset", "--model", "--topology", "--corrector", "--objective"):
        assert flag in words
    assert re.search(r"digits .*yes", result.out)
    assert re.search(r"svhn .*no; --download fetches it", result.out)


def test_lists_say_where_the_data_are(
    call: Callable[..., Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a-long-name-" * 8) / "svhn"
    folder.mkdir(parents=True)
    (folder / "train_32x32.mat").write_bytes(b"x")
    monkeypatch.setenv("EQUIPOISE_DATA", str(folder.parent))
    lines = [line.rstrip() for line in call("list").out.splitlines()]
    start = lines[0].index("on this machine")
    # A long path goes on below itself instead of being cut.
    assert str(folder) in "".join(line[start:].strip() for line in lines)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What commands are called with, instead of being run."""
    got: list[Any] = []

    def stub(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def call(*values: Any, **named: Any) -> int:
            got.append([*values, *named.values()])
            return 0

        return call

    for name, command in list(cli._COMMANDS.items()):
        monkeypatch.setitem(cli._COMMANDS, name, stub(command))
    return got


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--epochs", "3"], "epochs", 3),
        (["--epochs=3"], "epochs", 3),
        (["--train_samples", "5"], "train_samples", 5),
        (["--interval", "7"], "interval", 7),
        (["--interval", "0.5"], "interval", 0.5),
        (["--interval", "None"], "interval", None),
        (["--coefficient", "-0.5"], "coefficient", -0.5),
        (["--no-nesterov"], "nesterov", False),
        (["--no_nesterov"], "nesterov", False),
        (["--milestones", "0.1", "0.2"], "milestones", (0.1, 0.2)),
        (["--milestones"], "milestones", ()),
        (["--device", "cuda:1"], "device", "cuda:1"),
    ],
    ids=str,
)
def test_words_become_settings(
    words: list[str], name: str, value: Any, call: Callable[..., Any], parsed: list[Any]
) -> None:
    assert call("train", *words).code == 0
    run = parsed[0][0]
    groups = [vars(group) for group in vars(run).values()]
    found = [group[name] for group in groups if name in group]
    assert found == [value]
    assert type(found[0]) is type(value)


VALUES = ["3", "0.5", "-1", "None", "none", "rigl", "agent", "", "x", "--", "1e3", "nan", "@x"]
VALUES += ["-x", "-", "-inf", "-h2"]


@st.composite
def options(draw: st.DrawFn, kinds: dict[str, Any]) -> list[str]:
    """One option with values that probably fit it."""
    name, kind = draw(st.sampled_from(sorted(kinds.items())))
    if kind is bool:
        return [draw(st.sampled_from([f"--{name}", f"--no-{name}", f"--no_{name}"]))]
    choices = get_args(kind) if get_origin(kind) is Literal else VALUES
    value = st.sampled_from([str(choice) for choice in choices])
    if get_origin(kind) is tuple:
        return [f"--{name}", *draw(st.lists(value, max_size=2))]
    if draw(st.booleans()):
        return [f"--{name}={draw(value)}"]
    return [f"--{name.replace('-', '_')}", draw(value)]


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with some options, and now and then a word that does not belong there."""
    command = draw(st.sampled_from(COMMANDS))
    kinds = cli._options(command)
    drawn = draw(st.lists(options(kinds), max_size=3)) if kinds else []
    words = [word for option in drawn for word in option]
    strange = draw(st.lists(st.sampled_from(["-h", "x", "--help", "--no-epochs", "", "-x"])))
    if draw(st.integers(0, 3)) == 0:
        words += strange[:1]
    return [command, *words]


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)
@given(words=lines())
def test_words_are_understood_or_refused_in_one_sentence(
    words: list[str], call: Callable[..., Any], parsed: list[Any]
) -> None:
    """What is let through is understood: nobody sees the boxes of the parser behind."""
    parsed.clear()
    result = call(*words)
    if result.code == 0:
        assert parsed or "usage:" in result.out
        assert result.err == ""
    else:
        assert result.code == 2
        assert result.err.startswith("equipoise: ")
        assert parsed == []
        shown = result.out + result.err
        assert not any(sign in shown for sign in ("Traceback", "\u2502", "Unrecognized"))
