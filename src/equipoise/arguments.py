"""Words of the command line: converted, and refused in one sentence where they are wrong.

The command line is built from the types of the settings; this module gives a mistake in it the
same kind of answer everywhere: what was got, what is allowed, and the nearest valid name.
"""

from __future__ import annotations

import difflib
import itertools
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from equipoise.settings import Run, setting_types, with_setting


class Arm(NamedTuple):
    """One arm of a comparison: its name and what is trained."""

    label: str
    run: Run


def nearest(word: str, names: Iterable[str]) -> str:
    """A hint at the closest valid name, or nothing.

    Example:
        >>> nearest("rigll", ["set", "rigl"])
        '; did you mean rigl?'
    """
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def convert(flag: str, text: str, kind: Any) -> Any:
    """The value that `text` stands for.

    Args:
        flag: Name of the setting, for the message.
        text: One word.
        kind: Type of the setting.

    Raises:
        ValueError: The word is not of that type.

    Example:
        >>> convert("--interval", "0.5", int | float | None)
        0.5
    """
    origin = get_origin(kind)
    if origin is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        if text not in choices:
            raise ValueError(
                f"{flag} is one of {', '.join(choices)}; got {text!r}{nearest(text, choices)}"
            )
        return text
    if origin in (Union, types.UnionType):
        return _first_that_fits(flag, text, get_args(kind))
    if origin is tuple:
        return tuple(convert(flag, word, get_args(kind)[0]) for word in text.split("/"))
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{flag} is true or false; got {text!r}")
        return text == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{flag} takes {what}; got {text!r}") from None
    if kind is Path and not text:
        raise ValueError(f"{flag} takes a path; got ''; write . for the folder you are in")
    return Path(text) if kind is Path else text


def check_words(
    words: Sequence[str],
    kinds: Mapping[str, Any],
    command: str,
    *,
    required: Iterable[str] = (),
) -> None:
    """Refuses an option that does not exist, has a value of the wrong type, or is missing.

    Args:
        words: What follows the name of the command.
        kinds: Types of the options, by name with dashes and without the leading ones.
        command: Name of the command, for the message.
        required: Names of the options that must be there.

    Raises:
        ValueError: One sentence.

    Example:
        >>> check_words(["--epochs", "3"], {"epochs": int}, "train")
    """
    missing = dict.fromkeys(required)
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "-h":
            return
        if not word.startswith("--"):
            raise ValueError(
                f"{word!r} is not an option of `equipoise {command}`; options start with --, "
                f"see `equipoise {command} --help`{_with_equals(words[: position - 1], word)}"
            )
        name, equals, value = word[2:].partition("=")
        name = name.replace("_", "-")
        if name == "help" and not equals:
            return
        kind = _kind(name, kinds, command)
        values = [value] if equals else _values(words[position:])
        if not equals:
            position += len(values)
        _check_values(f"--{name}", values, kind)
        missing.pop(name, None)
    for name in missing:
        raise ValueError(f"`equipoise {command}` needs --{name}; see `equipoise {command} --help`")


def parse_arm(text: str, base: Run) -> Arm:
    """Reads one arm: ``[name:]topology[+corrector][,setting=value ...]``.

    Args:
        text: For example ``rigl``, ``rigl+agent``, ``double:rigl,batch_size=256``.
        base: The settings that all arms share.

    Raises:
        ValueError: One sentence on what does not exist.

    Example:
        >>> arm = parse_arm("double:rigl+agent,batch_size=256", Run())
        >>> arm.label, arm.run.loop.batch_size
        ('double', 256)
    """
    # A colon after the first comma belongs to a value, as in device=cuda:1.
    head, *changes = text.split(",")
    name, _, method = head.rpartition(":")
    topology, plus, corrector = method.partition("+")
    kinds = setting_types()
    where = f"in the arm {text!r}"
    run = base
    for setting, word in (("topology", topology), ("corrector", corrector if plus else "none")):
        run = with_setting(run, setting, convert(f"{where} the {setting}", word, kinds[setting]))
    for change in changes:
        setting, equals, word = change.partition("=")
        setting = setting.strip().replace("-", "_")
        if not equals or setting not in kinds:
            raise ValueError(
                f"{where} {change!r} is not setting=value with a setting of `equipoise train`"
                + nearest(setting, kinds)
            )
        if setting == "seed":
            raise ValueError(
                f"{where} seed cannot be set, since the arms of a comparison share their seeds; "
                "use --seed and --num-seeds"
            )
        run = with_setting(run, setting, convert(f"{where} {setting}", word, kinds[setting]))
    return Arm(name or ",".join([method, *changes]), run)


def _first_that_fits(flag: str, text: str, kinds: Sequence[Any]) -> Any:
    """The first member of a union that takes the word."""
    if text == "None" and type(None) in kinds:
        return None
    problem = ValueError()
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return convert(flag, text, kind)
        except ValueError as error:
            problem = error
    hint = "; did you mean None?" if type(None) in kinds and text.lower() == "none" else ""
    raise ValueError(f"{problem}{hint}")


def _kind(name: str, kinds: Mapping[str, Any], command: str) -> Any:
    """Type of an option; switches may be negated."""
    if name in kinds:
        return kinds[name]
    if name.startswith("no-") and kinds.get(name[3:]) is bool:
        return bool
    raise ValueError(
        f"`equipoise {command}` has no option --{name}"
        + nearest(name, kinds).replace("mean ", "mean --")
    )


def _values(words: Sequence[str]) -> list[str]:
    """The words up to the next option."""
    return list(itertools.takewhile(lambda word: not _looks_like_option(word), words))


def _looks_like_option(word: str) -> bool:
    """Whether a word is no value to the parser: two dashes, or one before a letter (-x, not -1)."""
    if word.lower() in ("-inf", "-infinity", "-nan"):
        return False
    return word.startswith("--") or (word.startswith("-") and word[1:2].isalpha())


def _with_equals(before: Sequence[str], word: str) -> str:
    """How to pass a word with a dash as a value, if it stood where one is expected."""
    if not (before and before[-1].startswith("--") and word.startswith("-")):
        return ""
    return f", or write {before[-1].partition('=')[0]}={word} if that is its value"


def _check_values(flag: str, values: Sequence[str], kind: Any) -> None:
    """Right number and right type of values."""
    if kind is bool:
        if values:
            raise ValueError(f"{flag} is a switch and takes no value; got {values[0]!r}")
        return
    if get_origin(kind) is tuple:
        for value in values:
            convert(flag, value, get_args(kind)[0])
        return
    if len(values) != 1:
        got = "none" if not values else " ".join(values)
        raise ValueError(f"{flag} takes one value; got {got}")
    convert(flag, values[0], kind)
