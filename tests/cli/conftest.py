"""The command line in this process and in another, away from the data of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def exit_code(code: object) -> int:
    """What a process would end with."""
    return code if isinstance(code, int) else 0 if code is None else 1


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in, and no data but what comes with the packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("EQUIPOISE_DATA", "EQUIPOISE_CACHE", "XDG_CACHE_HOME", "EQUIPOISE_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def settled() -> Iterator[None]:
    """What a command changes in its process is put back."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    show = warnings.showwarning
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    warnings.showwarning = show
    if threads is not None:
        sys.modules["torch"].set_num_threads(threads)


@pytest.fixture
def call(settled: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command in this process."""
    from equipoise.cli import main

    def run(*words: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return Result(exit_code(ended.value.code), *capsys.readouterr())

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a process, and a process group, of its own."""
    begun: list[subprocess.Popen[str]] = []

    def run(*words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "equipoise", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
