"""A stored run: 200 steps of a sparse, corrected training on data made here.

The curve is a text file. A change without numerical effect leaves it as it is; to accept a change
with one, run ``python tests/golden/test_golden_run.py`` and say so in the changelog under
"Numerical".
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from equipoise.data import synthetic
from equipoise.settings import Run, with_setting
from equipoise.training.session import Session

CURVE = Path(__file__).with_name("rigl_agent_200_steps.txt")
STEPS_PER_EPOCH = 8
EPOCHS = 25

SETTINGS = {
    "model": "mlp",
    "width": 0.125,
    "topology": "rigl",
    "sparsity": 0.9,
    "interval": 20,
    "corrector": "agent",
    "scaling": 0.5,
    "learning_rate": 0.02,
    "batch_size": 32,
    "epochs": EPOCHS,
    "device": "cpu",
    "engine": "dense",
}


def curve() -> list[str]:
    """One line an epoch: epoch, training loss, coefficient, share of weights ever active."""
    run = Run()
    for name, value in SETTINGS.items():
        run = with_setting(run, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        session = Session(run, synthetic(32 * STEPS_PER_EPOCH, 64, image_size=8, seed=0))
        lines = []
        for _ in range(EPOCHS):
            session.refresh(session.refresh_batches())
            for group in session.batches():
                session.train_step(group)
            record = session.finish_epoch()
            lines.append(
                f"{record.epoch:3d} {record.train_loss:.6f} {record.coefficient:+.5f} "
                f"{record.exploration_rate:.5f}"
            )
        assert session.step == STEPS_PER_EPOCH * EPOCHS
        return lines
    finally:
        torch.set_num_threads(threads)


def test_the_run_is_the_stored_one() -> None:
    stored = [line.split() for line in CURVE.read_text().splitlines()]
    found = [line.split() for line in curve()]
    assert len(found) == len(stored)
    for new, old in zip(found, stored, strict=True):
        # Other processors round differently, and 200 steps make a little of that.
        assert float(new[1]) == pytest.approx(float(old[1]), rel=0.05, abs=1e-3), new[0]
        assert float(new[2]) == pytest.approx(float(old[2]), abs=0.03), new[0]
        assert float(new[3]) == pytest.approx(float(old[3]), abs=0.005), new[0]


def test_the_same_process_repeats_it_to_the_last_bit() -> None:
    assert curve() == curve()


if __name__ == "__main__":
    CURVE.write_text("\n".join(curve()) + "\n")
