"""Every mistake on the command line gets one sentence, and no word can do worse than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.arguments import Arm, check_words, convert, nearest, parse_arm
from equipoise.settings import (
    CorrectorName,
    Run,
    TopologyName,
    setting_types,
    with_setting,
)
from equipoise.validation import validate

KINDS: dict[str, Any] = {
    "epochs": int,
    "learning-rate": float,
    "interval": int | float | None,
    "train-samples": int | None,
    "topology": TopologyName,
    "corrector": CorrectorName,
    "milestones": tuple[float, ...],
    "arms": tuple[str, ...],
    "nesterov": bool,
    "out": Path | None,
    "run": Path,
    "device": str,
}

RIGHT = [
    [],
    ["--epochs", "3"],
    ["--epochs=3"],
    ["--train_samples", "5"],
    ["--train_samples=None"],
    ["--nesterov"],
    ["--no-nesterov"],
    ["--no_nesterov", "--epochs", "3"],
    ["--interval", "0.5"],
    ["--interval", "100"],
    ["--interval", "None"],
    ["--learning-rate", "-1e-3"],
    ["--milestones"],
    ["--milestones", "0.1", "0.2", "-0.3", "--epochs", "4"],
    ["--milestones=0.1"],
    ["--arms", "rigl", "rigl+agent", "x:set,epochs=3"],
    ["--out", "-"],
    ["--device", "cuda:1"],
    ["--topology", "set_itop"],
    ["--help"],
    ["-h"],
    ["--epochs", "3", "-h"],
    ["--nesterov", "--help", "--no-such-thing"],
    ["--milestones", "0.5", "-h", "garbage"],
]

WRONG: list[tuple[list[str], str]] = [
    (["--epocs", "3"], "`equipoise train` has no option --epocs; did you mean --epochs?"),
    (["--no-nestrov"], "has no option --no-nestrov; did you mean --nesterov?"),
    (["--no-epochs"], "has no option --no-epochs; did you mean --epochs?"),
    (["--"], "has no option --"),
    (["--=3"], "has no option --"),
    (["epochs", "3"], "'epochs' is not an option of `equipoise train`; options start with --"),
    (["-epochs", "3"], "'-epochs' is not an option"),
    (["--epochs"], "--epochs takes one value; got none"),
    (["--epochs", "--nesterov"], "--epochs takes one value; got none"),
    (["--epochs", "3", "4"], "--epochs takes one value; got 3 4"),
    (["--epochs", "three"], "--epochs takes a whole number; got 'three'"),
    (["--epochs", "3.0"], "--epochs takes a whole number; got '3.0'"),
    (["--epochs="], "--epochs takes a whole number; got ''"),
    (["--learning-rate", "fast"], "--learning-rate takes a number; got 'fast'"),
    (["--interval", "often"], "--interval takes a number; got 'often'"),
    (["--interval", "none"], "--interval takes a number; got 'none'; did you mean None?"),
    (["--train-samples", "NONE"], "takes a whole number; got 'NONE'; did you mean None?"),
    (
        ["--topology", "rigll"],
        "--topology is one of dense, static, set, rigl, set_itop, rigl_itop, bsr; "
        "got 'rigll'; did you mean rigl?",
    ),
    (["--topology", "qqq"], "set_itop, rigl_itop, bsr; got 'qqq'"),
    (["--corrector", "Agent"], "got 'Agent'; did you mean agent?"),
    (["--nesterov", "true"], "--nesterov is a switch and takes no value; got 'true'"),
    (["--nesterov=true"], "--nesterov is a switch and takes no value; got 'true'"),
    (["--no-nesterov=1"], "--no-nesterov is a switch and takes no value; got '1'"),
    (["--milestones", "0.5,0.75"], "--milestones takes a number; got '0.5,0.75'"),
    (["--out", ""], "--out takes a path; got ''"),
    (["--out"], "--out takes one value; got none"),
    (["--run", "a", "b"], "--run takes one value; got a b"),
    (["--help=3"], "has no option --help"),
    (["--epochs", "3", "--wrong"], "has no option --wrong"),
]


@pytest.mark.parametrize("words", RIGHT, ids=" ".join)
def test_right_words_pass(words: list[str]) -> None:
    check_words(words, KINDS, "train")


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[" ".join(w) for w, _ in WRONG])
def test_wrong_words_get_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]") as caught:
        check_words(words, KINDS, "train")
    said = str(caught.value)
    assert sentence in said
    assert "\n" not in said


def test_what_is_needed_must_be_there() -> None:
    check_words(["--epochs", "3", "--run=x"], KINDS, "evaluate", required=("run",))
    check_words(["--help"], KINDS, "evaluate", required=("run",))
    check_words(["-h"], KINDS, "evaluate", required=("run",))
    with pytest.raises(ValueError, match=r"^`equipoise evaluate` needs --run; see "):
        check_words(["--epochs", "3"], KINDS, "evaluate", required=("run",))


WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from([f"--{name}" for name in KINDS] + ["--no-nesterov", "-h", "--help"]),
    st.sampled_from(["3", "0.5", "None", "none", "rigl", "", "=", "--", "-1"]),
    st.builds("--{}={}".format, st.sampled_from(sorted(KINDS)), st.text(max_size=5)),
)


@given(st.lists(WORDS, max_size=6))
def test_nothing_but_one_sentence_is_ever_raised(words: list[str]) -> None:
    try:
        check_words(words, KINDS, "train")
    except ValueError as error:
        assert len(str(error)) > 10  # noqa: PT017


@given(st.sampled_from(sorted(map(str, KINDS))), st.text(max_size=12))
def test_conversion_gives_a_value_of_the_type_or_one_sentence(name: str, text: str) -> None:
    try:
        value = convert(f"--{name}", text, KINDS[name])
    except ValueError as error:
        assert f"--{name} " in str(error)  # noqa: PT017
        return
    allowed: dict[str, tuple[type, ...]] = {
        "epochs": (int,),
        "learning-rate": (float,),
        "interval": (int, float, type(None)),
        "train-samples": (int, type(None)),
        "milestones": (tuple,),
        "arms": (tuple,),
        "nesterov": (bool,),
        "out": (Path, type(None)),
        "run": (Path,),
    }
    assert isinstance(value, allowed.get(name, (str,)))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("100", int | float | None, 100),
        ("1.0", int | float | None, 1.0),
        ("None", int | float | None, None),
        ("0.25/0.5", tuple[float, ...], (0.25, 0.5)),
        ("true", bool, True),
        ("false", bool, False),
        ("a/b", Path | None, Path("a/b")),
        ("None", Path | None, None),
        ("none", Path | None, Path("none")),
    ],
)
def test_conversions(text: str, kind: Any, value: Any) -> None:
    got = convert("--x", text, kind)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["True", "1", "yes", ""])
def test_switches_in_arms_are_true_or_false(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--x is true or false; got "):
        convert("--x", text, bool)


def test_the_nearest_name() -> None:
    names = ["epochs", "batch-size", "learning-rate"]
    assert nearest("epoch", names) == "; did you mean epochs?"
    assert nearest("batchsize", names) == "; did you mean batch-size?"
    assert nearest("zzz", names) == nearest("", names) == nearest("x", []) == ""


ARMS: list[tuple[str, str, dict[str, Any]]] = [
    ("rigl", "rigl", {"topology": "rigl", "corrector": "none"}),
    ("set+svrg", "set+svrg", {"topology": "set", "corrector": "svrg"}),
    ("mine:dense", "mine", {"topology": "dense"}),
    (
        "double:rigl+agent,batch_size=256,learning-rate=0.2",
        "double",
        {"topology": "rigl", "corrector": "agent", "batch_size": 256, "learning_rate": 0.2},
    ),
    ("rigl,interval=0.5", "rigl,interval=0.5", {"interval": 0.5}),
    ("rigl,interval=5,stop=None", "rigl,interval=5,stop=None", {"interval": 5, "stop": None}),
    ("static, epochs=3", "static, epochs=3", {"topology": "static", "epochs": 3}),
    (
        "set,milestones=0.2/0.8",
        "set,milestones=0.2/0.8",
        {"topology": "set", "milestones": (0.2, 0.8)},
    ),
    ("set,nesterov=false", "set,nesterov=false", {"topology": "set", "nesterov": False}),
    ("set,device=cuda:1", "set,device=cuda:1", {"topology": "set", "device": "cuda:1"}),
    ("b:set,device=cuda:1", "b", {"topology": "set", "device": "cuda:1"}),
    ("a:b:set", "a:b", {"topology": "set"}),
    (":set", "set", {"topology": "set"}),
    ("x:set,topology=rigl", "x", {"topology": "rigl"}),
]


@pytest.mark.parametrize(("text", "label", "settings"), ARMS, ids=[arm[0] for arm in ARMS])
def test_arms(text: str, label: str, settings: dict[str, Any]) -> None:
    base = with_setting(with_setting(Run(), "corrector", "agent"), "epochs", 77)
    expected = with_setting(base, "corrector", "none")
    for name, value in settings.items():
        expected = with_setting(expected, name, value)
    assert parse_arm(text, base) == Arm(label, expected)


WRONG_ARMS = {
    "": "the topology is one of",
    "rigll": "in the arm 'rigll' the topology is one of dense, static, set, rigl, set_itop, "
    "rigl_itop, bsr; got 'rigll'; did you mean rigl?",
    "rigl+": "the corrector is one of",
    "rigl+agnt": "got 'agnt'; did you mean agent?",
    "rigl+agent+svrg": "the corrector is one of",
    "rigl agent": "the topology is one of",
    "rigl,": "'' is not setting=value",
    "rigl,batch_size": "'batch_size' is not setting=value with a setting of `equipoise train`; "
    "did you mean batch_size?",
    "rigl,batchsize=3": "did you mean batch_size?",
    "rigl,batch_size=": "batch_size takes a whole number; got ''",
    "rigl,batch_size=3.5": "batch_size takes a whole number; got '3.5'",
    "rigl,=3": "'=3' is not setting=value",
    "rigl,nesterov": "is not setting=value",
    "rigl,nesterov=1": "nesterov is true or false; got '1'",
    "rigl,optimizer=adan": "optimizer is one of sgd, sgdw, adam, adamw; got 'adan'; did you mean "
    "adam?",
    "rigl,seed=3": "seed cannot be set",
    "mine:": "the topology is one of",
    "rigl,milestones=0.5/x": "milestones takes a number; got 'x'",
}


@pytest.mark.parametrize("text", WRONG_ARMS)
def test_wrong_arms_get_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="in the arm ") as caught:
        parse_arm(text, Run())
    assert WRONG_ARMS[text] in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.one_of(st.text(max_size=20), st.text("riglset+agn,:=0.5_", max_size=20)))
def test_any_arm_is_parsed_or_refused_in_one_sentence(text: str) -> None:
    try:
        arm = parse_arm(text, Run())
    except ValueError as error:
        assert "in the arm " in str(error)  # noqa: PT017
        return
    assert arm.label
    validate(arm.run)


def test_the_settings_of_the_command_line_are_checked_by_their_own_types() -> None:
    kinds = {name.replace("_", "-"): kind for name, kind in setting_types().items()}
    check_words(["--batch-size", "64", "--sparsity", "0.9", "--no-nesterov"], kinds, "train")
    with pytest.raises(ValueError, match="did you mean --batch-size"):
        check_words(["--batch-sise", "64"], kinds, "train")
