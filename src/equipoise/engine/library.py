"""The compiled kernels: found, checked, and called through ctypes.

They are a plain shared library that knows neither Python nor torch; pointers and sizes go in. If
it is missing, or the processor cannot run it, `unavailable_because` says why in one sentence and
everything else trains with masks, or with torch CSR where that is faster.

Two variables of the environment are read: ``EQUIPOISE_KERNELS`` picks an instruction set (one of
`INSTRUCTIONS`), and ``EQUIPOISE_KERNELS_LIBRARY`` is the path of a library to load instead of the
installed one, such as a build with sanitizers.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

VARIABLE: Final = "EQUIPOISE_KERNELS"
LIBRARY_VARIABLE: Final = "EQUIPOISE_KERNELS_LIBRARY"
INSTRUCTIONS: Final = ("auto", "avx512", "avx2", "portable", "off")
_VERSION = 5


class MapsArgument(Structure):
    """``EqMaps``: where a batch of feature maps lies; strides in floats."""

    _fields_ = (
        ("data", c_void_p),
        ("block", c_int64),
        ("channel", c_int64),
        ("row", c_int64),
        ("column", c_int64),
    )


class SizeArgument(Structure):
    """``EqSize``: samples, channels, rows, columns."""

    _fields_ = tuple((name, c_int64) for name in ("samples", "channels", "rows", "columns"))


class ListArgument(Structure):
    """``EqList``: what one sparse map does."""

    _fields_ = (
        ("starts", c_void_p),
        ("slots", c_void_p),
        ("tap_rows", c_void_p),
        ("offsets", c_void_p),
        ("sources", c_void_p),
        ("rows", c_int64),
        ("blocks", c_int64),
        ("taps", c_int64),
        ("entries", c_int64),
        ("weights", c_int64),
        ("group", c_int64),
        ("scale", c_int64),
        ("repeats", c_int64),
    )


class GridArgument(Structure):
    """``EqGrid``: where a list reads and writes."""

    _fields_ = (
        *(
            (name, c_int64)
            for name in (
                "outer",
                "rows",
                "columns",
                "in_outer",
                "in_row",
                "in_column",
                "out_outer",
                "out_row",
                "out_column",
                "out_channel",
                "in_rows",
                "in_step",
                "in_map_row",
                "in_channels",
                "in_channel",
                "last_row",
            )
        ),
        ("tile_rows", c_int32),
        ("tile_columns", c_int32),
        ("threads", c_int32),
        ("ahead", c_int32),
    )


class GeometryArgument(Structure):
    """``EqGeometry``: a convolution."""

    _fields_ = (
        ("out_channels", c_int64),
        ("in_channels", c_int64),
        ("groups", c_int64),
        *((name, c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")),
    )


class RequestArgument(Structure):
    """``EqListRequest``: which list of a convolution."""

    _fields_ = (
        ("transposed", c_int64),
        ("expanded", c_int64),
        ("phase", c_int64 * 2),
        ("block", c_int64),
        ("group", c_int64),
        ("taps", c_int64),
        ("channel", c_int64),
        ("row", c_int64),
        ("column", c_int64),
        ("read", c_int64 * 2),
        ("written", c_int64 * 2),
    )


_MAPS = POINTER(MapsArgument)
_SIZE = POINTER(SizeArgument)
_LIST = POINTER(ListArgument)
_GRID = POINTER(GridArgument)
_WINDOW = POINTER(c_int64)
_POOL = (_SIZE, c_int64, c_int64, _WINDOW)

# In the order of the table in kernels.h. Float arrays are passed as addresses.
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "apply": (_LIST, _GRID, c_void_p, c_void_p, c_void_p),
    "weight_gradient": (_LIST, _GRID, c_void_p, c_void_p, c_void_p),
    "to_maps": (c_void_p, _WINDOW, _MAPS, _SIZE, c_int),
    "from_maps": (_MAPS, c_void_p, _WINDOW, _SIZE, c_int),
    "copy_maps": (_MAPS, _MAPS, _SIZE, c_int),
    "statistics": (_MAPS, _SIZE, c_void_p, c_void_p, c_int),
    "affine": (_MAPS, c_void_p, c_void_p, _MAPS, _MAPS, _SIZE, c_int, c_int),
    "affine_sums": (
        *(_MAPS, _MAPS, _MAPS, c_void_p, c_void_p, _SIZE, c_int),
        *(c_void_p, c_void_p, c_int),
    ),
    "affine_backward": (
        *(_MAPS, _MAPS, _MAPS, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
        *(_MAPS, _MAPS, _SIZE, c_int, c_int),
    ),
    "normalise": (
        *(_MAPS, _MAPS, _MAPS, _SIZE, c_void_p, c_void_p, c_double, c_int),
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int),
    ),
    "normalise_backward": (
        *(_MAPS, _MAPS, _MAPS, _MAPS, _MAPS, _SIZE, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int, c_void_p, c_void_p, c_int),
    ),
    "max_pool": (_MAPS, _MAPS, *_POOL, c_int),
    "max_pool_backward": (_MAPS, _MAPS, _MAPS, *_POOL, c_int),
    "average_pool": (_MAPS, _MAPS, *_POOL, c_int, c_int),
    "average_pool_backward": (_MAPS, _MAPS, *_POOL, c_int, c_int),
    "normalise_pool": (
        *(_MAPS, _MAPS, _SIZE, c_void_p, c_void_p, c_double),
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int),
    ),
    "normalise_pool_backward": (
        *(_MAPS, _MAPS, _MAPS, _SIZE, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_void_p, c_void_p, c_int),
    ),
}


class Kernels:
    """The kernels of one instruction set, as callables under the names of kernels.h.

    Args:
        library: The loaded library.
        instructions: One of `INSTRUCTIONS` other than "off".

    Raises:
        ValueError: This processor, or this build, lacks them.
    """

    def __init__(self, library: ctypes.CDLL, instructions: str) -> None:
        address = library.eq_kernels(instructions.encode())
        if not address:
            raise ValueError(
                f"{VARIABLE}={instructions} was asked for, but this processor or this build of "
                "the kernels lacks it; leave the variable out."
            )
        best = library.eq_best_instructions().decode()
        self.instructions = best if instructions == "auto" else instructions
        self.make_list = library.eq_make_list
        self.compare = library.eq_compare
        self.update_list = library.eq_update_list
        addresses = (c_void_p * len(_SIGNATURES)).from_address(address)
        for (name, arguments), pointer in zip(_SIGNATURES.items(), addresses, strict=True):
            setattr(self, name, ctypes.CFUNCTYPE(None, *arguments)(pointer))

    def __getattr__(self, name: str) -> Any:
        """Only for type checkers: the kernels are set one by one above."""
        raise AttributeError(name)


def kernels() -> Kernels:
    """The kernels for this process; `EQUIPOISE_KERNELS` picks an instruction set.

    Raises:
        RuntimeError: There are none; the message is that of `unavailable_because`.
    """
    found = _load(os.environ.get(VARIABLE, "auto"), os.environ.get(LIBRARY_VARIABLE))
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def unavailable_because() -> str | None:
    """Why there are no kernels, in one sentence; None if there are."""
    found = _load(os.environ.get(VARIABLE, "auto"), os.environ.get(LIBRARY_VARIABLE))
    return found if isinstance(found, str) else None


@cache
def _load(instructions: str, given: str | None = None) -> Kernels | str:
    """The kernels, or why there are none; `given` is the path of another library."""
    if instructions not in INSTRUCTIONS:
        return (
            f"{VARIABLE} is {instructions!r}, expected one of {', '.join(INSTRUCTIONS)}; "
            "leave it out for the best of this processor."
        )
    if instructions == "off":
        return f"the kernels are switched off by {VARIABLE}=off; unset it to use them."
    path = Path(given) if given else library_path()
    if path is None:
        return (
            "the kernels were not compiled when equipoise was installed; install a C++ compiler "
            "(g++ or clang++) and then equipoise again."
        )
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
        if library.eq_version() != _VERSION:
            return f"{path} was compiled from another version of equipoise; install it again."
        library.eq_use_threads_of(_threads_of_torch())
        return Kernels(library, instructions)
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error}); install equipoise again."
    except ValueError as error:
        return str(error)


def library_path() -> Path | None:
    """Where the compiled library is; None if it was not compiled."""
    given = os.environ.get(LIBRARY_VARIABLE)
    if given:
        return Path(given)
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_kernels{suffix}"
        if path.exists():
            return path
    return None


def _declare(library: ctypes.CDLL) -> None:
    """Types of the library's own functions."""
    library.eq_kernels.argtypes = (c_char_p,)
    library.eq_kernels.restype = c_void_p
    library.eq_best_instructions.restype = c_char_p
    library.eq_version.restype = c_int
    library.eq_use_threads_of.argtypes = (c_void_p,)
    library.eq_use_threads_of.restype = None
    library.eq_make_list.argtypes = (
        POINTER(GeometryArgument),
        POINTER(RequestArgument),
        *(c_void_p, c_int64, c_int64, c_int64, *(c_void_p,) * 5),
    )
    library.eq_make_list.restype = c_int64
    library.eq_compare.argtypes = (c_void_p, c_int64, c_void_p, c_int64, *(c_void_p,) * 3)
    library.eq_compare.restype = c_int64
    library.eq_update_list.argtypes = (
        POINTER(GeometryArgument),
        POINTER(RequestArgument),
        _LIST,
        *(c_void_p, c_void_p, c_void_p, c_int64, *(c_void_p,) * 4),
    )
    library.eq_update_list.restype = c_int64


def _threads_of_torch() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch loaded; None if it is another."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            runtime = ctypes.CDLL(str(path))
            return ctypes.cast(runtime.GOMP_parallel, c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
