"""What the correctors have seen of the gradients, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from equipoise.records import EpochRecord, RunRecords
from equipoise.reports.numbers import MISSING, mib, spread
from equipoise.reports.statistics import Spread, mean_and_deviation
from equipoise.reports.tables import Table

_MOST_AGES = 24


def correction_tables(arms: Mapping[str, Sequence[RunRecords]]) -> list[Table]:
    """Evidence about the correction at the end of every arm, and by age where there is any.

    Args:
        arms: Runs by label; those without records are ignored.

    Returns:
        No table if no run has watched its gradients.
    """
    finals = {
        label: [run.epochs[-1] for run in runs if run.epochs and _watched(run.epochs[-1])]
        for label, runs in arms.items()
    }
    watched = {label: records for label, records in finals.items() if records}
    if not watched:
        return []
    together = Table(
        title="Correction at the end of the runs",
        columns=(
            "Arm",
            "Coefficient",
            "Best",
            "Removable variance (%)",
            "Variance left (%)",
            "Old passes left out (%)",
            "Table (MiB)",
        ),
        rows=tuple(_row(label, records) for label, records in watched.items()),
        notes=(
            "Estimated from products of new and old gradients of earlier steps. Removable: the "
            "squared correlation; left: with the coefficient in use. Where the mean gradient has "
            "moved since, both are cautious.",
        ),
    )
    by_age = [_ages(label, records[-1]) for label, records in watched.items() if records[-1].by_age]
    return [together, *by_age]


def _watched(record: EpochRecord) -> bool:
    """Whether a record holds evidence."""
    return record.rho_squared is not None


def _row(label: str, records: Sequence[EpochRecord]) -> tuple[str, ...]:
    """One arm, mean and deviation over its seeds."""

    def shown(values: Iterable[float | None], scale: float, digits: int) -> str:
        found: Spread = mean_and_deviation(v for v in values if v is not None)
        return spread(found, lambda value: f"{scale * value:.{digits}f}") if found.n else MISSING

    skipped = [
        r.old_passes_left_out / max(1, r.old_passes_left_out + r.old_passes)
        for r in records
        if r.old_passes_left_out is not None and r.old_passes is not None
    ]
    sizes = mean_and_deviation(r.table_bytes for r in records if r.table_bytes is not None)
    return (
        label,
        shown((r.coefficient for r in records), 1.0, 3),
        shown((r.best_coefficient for r in records), 1.0, 3),
        shown((r.rho_squared for r in records), 100.0, 1),
        shown((r.variance_ratio for r in records), 100.0, 1),
        shown(skipped, 100.0, 1),
        spread(sizes, mib) if sizes.n else MISSING,
    )


def _ages(label: str, record: EpochRecord) -> Table:
    """One run by age, thinned to a readable number of rows."""
    found = record.by_age or []
    step = -(-len(found) // _MOST_AGES)
    return Table(
        title=f"{label}: by age of the snapshot (sum of learning rates since), last seed",
        columns=("Age", "Coefficient", "Best", "Removable (%)", "Left (%)", "Steps"),
        rows=tuple(
            (
                f"{row['age']:.3g}" + (" after a rewiring" if row["after_rewiring"] else ""),
                f"{row['coefficient']:.3f}",
                f"{row['best']:.3f}",
                f"{100 * row['rho_squared']:.1f}",
                f"{100 * row['variance_ratio']:.1f}",
                f"{row['samples']:.1f}",
            )
            for row in found[::step]
        ),
    )
