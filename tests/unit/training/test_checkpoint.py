"""A checkpoint is written whole or not at all, and reading one never runs its content."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.training.checkpoint import load_checkpoint, save_checkpoint

STATE: dict[str, Any] = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3)},
    "position": {"epoch": 3, "name": "x", "sizes": [1, 2], "none": None, "yes": True},
}


def sentence(path: Path) -> str:
    """What is said about a file that cannot be read."""
    with pytest.raises(ValueError, match=r"\.$") as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "checkpoint.pt"
    save_checkpoint(path, STATE)
    got = load_checkpoint(path)
    assert torch.equal(got["model"]["weight"], STATE["model"]["weight"])
    assert got["position"] == STATE["position"]
    assert set(got) == set(STATE)
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]
    assert "format" not in STATE


@pytest.mark.parametrize("where", ["before", "middle", "sync", "rename"])
def test_a_failure_while_writing_keeps_the_old_file(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    before, save = path.read_bytes(), torch.save

    def fails(*args: Any, **kwargs: Any) -> None:
        if where == "middle":
            save({"format": 1}, args[1])
            args[1].write(b"half of")
            args[1].flush()
        raise OSError(28, "No space left on device")

    if where in ("before", "middle"):
        monkeypatch.setattr(torch, "save", fails)
    elif where == "sync":
        monkeypatch.setattr(os, "fsync", fails)
    else:
        monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"model": {}})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert load_checkpoint(path)["position"] == STATE["position"]
    save_checkpoint(path, {"position": 4})  # what is left over is not in the way
    assert load_checkpoint(path) == {"position": 4}


def test_the_file_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def spied_sync(descriptor: int) -> None:
        calls.append("sync")
        sync(descriptor)

    def spied_replace(self: Path, target: Path) -> Path:
        calls.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spied_sync)
    monkeypatch.setattr(Path, "replace", spied_replace)
    save_checkpoint(tmp_path / "checkpoint.pt", STATE)
    assert calls == ["sync", "replace"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no checkpoint at .*; pass .*\.$"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(share: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "damaged" in sentence(path)


@pytest.mark.parametrize("content", [b"\0" * 500, b"{}", b"PK\x03\x04", bytes(range(256)) * 20])
def test_garbage(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    assert "damaged" in sentence(path)


def test_flipped_bits_in_the_structure(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    place = content.index(b"data.pkl") + 60
    content[place : place + 40] = bytes(255 - byte for byte in content[place : place + 40])
    path.write_bytes(content)
    assert "damaged" in sentence(path)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").mkdir()
    assert "damaged" in sentence(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("content", [[1, 2], 7, {"model": 1}, {"format": 2}, {"format": "1"}])
def test_another_format(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    assert "format" in sentence(path)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("way", ["torch", "pickle", "zip"])
def test_a_malicious_file_is_not_executed(way: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "checkpoint.pt", tmp_path / "executed"
    content = {"format": 1, "model": Malicious(trace)}
    if way == "torch":
        torch.save(content, path)
    elif way == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"format": 1}, path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                malicious = name.endswith("data.pkl")
                archive.writestr(name, pickle.dumps(content, protocol=2) if malicious else part)
    sentence(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(content))
    assert trace.exists(), "the file was harmless"
