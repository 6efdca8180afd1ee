r"""Random numbers that are a pure function of (seed, key, sample, stream).

A generator that is drawn from in turn gives a sample another augmentation as soon as the batch
around it changes. Here the numbers of a sample depend on nothing but its own row number, so it
can be drawn again exactly, in any batch, order, process or device. The hash is splitmix64: the
first three arguments choose a starting point, and the row number a place in the sequence,

$$ w_i = \operatorname{mix}(s + (i + 1) \cdot \phi), \qquad \phi = 2^{64} / 1.618\ldots $$

with all arithmetic modulo $2^{64}$.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def keyed_words(index: Tensor, *, seed: int, key: int, stream: str) -> Tensor:
    """One 64-bit random word per sample.

    Contract: no generator is read or advanced; equal arguments give equal words on every device.

    Args:
        index: Row numbers, int64, any shape.
        seed: Of the run; any integer, taken modulo 2**64.
        key: Which draw, for example the epoch; any integer, taken modulo 2**64.
        stream: What the numbers are for; different names give independent numbers.

    Returns:
        int64 of the shape and device of `index`, all 64 bits random.

    Example:
        >>> both = keyed_words(torch.tensor([7, 8]), seed=0, key=0, stream="flip")
        >>> alone = keyed_words(torch.tensor([8]), seed=0, key=0, stream="flip")
        >>> bool(both[1] == alone[0])
        True

    References:
        Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    start = _start(seed & _WORD, key & _WORD, stream)
    words = index * _signed(_GOLDEN) + _signed((start + _GOLDEN) & _WORD)
    words = (words ^ _shift_right(words, 30)).mul_(_signed(_FIRST))
    words = (words ^ _shift_right(words, 27)).mul_(_signed(_SECOND))
    return words.bitwise_xor_(_shift_right(words, 31))


def keyed_integers(index: Tensor, high: int, *, seed: int, key: int, stream: str) -> Tensor:
    """One integer per sample, uniform on 0 ... high - 1.

    Args:
        index: Row numbers, int64, any shape.
        high: In [1, 2**30]; the probabilities differ by less than high / 2**32.
        seed: As for `keyed_words`.
        key: As for `keyed_words`.
        stream: As for `keyed_words`.

    Returns:
        int64 of the shape and device of `index`.
    """
    words = keyed_words(index, seed=seed, key=key, stream=stream)
    return _shift_right(words, 32).mul_(high).bitwise_right_shift_(32)


def keyed_uniform(index: Tensor, *, seed: int, key: int, stream: str) -> Tensor:
    """One number per sample, uniform on [0, 1).

    Args:
        index: Row numbers, int64, any shape.
        seed: As for `keyed_words`.
        key: As for `keyed_words`.
        stream: As for `keyed_words`.

    Returns:
        float64 of the shape and device of `index`; multiples of 2**-53.
    """
    words = keyed_words(index, seed=seed, key=key, stream=stream)
    return _shift_right(words, 11).to(torch.float64).mul_(2.0**-53)


@lru_cache(maxsize=4096)
def _start(seed: int, key: int, stream: str) -> int:
    """Where the sequence of (seed, key, stream) starts."""
    name = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    state = 0
    for part in (seed, key, name):
        state = _mix(((state ^ part) + _GOLDEN) & _WORD)
    return state


def _mix(word: int) -> int:
    """The finaliser of splitmix64 on a Python integer; the tensors above repeat it."""
    word = ((word ^ (word >> 30)) * _FIRST) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND) & _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    """The int64 with the bits of `word`."""
    return word - 2**64 if word >= 2**63 else word


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift: int64 shifts copy the sign, so the copies are masked off."""
    return (words >> bits).bitwise_and_(2 ** (64 - bits) - 1)
