"""Random numbers as a pure function of what they are for: no state, so nothing can be lost, shared or reordered.

A number is a hash of words (seed, epoch, sample, view, operation, index), mixed one after another by splitmix64's
finaliser (Steele, Lea & Flood 2014), the same bits in numpy and in torch. A permutation is a Feistel network on the
smallest power of two that holds n, walked until it falls below n (Black & Rogaway 2002): O(1) memory in n. A few
elements are sorted by random numbers instead.
"""

import zlib
from typing import Any

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = (1 << 64) - 1
_GOLDEN = np.uint64(GOLDEN)
ROUNDS = 6
SMALL = 64
"""Below this n a permutation is made by sorting."""


def word(name: str | int | np.integer) -> int:
    """A 64-bit word for a name ("blur") or an integer, stable over processes and versions."""
    if isinstance(name, str):
        return zlib.crc32(name.encode()) | (len(name) << 32)
    return int(name) & WORD


def mix(x: Any) -> Any:
    """splitmix64's finaliser of a word, an int or each of a uint64 array, whose memory is used: that and the number of
    calls cost as much as the arithmetic."""
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        x ^= x >> shift
        x *= factor
        if isinstance(x, int):
            x &= WORD
    x ^= x >> 31
    return x


def key(*words: Any) -> Any:
    """Hash of words, each an int, a name, or an integer array (broadcast) -> a word, uint64 [broadcast shape]: an int
    where no word is an array.

    Each word is mixed in by itself, so (seed 3, epoch 1) and (seed 4, epoch 0) have nothing in common.
    """
    state: Any = 0
    for w in words:
        state = key_on(state, w)
    return state


def key_on(state: Any, w: Any) -> Any:
    """The key of the words so far and one more."""
    if isinstance(w, np.ndarray):
        bits = mix(w.astype(np.uint64) + _GOLDEN)
    else:
        bits = mix((word(w) + GOLDEN) & WORD)
    lifted = (state + GOLDEN) & WORD if isinstance(state, int) else state + _GOLDEN
    return mix(lifted ^ bits)


def uniform(count: int, *words: Any) -> np.ndarray:
    """``count`` numbers in [0, 1) for every element of the key -> float64 [*key shape, count] (53 bits each)."""
    return numbers(count, key(*words))


def numbers(count: int, state: Any) -> np.ndarray:
    """The same of a key that is known: where many operations share their first words."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = mix(_last(state) + steps)
    bits >>= 11
    return bits * 2.0**-53


def _last(state: Any) -> Any:
    """A key to be broadcast along one more axis."""
    return state[..., None] if isinstance(state, np.ndarray) else np.uint64(state)


def normal(count: int, *words: Any) -> np.ndarray:
    """``count`` standard normal numbers for every element of the key -> float64 [*key shape, count] (Box-Muller)."""
    u = uniform(2 * count, *words)
    radius = np.sqrt(-2.0 * np.log1p(-u[..., :count]))
    return radius * np.cos(2.0 * np.pi * u[..., count:])


def generator(*words: Any):
    """A torch CPU generator seeded by the key: for initialising weights, nothing else."""
    import torch

    return torch.Generator().manual_seed(int(key(*words)) >> 1)


def _halves(n: Any) -> tuple[Any, Any]:
    """Bits of the two halves of numbers below n, which may be an array."""
    if isinstance(n, np.ndarray):
        bits = np.maximum(2, np.frexp(n.astype(np.float64) - 1)[1]).astype(np.uint64)
        return bits // np.uint64(2), bits - bits // np.uint64(2)
    bits = max(2, int(n - 1).bit_length())
    return np.uint64(bits // 2), np.uint64(bits - bits // 2)


def _scramble(half: np.ndarray, k: Any, width: Any) -> np.ndarray:
    """The first ``width`` bits of mix(half GOLDEN + k)."""
    x = half * _GOLDEN
    x += k
    x = mix(x)
    x >>= 64 - width
    return x


def _split(x: np.ndarray, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """High bits, and the b low ones."""
    high = x >> b
    return high, x ^ (high << b)


def _forward(x: np.ndarray, a: Any, b: Any, keys: list[Any]) -> np.ndarray:
    left, right = _split(x, b)
    for i, k in enumerate(keys):  # the right half stays, the left is scrambled, and they change sides
        left, right = right, left ^ _scramble(right, k, b if i % 2 else a)
    return (left << b) | right


def _backward(x: np.ndarray, a: Any, b: Any, keys: list[Any]) -> np.ndarray:
    left, right = _split(x, b)
    for i, k in reversed(list(enumerate(keys))):
        left, right = right ^ _scramble(left, k, b if i % 2 else a), left
    return (left << b) | right


def _at(value: Any, where: np.ndarray) -> Any:
    return value[where] if np.ndim(value) else value


def _walk(step, x: Any, n: Any, words: tuple) -> np.ndarray:
    """A network on the power of two that holds n, repeated until its result falls below n; where n is small, sorted
    random numbers instead."""
    x = np.atleast_1d(np.asarray(x))
    n = np.broadcast_to(np.asarray(n), x.shape) if np.ndim(n) else n
    base = key(*words)
    small = np.asarray(n) < SMALL
    if small.all():
        return _sorted(step, x, n, base)
    if small.any():
        out = np.empty(x.shape, np.int64)
        out[small] = _sorted(step, x[small], n[small], _at(base, small))
        out[~small] = _network(step, x[~small], n[~small], _at(base, ~small))
        return out
    return _network(step, x, n, base)


def _sorted(step, x: np.ndarray, n: Any, base: Any) -> np.ndarray:
    """The place of each x among n random numbers in order of size; backward: which number has that place. A network
    of so few bits would favour some permutations."""
    count = np.arange(1, int(np.max(n, initial=1)) + 1)
    numbers = mix(_last(base) + count.astype(np.uint64) * _GOLDEN)
    numbers = np.where(count > np.asarray(n)[..., None], np.uint64(WORD), numbers)
    places = np.argsort(numbers, -1, kind="stable")
    if step is _forward:
        places = np.argsort(places, -1, kind="stable")
    if places.ndim == 1:
        return places[x]
    return np.take_along_axis(places, x[..., None].astype(np.int64), -1)[..., 0]


def _network(step, x: np.ndarray, n: Any, base: Any) -> np.ndarray:
    x = x.astype(np.uint64)
    a, b = _halves(n)
    keys = [key_on(base, i) for i in range(ROUNDS)]
    below = np.asarray(n).astype(np.uint64)
    x = step(x, a, b, keys)
    outside = np.flatnonzero(x >= below)
    while len(outside):
        again = step(x[outside], _at(a, outside), _at(b, outside), [_at(k, outside) for k in keys])
        x[outside] = again
        outside = outside[again >= _at(below, outside)]
    return x.astype(np.int64)


def permute(x: Any, n: Any, *words: Any) -> np.ndarray:
    """Image of each x in 0..n-1 under the permutation of n that the words name -> int64, same shape.

    n and the words may be arrays of x's shape: an element each, of its own permutation.
    """
    return _walk(_forward, x, n, words)


def unpermute(x: Any, n: Any, *words: Any) -> np.ndarray:
    """The inverse of `permute` -> int64, same shape."""
    return _walk(_backward, x, n, words)
