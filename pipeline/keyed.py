"""Random numbers as pure functions of a key: no generator has a state that must be saved, shared or kept in order.

A number is a hash of its key's parts (seed, epoch, sample, view, operation, index), each mixed in by splitmix64's
finaliser (Steele, Lea & Flood 2014). A permutation of n is a Feistel network on the smallest power of two >= n,
applied until its result is below n (cycle walking, Black & Rogaway 2002), in O(1) memory. Fewer than SMALL elements
are sorted by random numbers instead.
"""

import zlib
from typing import Any

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = (1 << 64) - 1
_GOLDEN = np.uint64(GOLDEN)
ROUNDS = 6
SMALL = 64
"""Below this n a permutation is made by sorting."""


def bits(part: str | int | np.integer) -> int:
    """The 64 bits of a key part, a name ("blur") or an integer; the same in every process and version."""
    if isinstance(part, str):
        return zlib.crc32(part.encode()) | (len(part) << 32)
    return int(part) & MASK


def mix(x: Any) -> Any:
    """splitmix64's finaliser of an int, or of each element of a uint64 array, in place: new memory would cost as much
    time as the arithmetic."""
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        x ^= x >> shift
        x *= factor
        if isinstance(x, int):
            x &= MASK
    x ^= x >> 31
    return x


def key(*parts: Any) -> Any:
    """The hash of key parts, each an int, a name or an integer array -> uint64 [broadcast shape of the arrays]; an int
    if no part is an array.

    Each part is mixed in separately: the numbers of (seed 3, epoch 1) and of (seed 4, epoch 0) are unrelated.
    """
    state: Any = 0
    for part in parts:
        state = extend(state, part)
    return state


def extend(state: Any, part: Any) -> Any:
    """The hash of the parts in ``state`` and one more."""
    if isinstance(part, np.ndarray):
        mixed = mix(part.astype(np.uint64) + _GOLDEN)
    else:
        mixed = mix((bits(part) + GOLDEN) & MASK)
    step = (state + GOLDEN) & MASK if isinstance(state, int) else state + _GOLDEN
    return mix(step ^ mixed)


def uniform(count: int, *parts: Any) -> np.ndarray:
    """``count`` numbers in [0, 1) for every element of the key -> float64 [*key shape, count] (53 bits each)."""
    return uniform_of(key(*parts), count)


def uniform_of(state: Any, count: int) -> np.ndarray:
    """`uniform` for a hash from `key`, for operations that share their first key parts."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    numbers = mix(_with_axis(state) + steps)
    numbers >>= 11
    return numbers * 2.0**-53


def _with_axis(state: Any) -> Any:
    """A hash with one more axis of length 1, for broadcasting."""
    return state[..., None] if isinstance(state, np.ndarray) else np.uint64(state)


def normal(count: int, *parts: Any) -> np.ndarray:
    """``count`` standard normal numbers for every element of the key -> float64 [*key shape, count] (Box-Muller)."""
    return normal_of(key(*parts), count)


def normal_of(state: Any, count: int) -> np.ndarray:
    """The same for a key that is computed already."""
    u = uniform_of(state, 2 * count)
    radius = np.sqrt(-2.0 * np.log1p(-u[..., :count]))
    return radius * np.cos(2.0 * np.pi * u[..., count:])


def generator(*parts: Any):
    """A torch CPU generator seeded by the key; only for the initialisation of weights."""
    import torch

    return torch.Generator().manual_seed(int(key(*parts)) >> 1)


def _halves(n: Any) -> tuple[Any, Any]:
    """The widths in bits of the high and low halves of numbers below n, which may be an array."""
    if isinstance(n, np.ndarray):
        width = np.maximum(2, np.frexp(n.astype(np.float64) - 1)[1]).astype(np.uint64)
        return width // np.uint64(2), width - width // np.uint64(2)
    width = max(2, int(n - 1).bit_length())
    return np.uint64(width // 2), np.uint64(width - width // 2)


def _scramble(half: np.ndarray, k: Any, width: Any) -> np.ndarray:
    """The first ``width`` bits of mix(half GOLDEN + k)."""
    x = half * _GOLDEN
    x += k
    x = mix(x)
    x >>= 64 - width
    return x


def _split(x: np.ndarray, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """The high bits of x, and its b low bits."""
    high = x >> b
    return high, x ^ (high << b)


def _forward(x: np.ndarray, a: Any, b: Any, keys: list[Any]) -> np.ndarray:
    left, right = _split(x, b)
    for i, k in enumerate(keys):  # one Feistel round: the left half is scrambled by the right, then they swap
        left, right = right, left ^ _scramble(right, k, b if i % 2 else a)
    return (left << b) | right


def _backward(x: np.ndarray, a: Any, b: Any, keys: list[Any]) -> np.ndarray:
    left, right = _split(x, b)
    for i, k in reversed(list(enumerate(keys))):
        left, right = right ^ _scramble(left, k, b if i % 2 else a), left
    return (left << b) | right


def _at(value: Any, where: np.ndarray) -> Any:
    return value[where] if np.ndim(value) else value


def _apply(step, x: Any, n: Any, parts: tuple) -> np.ndarray:
    """The key's permutation of n, or its inverse (``step``: `_forward` or `_backward`), by a Feistel network or, where
    n < SMALL, by sorting."""
    x = np.atleast_1d(np.asarray(x))
    n = np.broadcast_to(np.asarray(n), x.shape) if np.ndim(n) else n
    base = key(*parts)
    small = np.asarray(n) < SMALL
    if small.all():
        return _by_sorting(step, x, n, base)
    if small.any():
        out = np.empty(x.shape, np.int64)
        out[small] = _by_sorting(step, x[small], n[small], _at(base, small))
        out[~small] = _network(step, x[~small], n[~small], _at(base, ~small))
        return out
    return _network(step, x, n, base)


def _by_sorting(step, x: np.ndarray, n: Any, base: Any) -> np.ndarray:
    """The rank of the x-th of n random numbers by size; backward, the index of the number with rank x. A Feistel
    network of so few bits would not give all permutations equally often."""
    count = np.arange(1, int(np.max(n, initial=1)) + 1)
    numbers = mix(_with_axis(base) + count.astype(np.uint64) * _GOLDEN)
    numbers = np.where(count > np.asarray(n)[..., None], np.uint64(MASK), numbers)
    ranks = np.argsort(numbers, -1, kind="stable")
    if step is _forward:
        ranks = np.argsort(ranks, -1, kind="stable")
    if ranks.ndim == 1:
        return ranks[x]
    return np.take_along_axis(ranks, x[..., None].astype(np.int64), -1)[..., 0]


def _network(step, x: np.ndarray, n: Any, base: Any) -> np.ndarray:
    """A Feistel network on the smallest power of two >= n, repeated until its result is below n (cycle walking)."""
    x = x.astype(np.uint64)
    a, b = _halves(n)
    keys = [extend(base, i) for i in range(ROUNDS)]
    below = np.asarray(n).astype(np.uint64)
    x = step(x, a, b, keys)
    outside = np.flatnonzero(x >= below)
    while len(outside):
        again = step(x[outside], _at(a, outside), _at(b, outside), [_at(k, outside) for k in keys])
        x[outside] = again
        outside = outside[again >= _at(below, outside)]
    return x.astype(np.int64)


def permute(x: Any, n: Any, *parts: Any) -> np.ndarray:
    """The image of each x in 0..n-1 under the key's permutation of n -> int64, same shape.

    n and the key parts may be arrays of x's shape; each element then has its own permutation.
    """
    return _apply(_forward, x, n, parts)


def unpermute(x: Any, n: Any, *parts: Any) -> np.ndarray:
    """The inverse of `permute` -> int64, same shape."""
    return _apply(_backward, x, n, parts)
