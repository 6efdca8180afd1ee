"""A safetensors file in which every byte is under a checksum.

Any reader of safetensors opens it. Its metadata hold the format, the version, one JSON text with
whatever describes the tensors and their checksums, and the checksum of that text.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from equipoise.records import write_atomically
from equipoise.shipping.sparse_tensor import as_bits

FORMAT = "equipoise-sparse"
VERSION = "1"

_METADATA = "__metadata__"
_LENGTH = 8  # bytes before the header that say how long it is


def write_container(path: Path, tensors: Mapping[str, Tensor], contents: dict[str, Any]) -> int:
    """Writes tensors and what describes them, in one step: the old file stays until then.

    The same tensors and contents make the same bytes.

    Args:
        path: Its folder is made if needed.
        tensors: On the CPU; they may share memory.
        contents: JSON values; "checksums" is added.

    Returns:
        Bytes written.

    Raises:
        ValueError: A name or a type of tensors, or a part of `contents`, cannot be stored.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = write_container(Path(folder) / "x", {"a": torch.ones(3)}, {"b": 1})
        ...     tensors, contents = read_container(Path(folder) / "x")
        >>> tensors["a"], contents["b"]
        (tensor([1., 1., 1.]), 1)
    """
    if _METADATA in tensors:
        raise ValueError(f"no tensor may be called {_METADATA!r} in this format; rename it.")
    checksums = {name: _checksum(name, tensor) for name, tensor in tensors.items()}
    try:
        text = json.dumps({**contents, "checksums": checksums}, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the metadata are not JSON values ({error}); "
            "pass dictionaries with strings as keys, lists, strings and numbers."
        ) from error
    metadata = {"format": FORMAT, "version": VERSION, "contents": text, "checksum": _crc32(text)}
    form = torch.contiguous_format
    apart = {name: tensor.clone(memory_format=form) for name, tensor in tensors.items()}
    try:
        content = safetensors.torch.save(apart, metadata)
    except KeyError as error:
        raise ValueError(
            f"safetensors has no name for entries of {error}; convert them to another type."
        ) from error
    content = _in_order(content)
    write_atomically(path, content)
    return len(content)


def read_container(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_container` wrote, or refuses it; nothing in the file is ever executed.

    Args:
        path: The file.

    Returns:
        Tensors on the CPU, in memory of their own, and the contents.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another kind or version, or a byte of it is not what was written.

    Example:
        >>> read_container(Path("nowhere.safetensors"))
        Traceback (most recent call last):
        FileNotFoundError: there is no file nowhere.safetensors; check the path.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file; pass the file in it.")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check the path.")
    content = path.read_bytes()
    try:
        header, _ = _header(content)
        metadata = header.get(_METADATA, {})
        tensors = safetensors.torch.load(content)
    except Exception as error:  # the reader raises many kinds for many kinds of damage
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({_first_line(error)}); "
            "copy it again from where it was whole, or write it again."
        ) from error
    del content
    contents = _checked_contents(path, metadata)
    checksums = contents.pop("checksums", None)
    if not isinstance(checksums, dict) or checksums.keys() != tensors.keys():
        raise damaged(path, "its tensors are not those that were written")
    for name, tensor in tensors.items():
        if checksums[name] != _checksum(name, tensor):
            raise damaged(path, f"the checksum of {name!r} is wrong")
    return tensors, contents


def damaged(path: Path, reason: str) -> ValueError:
    """The error for a file that is not what was written.

    Example:
        >>> str(damaged(Path("x.safetensors"), "a bit is wrong")).partition(";")[0]
        'x.safetensors is damaged (a bit is wrong)'
    """
    return ValueError(
        f"{path} is damaged ({reason}); copy it again from where it was whole, or write it again."
    )


def _checked_contents(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The JSON text of the metadata, after a look at what it claims to be."""
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file of another kind (format {metadata.get('format')!r}, "
            f"expected {FORMAT!r}); pass a file that `equipoise export` or save_sparse wrote."
        )
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {metadata.get('version')!r} of its format and this version of "
            f"equipoise reads {VERSION!r}; read it with the version of equipoise that wrote it."
        )
    text = metadata.get("contents", "")
    if metadata.get("checksum") != _crc32(text):
        raise damaged(path, "the checksum of its metadata is wrong")
    try:
        contents = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its metadata are not JSON") from error
    if not isinstance(contents, dict):
        raise damaged(path, "its metadata describe nothing")
    return contents


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begin."""
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    if end > len(content):
        raise ValueError(f"its header would end at byte {end} of {len(content)}")
    header = content[_LENGTH:end]
    # JSON allows other space than this after its end, in which a damage would not be seen.
    if not header.rstrip(b" ").endswith(b"}"):
        raise ValueError("its header has no end")
    parsed = json.loads(header)
    if not isinstance(parsed, dict):
        raise ValueError("its header names nothing")
    return parsed, end


def _in_order(content: bytes) -> bytes:
    """The same file with its metadata sorted, because their order is left to chance."""
    header, start = _header(content)
    header[_METADATA] = dict(sorted(header[_METADATA].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text + content[start:]


def _checksum(name: str, tensor: Tensor) -> str:
    """CRC-32 of all that the file says about one tensor."""
    facts = f"{name}/{tensor.dtype}/{tuple(tensor.shape)}"
    payload = as_bits(tensor.reshape(-1)).numpy().data
    return f"{zlib.crc32(payload, zlib.crc32(facts.encode())):08x}"


def _crc32(text: str) -> str:
    """CRC-32 of a text, as eight digits."""
    return f"{zlib.crc32(text.encode()):08x}"


def _first_line(error: Exception) -> str:
    """What an exception says, without what follows the first line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
