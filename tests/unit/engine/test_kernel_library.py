"""The compiled library: found, refused with a reason, and done without."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.engine import library
from equipoise.engine.layers import compact_layer
from equipoise.engine.library import (
    INSTRUCTIONS,
    LIBRARY_VARIABLE,
    VARIABLE,
    kernels,
    library_path,
    unavailable_because,
)

kit: Any = import_module("tests.unit.engine.engine_kit")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def one_sentence(reason: str | None) -> str:
    assert reason is not None
    assert reason.endswith(".")
    # Paths and numbers have points too, but none that a capital follows after a space.
    assert not re.search(r"\. [A-Z]", reason)
    assert "\n" not in reason
    return reason


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    reason = one_sentence(unavailable_because())
    assert "switched off" in reason
    with pytest.raises(RuntimeError, match="switched off"):
        kernels()


@pytest.mark.parametrize("word", ["", "sse", "AVX2", "0"])
def test_an_unknown_word(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv(VARIABLE, word)
    reason = one_sentence(unavailable_because())
    assert repr(word) in reason
    assert all(name in reason for name in INSTRUCTIONS)


def test_not_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    library._load.cache_clear()
    try:
        assert library_path() is None
        assert "compiler" in one_sentence(unavailable_because())
    finally:
        library._load.cache_clear()


def test_not_loadable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, content in (("text.so", b"no library"), ("empty.so", b""), (None, b"")):
        path = tmp_path / (name or "missing.so")
        if name:
            path.write_bytes(content)
        monkeypatch.setenv(LIBRARY_VARIABLE, str(path))
        reason = one_sentence(unavailable_because())
        assert str(path) in reason
        assert "cannot be loaded" in reason


def compiled(folder: Path, source: str) -> Path:
    """A library of one file of C."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler to make a library that does not fit")
    (folder / "made.c").write_text(source, encoding="utf-8")
    made = folder / "made.so"
    command = [compiler, "-shared", "-fPIC", str(folder / "made.c"), "-o", str(made)]
    subprocess.run(command, check=True)
    return made


NAMES = ["eq_kernels", "eq_best_instructions", "eq_version", "eq_use_threads_of"]
NAMES += ["eq_make_list", "eq_compare", "eq_update_list"]


def test_of_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "".join(f"int {name}() {{ return 77; }}\n" for name in NAMES)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(compiled(tmp_path, source)))
    assert "another version" in one_sentence(unavailable_because())


def test_of_another_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = compiled(tmp_path, "int something() { return 1; }\n")
    monkeypatch.setenv(LIBRARY_VARIABLE, str(made))
    assert "cannot be loaded" in one_sentence(unavailable_because())


def test_instructions_that_the_processor_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = library._VERSION
    source = "".join(f"void* {name}() {{ return 0; }}\n" for name in NAMES if "ver" not in name)
    source += f"int eq_version() {{ return {version}; }}\n"
    monkeypatch.setenv(LIBRARY_VARIABLE, str(compiled(tmp_path, source)))
    monkeypatch.setenv(VARIABLE, "avx512")
    reason = one_sentence(unavailable_because())
    assert "avx512" in reason
    assert "lacks" in reason


@kit.needs_kernels
def test_auto_is_one_of_the_sets_and_known_by_name() -> None:
    assert kernels().instructions in kit.AVAILABLE
    assert kernels().instructions == kit.AVAILABLE[0], "the best one"
    for name in kit.AVAILABLE:
        with kit.chosen(name):
            assert kernels().instructions == name


@kit.needs_kernels
def test_signatures_follow_the_table_in_kernels_h() -> None:
    # A table in another order would call one kernel with the arguments of another.
    header = Path(library.__file__).parent / "kernels" / "kernels.h"
    if not header.exists():
        pytest.skip("the sources of the kernels are not beside the package")
    table = header.read_text(encoding="utf-8").split("struct EqKernels {")[1]
    names = re.findall(r"void \(\*(\w+)\)\(", table.split("\n};")[0])
    assert names == list(library._SIGNATURES)
    for name, text in re.findall(r"void \(\*(\w+)\)\(([^;]*)\);", table):
        assert len(text.split(",")) == len(library._SIGNATURES[name]), name


@kit.needs_kernels
def test_structs_have_the_fields_of_the_headers() -> None:
    folder = Path(library.__file__).parent / "kernels"
    if not folder.exists():
        pytest.skip("the sources of the kernels are not beside the package")
    texts = "".join(
        (folder / name).read_text(encoding="utf-8")
        for name in ("tensors.h", "kernels.h", "entries.h")
    )
    structs = {
        "EqMaps": library.MapsArgument,
        "EqSize": library.SizeArgument,
        "EqList": library.ListArgument,
        "EqGrid": library.GridArgument,
        "EqGeometry": library.GeometryArgument,
        "EqListRequest": library.RequestArgument,
    }
    for name, argument in structs.items():
        body = texts.split(f"struct {name} {{")[1].split("};")[0]
        body = re.sub(r"//.*", "", body)
        fields = []
        for line in body.split(";"):
            words = re.sub(r"^\s*(const )?\w+\*?\s", "", line.strip())
            fields += [re.sub(r"[\*\s]|\[\d\]", "", w) for w in words.split(",") if w.strip()]
        assert fields == [field[0] for field in argument._fields_], name


def run(code: str, **variables: str) -> str:
    """What a fresh process prints."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_kernels_everything_else_trains() -> None:
    code = """
import warnings
import torch
from torch import nn
import equipoise
from equipoise import Topology
from equipoise.engine.convert import to_engine
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
topology = Topology(model, sparsity=0.5)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert to_engine(model, topology, torch.zeros(4, 8)) is model
(warning,) = caught
print(warning.message)
try:
    to_engine(model, topology, torch.zeros(4, 8), engine="sparse")
except ValueError as error:
    print(error)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
topology.attach(optimizer)
model(torch.ones(4, 8)).square().sum().backward()
optimizer.step()
print(sum(int((p != 0).sum()) for n, p in model.named_parameters() if "weight" in n))
"""
    warned, refused, active = run(code, **{VARIABLE: "off"}).splitlines()
    assert "switched off" in warned
    assert "masks" in warned
    assert "cannot run this network" in refused
    assert active == "40"


@kit.needs_kernels
def test_python_threads_compute_side_by_side() -> None:
    torch.manual_seed(0)
    layers = [compact_layer(nn.Conv2d(8, 8, 3, padding=1), torch.arange(0, 576, 3)) for _ in "abc"]
    inputs = [torch.randn(17 + k, 8, 6, 6) for k in range(3)]
    expected = []
    for layer, x in zip(layers, inputs, strict=True):
        y = layer(x)
        y.sum().backward()
        assert layer.values.grad is not None
        expected.append((y.detach(), layer.values.grad.clone()))
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(20):
            layers[k].values.grad = None
            y = layers[k](inputs[k])
            y.sum().backward()
            same = torch.equal(y, expected[k][0])
            gradient = layers[k].values.grad
            if not (same and gradient is not None and torch.equal(gradient, expected[k][1])):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
