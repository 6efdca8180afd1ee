"""Correctors of published codes as combinations of settings, and settings that exclude each other.

These are plain values; the settings themselves are in `equipoise.settings`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

Settings = TypeVar("Settings", bound=Any)

PUBLISHED: dict[str, dict[str, Any]] = {
    "ref_itop": {
        "initial_coefficient": 0.1,
        "first_estimate": "dense",
        "refresh_draw": "fresh",
        "refresh_weighting": "batches",
        "refresh_statistics": "move",
        "refresh_leftover": True,
        "keep": "all",
    },
    "ref_rigl": {
        "initial_coefficient": 0.1,
        "first_estimate": "other",
        "refresh_draw": "fresh",
        "refresh_weighting": "batches",
        "refresh_statistics": "move",
        "keep": "all",
    },
    "ref_bsr": {
        "compare_with": "current",
        "refresh_draw": "clean",
        "refresh_weighting": "batches",
        "refresh_statistics": "move",
        "keep": "all",
    },
}
"""What the corrector of each published code does otherwise than `agent`, setting by setting."""


def in_effect(settings: Settings) -> Settings:
    """The settings of a correction with those that stand behind the name of a published code.

    A setting that was changed by hand stays as it is.

    Example:
        >>> from equipoise.settings import CorrectionSettings
        >>> in_effect(CorrectionSettings(corrector="ref_bsr")).compare_with
        'current'
    """
    usual = type(settings)()
    preset = PUBLISHED.get(getattr(settings, "corrector", ""), {})
    changes = {
        name: value
        for name, value in preset.items()
        if getattr(settings, name) == getattr(usual, name)
    }
    return replace(settings, **changes)


WITHOUT_SNAPSHOTS = ("none", "mvr", "mvr_fixed", "agent_mvr")
"""Correctors that make no pass at a refresh."""


def check_correction(settings: Any) -> None:
    """Refuses settings of a correction that contradict each other.

    Args:
        settings: Those in effect.

    Raises:
        ValueError: One sentence on the first contradiction.
    """
    if settings.refresh_steps is not None and settings.refresh_chance is not None:
        raise ValueError(
            "--refresh-steps and --refresh-chance are two schedules; got both; leave one out."
        )
    if settings.refresh_leftover and settings.refresh_weighting != "batches":
        raise ValueError(
            "--refresh-leftover adds one batch to a sum of batches; "
            "add --refresh-weighting batches, or leave it out."
        )
    if settings.correction_mode == "recompute":
        return
    if settings.corrector in WITHOUT_SNAPSHOTS:
        raise ValueError(
            "--correction-mode cached stores the gradients of a refresh, and "
            f"{settings.corrector} has none; choose a corrector with snapshots, for example svrg, "
            "or leave it out."
        )
    usual = type(settings)()
    for name in (
        "refresh_every",
        "refresh_steps",
        "refresh_chance",
        "refresh_samples",
        "refresh_draw",
    ):
        value = getattr(settings, name)
        if value != getattr(usual, name):
            raise ValueError(
                "--correction-mode cached needs a refresh that replays every epoch whole; got "
                f"--{name.replace('_', '-')} {value}; leave one of the two out."
            )
