"""Records of a tiny training, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.experiments.families import changed
from equipoise.records import RECORDS
from equipoise.settings import Run
from equipoise.training.loop import train


@pytest.fixture(scope="session")
def golden_rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four epochs, a line each."""
    folder: Path = tmp_path_factory.mktemp("records")
    run = changed(Run(), model="mlp", width=0.05, train_samples=32, test_samples=16, epochs=4)
    train(changed(run, engine="dense", interval=1), folder)
    return (folder / RECORDS).read_text().splitlines()
