"""Memory for feature maps, kept and used again.

Fresh memory costs a page fault every few kilobytes, as much time as a sparse layer takes to fill
it. And the zero border of a map that is used again for maps of the same form is still zero,
because the kernels write inside it only.
"""

from __future__ import annotations

import math
import mmap
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PAGE = 2 << 20  # a huge page where there are any
_STALE = 2000  # what was free for so many takes, several steps, is left from something else
_WASTE = 1.5  # a free block may be this much larger than what it is used for


class _Lease(np.ndarray[Any, Any]):
    """An array over borrowed memory; `end` is called when nothing uses it any more."""

    end: Callable[[], None]

    def __del__(self) -> None:
        # Cheaper than a finalizer, which is registered and taken off again at every take.
        self.end()


class Pool:
    """Hands out zeroed float32 tensors and takes their memory back when they are let go.

    A tensor handed out under a key holds what the last one under that key held; the first time
    zeros, or anything where `clean` has left it. Whoever asks must therefore write everything but
    what is never written under this key.
    """

    def __init__(self) -> None:
        # Free blocks by key, each with the number of takes when it came back.
        self._free: dict[tuple[int, ...], list[tuple[mmap.mmap, int]]] = defaultdict(list)
        self._taken = 0
        self._lock = Lock()
        self.bytes_mapped = 0

    def take(
        self,
        key: tuple[int, ...],
        shape: Sequence[int],
        clean: Callable[[Tensor], object] = Tensor.zero_,
    ) -> Tensor:
        """A contiguous tensor.

        Args:
            key: Tensors of one key have one form: the same shape, border and order in memory.
            shape: Its shape.
            clean: Is called with a tensor whose memory held another form, to put zeros where
                nothing will be written.
        """
        size = math.prod(shape)
        wanted = max(1, -(-size * 4 // _PAGE)) * _PAGE
        with self._lock:
            adopts = not self._free[key]
            block = self._adopt(wanted) if adopts else self._free[key].pop()[0]
            self._taken += 1
            if block is None:
                self._let_go(self._taken - _STALE)
        if block is None:
            block, adopts = _fresh(wanted), False
            # Small maps would each fill a huge page.
            if hasattr(mmap, "MADV_HUGEPAGE") and 4 * size >= _PAGE:
                block.madvise(mmap.MADV_HUGEPAGE)
            self.bytes_mapped += wanted
        array = _Lease((size,), np.float32, block)
        array.end = partial(self._give_back, key, block)
        tensor = torch.from_numpy(array).view(*shape)
        if adopts:
            clean(tensor)
        return tensor

    def release(self) -> None:
        """Returns all memory that is not in use to the system."""
        with self._lock:
            self._let_go(self._taken + 1)

    def _let_go(self, before: int) -> None:
        """Returns what has been free since before a certain take."""
        for key, blocks in list(self._free.items()):
            kept = [(block, since) for block, since in blocks if since >= before]
            self.bytes_mapped -= sum(len(block) for block, since in blocks if since < before)
            self._free[key] = kept

    def _give_back(self, key: tuple[int, ...], block: mmap.mmap) -> None:
        self._free[key].append((block, self._taken))

    def _adopt(self, wanted: int) -> mmap.mmap | None:
        """A free block of another form; None if none has the right size."""
        # A copy, because blocks come back at any moment, without the lock.
        for blocks in list(self._free.values()):
            for place, (block, _) in enumerate(blocks):
                if wanted <= len(block) <= _WASTE * wanted:
                    del blocks[place]
                    return block
        return None


def _fresh(size: int) -> mmap.mmap:
    """New zeroed memory, private: a forked process must not write into that of its parent."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


POOL = Pool()
