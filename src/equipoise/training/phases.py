"""A training in phases: each is a run in a folder of its own, and all together look like one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise.data import Batch
from equipoise.records import (
    MANIFEST,
    RECORDS,
    EpochRecord,
    read_records,
    write_atomically,
    write_records,
)
from equipoise.settings import Run, as_plain
from equipoise.training.loop import CHECKPOINT, MODEL, finished_records
from equipoise.training.manifest import describe_run
from equipoise.training.observers import Observer
from equipoise.training.session import Session

_SUMMED = (
    *("epoch", "step", "rewirings", "data_passes", "forward_samples", "backward_samples"),
    *("training_flops", "training_seconds", "new_gradient_seconds", "old_gradient_seconds"),
    *("refresh_seconds", "optimizer_seconds", "topology_seconds", "data_seconds"),
    *("attack_seconds", "other_seconds", "evaluation_seconds"),
)
_LARGEST = ("exploration_rate", "peak_memory_bytes")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One of several.

    Args:
        name: Also of its folder, within that of the whole.
        run: Its settings.
        epochs_before: Of the phases before it.
        steps_before: Optimizer steps of the phases before it; 0 until they are known.
    """

    name: str
    run: Run
    epochs_before: int = 0
    steps_before: int = 0

    @property
    def last_epoch(self) -> int:
        """Of this phase, counted from the first epoch of the first phase."""
        return self.epochs_before + self.run.loop.epochs


class Whole:
    """The files of all phases together: made from those of the phases, so never out of step.

    Args:
        run: The settings that its manifest shows; their number of epochs is that of all phases.
        folder: Of the whole; the phases have theirs in it.
        label: Name of the arm.
        method: Entry of the manifest under the name of `kind`: what makes the phases, as JSON.
        kind: Name of the method.
        phases: In order.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        *,
        label: str,
        kind: str,
        method: Mapping[str, Any],
        phases: Sequence[Phase],
    ) -> None:
        self.run = run
        self._folder = folder
        self._label = label
        self._kind = kind
        self._method = dict(method)
        self._phases = phases

    @property
    def is_begun(self) -> bool:
        """Whether its folder has a manifest."""
        return (self._folder / MANIFEST).exists()

    def finished(self) -> list[EpochRecord] | None:
        """Records, if nothing is left to do.

        Raises:
            ValueError: The folder holds another run.
        """
        known = finished_records(self.run, self._folder, self._label)
        found = self._manifest().get(self._kind) if self.is_begun else self._method
        if found != self._method:
            before = found if isinstance(found, Mapping) else {}
            name = next(n for n in self._method if before.get(n) != self._method[n])
            raise ValueError(
                f"{self._folder} holds another run ({name.replace('_', '-')} {before.get(name)} "
                f"instead of {self._method[name]}); "
                "choose another folder, or pass --overwrite to replace it."
            )
        return known

    def describe(self, session: Session, active: Mapping[str, int]) -> None:
        """Writes the manifest, and the records so far.

        Args:
            session: Of the phase that begins or goes on.
            active: Weights that phases compute with, by name, where their masks do not say.
        """
        manifest = describe_run(session, self._label) | {
            "run": as_plain(self.run),
            "identity": self.run.identity,
            "steps": session.steps_per_epoch * self.run.loop.epochs,
            self._kind: self._method,
            "phases": [
                {
                    "name": phase.name,
                    "first_epoch": phase.epochs_before + 1,
                    "last_epoch": phase.last_epoch,
                    "active_weights": active.get(phase.name),
                    "run": as_plain(phase.run),
                }
                for phase in self._phases
            ],
        }
        if self.is_begun:
            manifest["started"] = self._manifest()["started"]
        text = json.dumps(manifest, indent=2) + "\n"
        write_atomically(self._folder / MANIFEST, text)
        self.write_records()

    def write_records(self) -> list[EpochRecord]:
        """Writes the records of all phases, and returns them; epochs and costs go on counting."""
        manifest = self._manifest()
        weights = manifest["network"]["maskable_weights"]
        found: list[EpochRecord] = []
        for phase in manifest["phases"]:
            before, active = found[-1] if found else None, phase["active_weights"]
            for record in read_records(self._folder / phase["name"] / RECORDS):
                if active is not None:
                    record = replace(record, active_weights=active, sparsity=1 - active / weights)
                found.append(record if before is None else following(before, record))
        write_records(self._folder / RECORDS, found)
        return found

    def finish(self) -> list[EpochRecord]:
        """Writes the records and the weights that the last phase has trained."""
        records = self.write_records()
        trained = self._folder / self._phases[-1].name / MODEL
        write_atomically(self._folder / MODEL, trained.read_bytes())
        return records

    def clear(self) -> None:
        """Removes what an earlier run has left, so that none of it is taken for a phase of this."""
        phases = [self._folder / phase.name for phase in reversed(self._phases)]
        for place in (self._folder, *phases):
            for name in (MODEL, CHECKPOINT, RECORDS, MANIFEST):
                (place / name).unlink(missing_ok=True)

    def _manifest(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self._folder / MANIFEST).read_bytes())
        return content


class Placing:
    """An observer of a phase: keeps the files of the whole, and tells others where it stands.

    Args:
        phase: The one that is watched.
        whole: All of them.
        active: As for `Whole.describe`, made from the session.
        on_phase: Told of the phase when it begins or goes on.
        others: Are told what happens; records are those of the whole.
    """

    def __init__(
        self,
        phase: Phase,
        whole: Whole,
        active: Callable[[Session], Mapping[str, int]],
        on_phase: Callable[[Phase], None],
        others: Observer,
    ) -> None:
        self._phase = phase
        self._whole = whole
        self._active = active
        self._on_phase = on_phase
        self._others = others

    def start(self, session: Session) -> None:
        """Tells the session its place, writes the manifest and starts the others."""
        session.epochs_before = self._phase.epochs_before
        session.steps_before = self._phase.steps_before
        session.epochs_in_all = self._whole.run.loop.epochs
        self._whole.describe(session, self._active(session))
        self._on_phase(self._phase)
        self._others.start(session)

    def refreshed(self, session: Session, batch: Batch) -> None:
        """Tells the others."""
        self._others.refreshed(session, batch)

    def stepped(self, session: Session, samples: int) -> None:
        """Tells the others."""
        self._others.stepped(session, samples)

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """Writes the records of the whole and tells the others its last."""
        del record
        self._others.recorded(session, self._whole.write_records()[-1])

    def stop(self) -> None:
        """Stops the others."""
        self._others.stop()


def following(before: EpochRecord, record: EpochRecord) -> EpochRecord:
    """A record of a phase as one of the whole: counts, costs and times go on, peaks are kept.

    Args:
        before: The last record of the phase before, as one of the whole.
        record: Of the phase.
    """
    changes: dict[str, Any] = {
        name: getattr(before, name) + getattr(record, name) for name in _SUMMED
    }
    for name in _LARGEST:
        changes[name] = max(getattr(before, name), getattr(record, name))
    if record.peak_device_memory_bytes is not None:
        peaks = (before.peak_device_memory_bytes or 0, record.peak_device_memory_bytes)
        changes["peak_device_memory_bytes"] = max(peaks)
    return replace(record, **changes)
