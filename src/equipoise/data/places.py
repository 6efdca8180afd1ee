"""Where data files are looked for, and where decoded images are kept."""

from __future__ import annotations

import os
from pathlib import Path

from equipoise.data.catalogue import DatasetInfo

DATA_VARIABLE = "EQUIPOISE_DATA"
CACHE_VARIABLE = "EQUIPOISE_CACHE"


def cache_folder(cache_dir: Path | str | None) -> Path:
    """The argument, else EQUIPOISE_CACHE, else the user's cache folder."""
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "equipoise"


def data_roots(data_dir: Path | str | None, cache_dir: Path) -> tuple[Path, ...]:
    """Folders to look in, in order; a given `data_dir` is the only one."""
    if data_dir is not None:
        return (Path(data_dir).expanduser(),)
    named = os.environ.get(DATA_VARIABLE)
    usual = (
        Path("data"),
        cache_dir / "data",
        Path.home() / "data",
        Path("/usr/share/datasets"),  # Debian's dataset packages
    )
    return (*((Path(named).expanduser(),) if named else ()), *usual)


def candidate_folders(info: DatasetInfo, roots: tuple[Path, ...]) -> list[Path]:
    """Existing folders at the roots: first those that bear the name, then the root itself."""
    names = dict.fromkeys((info.name, info.name.replace("_", "-")))
    folders = [folder for root in roots for folder in (*(root / name for name in names), root)]
    return [folder for folder in folders if folder.is_dir()]


def not_found(info: DatasetInfo, roots: tuple[Path, ...]) -> FileNotFoundError:
    """The error that says what was looked for, where, and how to get it."""
    places = ", ".join(str(root) for root in roots)
    return FileNotFoundError(
        f"{info.title} was not found: looked for {info.files} in {places} and their subfolders "
        f"{info.name!r}; {info.how_to_get}."
    )
