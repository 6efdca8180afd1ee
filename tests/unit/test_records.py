"""Records and manifests are read back as they were written, or not at all."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.records import (
    MANIFEST,
    RECORDS,
    EpochRecord,
    find_runs,
    read_records,
    read_run,
    write_atomically,
    write_records,
)

make: Any = import_module("tests.unit.reports.synthetic_runs").record


def same(left: EpochRecord, right: EpochRecord) -> bool:
    """Equal, and not-a-number in the same places."""
    pairs = zip(asdict(left).values(), asdict(right).values(), strict=True)
    return all(a == b or (a != a and b != b) for a, b in pairs)


KINDS = {int: st.integers(), float: st.floats(), int | None: st.none() | st.integers()}
ANY = st.builds(
    EpochRecord,
    **{n: KINDS.get(k, st.none() | st.floats()) for n, k in get_type_hints(EpochRecord).items()},
)


@given(st.lists(ANY, max_size=3))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[EpochRecord]) -> None:
    path = tmp_path_factory.mktemp("records") / RECORDS
    write_records(path, records)
    got = read_records(path)
    assert len(got) == len(records)
    assert all(map(same, got, records))


def test_one_line_a_record_in_the_order_of_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "new" / RECORDS
    write_records(path, [make(1), make(2, train_loss=math.nan)])
    lines = path.read_text(encoding="ascii").splitlines()
    assert len(lines) == 2
    assert list(json.loads(lines[0])) == [field.name for field in fields(EpochRecord)]


def test_every_field_is_described() -> None:
    described = str(EpochRecord.__doc__)
    for field in fields(EpochRecord):
        assert f"\n        {field.name}: " in described, field.name


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / RECORDS) == []


def test_fields_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / RECORDS
    path.write_text(json.dumps(asdict(make(1)) | {"colour": "red"}) + "\n")
    assert read_records(path) == [make(1)]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"7",
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b'{"epoch": 1}',
        b"\xff\xfe",
        b"\xff no",
        b"\0",
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, place: int) -> None:
    path = tmp_path / RECORDS
    write_records(path, [make(1), make(2)])
    lines = path.read_bytes().splitlines()
    lines.insert(place, line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(
        ValueError, match=f"line {place + 1}, is not a record of format 1"
    ) as caught:
        read_records(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_last_line_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / RECORDS
    write_records(path, [make(1), make(2)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="line 2, is not a record"):
        read_records(path)


@pytest.mark.parametrize("where", ["sync", "rename"])
def test_a_failure_while_writing_keeps_the_old_file(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    write_atomically(path, "old")

    def fails(*passed: Any) -> None:
        raise OSError(28, "No space left on device")

    if where == "sync":
        monkeypatch.setattr(os, "fsync", fails)
    else:
        monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    write_atomically(path, "n\u00e9w\n")
    assert path.read_bytes() == "n\u00e9w\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def store(folder: Path, **manifest: Any) -> Path:
    write_atomically(folder / MANIFEST, json.dumps({"label": "set", "seed": 3} | manifest))
    write_records(folder / RECORDS, [make(1)])
    return folder


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = read_run(store(tmp_path, extra=1))
    assert (run.folder, run.label, run.seed) == (tmp_path, "set", 3)
    assert run.manifest["extra"] == 1
    assert run.epochs == [make(1)]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"null", b'{"label": "x"}', b'{"seed": 1}', b"\xff\xfe", b"\xff no"],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (store(tmp_path) / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged \(.*\); .*\.$") as caught:
        read_run(tmp_path)
    assert str(tmp_path / MANIFEST) in str(caught.value)


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no manifest\.json; .*\.$"):
        read_run(tmp_path)


def test_runs_are_found_at_any_depth_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/seed1", "a/seed2", "a/seed1", "c"):
        store(tmp_path / name)
    (tmp_path / "d").mkdir()
    names = [run.folder.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert names == ["a/seed1", "a/seed2", "b/seed1", "c"]
    assert [run.folder for run in find_runs(tmp_path / "c")] == [tmp_path / "c"]
    assert find_runs(tmp_path / "d") == []


def test_reading_runs_does_not_load_torch() -> None:
    code = "import sys, equipoise.records; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_comparison_consists_of_the_runs_that_it_lists(tmp_path: Path) -> None:
    for name in ("new", "stale"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"label": name, "seed": 0}))
    assert [run.label for run in find_runs(tmp_path)] == ["new", "stale"]
    (tmp_path / "comparison.json").write_text(json.dumps({"runs": ["new", "not-begun"]}))
    assert [run.label for run in find_runs(tmp_path)] == ["new"]
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        find_runs(tmp_path)
