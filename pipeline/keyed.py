"""Random numbers as a pure function of what they are for: no state, so nothing can be lost, shared or reordered.

A number is a hash of words (seed, epoch, sample, view, operation, index), mixed one after another by splitmix64's
finaliser (Steele, Lea & Flood 2014), the same bits in numpy and in torch. A permutation is a Feistel network on the
smallest power of two that holds n, walked until it falls below n (Black & Rogaway 2002): O(1) memory in n.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = (1 << 64) - 1
ROUNDS = 6


def word(name: str | int) -> int:
    """A 64-bit word for a name ("blur") or an integer, stable over processes and versions."""
    return name & WORD if isinstance(name, int) else zlib.crc32(name.encode()) | (len(name) << 32)


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64, elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))


def key(*words: Any) -> np.ndarray:
    """Hash of words, each an int, a name, or an integer array (broadcast) -> uint64 [broadcast shape].

    Each word is mixed in by itself, so (seed 3, epoch 1) and (seed 4, epoch 0) have nothing in common.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for w in words:
            bits = (
                w.astype(np.uint64) if isinstance(w, np.ndarray)
                else np.asarray(word(w), np.uint64)
            )
            state = mix((state + np.uint64(GOLDEN)) ^ mix(bits + np.uint64(GOLDEN)))
    return state


def uniform(count: int, *words: Any) -> np.ndarray:
    """``count`` numbers in [0, 1) for every element of the key -> float64 [*key shape, count] (53 bits each)."""
    base = key(*words)[..., None]
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        return (mix(base + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(count: int, *words: Any) -> np.ndarray:
    """``count`` standard normal numbers for every element of the key -> float64 [*key shape, count] (Box-Muller)."""
    u = uniform(2 * count, *words)
    radius = np.sqrt(-2.0 * np.log1p(-u[..., :count]))
    return radius * np.cos(2.0 * np.pi * u[..., count:])


def generator(*words: Any):
    """A torch CPU generator seeded by the key: for initialising weights, nothing else."""
    import torch

    return torch.Generator().manual_seed(int(key(*words) >> np.uint64(1)))


def _halves(n: int) -> tuple[int, int]:
    bits = max(2, int(n - 1).bit_length())
    return bits // 2, bits - bits // 2


def _round_keys(words: Sequence[Any]) -> list[np.ndarray]:
    return [key(*words, i) for i in range(ROUNDS)]


def _scramble(half: np.ndarray, k: np.ndarray, width: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return mix(half * np.uint64(GOLDEN) + k) >> np.uint64(64 - width)


def _forward(x: np.ndarray, n: int, keys: list[np.ndarray]) -> np.ndarray:
    a, b = _halves(n)
    for i, k in enumerate(keys):
        low, high = (b, a) if i % 2 == 0 else (a, b)
        # x = left (high bits) | right (low bits): the right half stays, the left is scrambled, and they change sides.
        left, right = x >> np.uint64(low), x & np.uint64((1 << low) - 1)
        x = (right << np.uint64(high)) | (left ^ _scramble(right, k, high))
    return x


def _backward(x: np.ndarray, n: int, keys: list[np.ndarray]) -> np.ndarray:
    a, b = _halves(n)
    for i, k in reversed(list(enumerate(keys))):
        low, high = (b, a) if i % 2 == 0 else (a, b)
        right, left = x >> np.uint64(high), x & np.uint64((1 << high) - 1)
        x = ((left ^ _scramble(right, k, high)) << np.uint64(low)) | right
    return x


def _walk(step, x: np.ndarray, n: int, keys: list[np.ndarray]) -> np.ndarray:
    x = step(x, n, keys)
    outside = x >= np.uint64(n)
    while outside.any():
        x[outside] = step(x[outside], n, keys)
        outside = x >= np.uint64(n)
    return x.astype(np.int64)


def permute(x: np.ndarray, n: int, *words: Any) -> np.ndarray:
    """Image of each x in 0..n-1 under the permutation of n that the words name -> int64, same shape."""
    x = np.atleast_1d(np.asarray(x)).astype(np.uint64)
    return x.astype(np.int64) if n < 2 else _walk(_forward, x, n, _round_keys(words))


def unpermute(x: np.ndarray, n: int, *words: Any) -> np.ndarray:
    """The inverse of `permute` -> int64, same shape."""
    x = np.atleast_1d(np.asarray(x)).astype(np.uint64)
    return x.astype(np.int64) if n < 2 else _walk(_backward, x, n, _round_keys(words))
