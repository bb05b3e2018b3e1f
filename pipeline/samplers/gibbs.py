"""Gibbs sampling of binary units: products with states of zeros and ones, and keyed draws, fused by numba on CPUs.

States are uint8. A unit is one where its number is below its probability. The numbers of a row are those that
`keyed.uniform_of` gives for the row's key, so a chain depends neither on its batch mates nor on the device.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline import jit, keyed

GOLDEN, MIX_1, MIX_2 = np.uint64(keyed.GOLDEN), np.uint64(keyed.MIX_1), np.uint64(keyed.MIX_2)
S30, S27, S31, S11 = (np.uint64(shift) for shift in (30, 27, 31, 11))


@jit.optional_jit
def _draw(probability, keys, skip, states):
    """states [n, i] <- whether number skip + i of `keyed.uniform_of` keys [n] is below probability [n, i]."""
    for n in range(probability.shape[0]):
        counter = keys[n] + skip * GOLDEN
        for i in range(probability.shape[1]):
            counter += GOLDEN
            x = counter
            x ^= x >> S30
            x *= MIX_1
            x ^= x >> S27
            x *= MIX_2
            x ^= x >> S31
            states[n, i] = (x >> S11) * 2.0**-53 < probability[n, i]


@jit.optional_jit
def _ones(states, on, count):
    """on [n, :count[n]] <- the places of the ones in states [n]."""
    for n in range(states.shape[0]):
        k = 0
        for i in range(states.shape[1]):
            on[n, k] = i
            k += states[n, i] != 0
        count[n] = k


@jit.optional_jit
def _ones_of_columns(states, on, count):
    """on [i, :count[i]] <- the rows n whose states [n, i] are one."""
    for n in range(states.shape[0]):
        for i in range(states.shape[1]):
            on[i, count[i]] = n
            count[i] += states[n, i] != 0


@jit.optional_jit
def _sum_rows(on, count, weight, out):
    """Adds to out [n] the rows on [n, :count[n]] of weight, eight at a time: each sum is read and written once for all
    eight."""
    for n in range(out.shape[0]):
        places, row = on[n], out[n]
        k = 0
        while k + 8 <= count[n]:
            a, b, c, d = weight[places[k]], weight[places[k + 1]], weight[places[k + 2]], weight[places[k + 3]]
            e, f, g, h = weight[places[k + 4]], weight[places[k + 5]], weight[places[k + 6]], weight[places[k + 7]]
            for j in range(row.shape[0]):
                row[j] += ((a[j] + b[j]) + (c[j] + d[j])) + ((e[j] + f[j]) + (g[j] + h[j]))
            k += 8
        while k < count[n]:
            a = weight[places[k]]
            for j in range(row.shape[0]):
                row[j] += a[j]
            k += 1


def fused(x: Tensor) -> bool:
    """Whether the kernels compute on x's device: a CPU with numba."""
    return jit.AVAILABLE and x.device.type == "cpu"


def bernoulli(probability: Tensor, keys: np.ndarray, skip: int = 0) -> Tensor:
    """Binary states of probabilities [N, U], drawn by keys, uint64 [N], whose first ``skip`` numbers are passed over
    -> uint8 [N, U]."""
    if probability.is_meta:
        return torch.empty_like(probability, dtype=torch.uint8)
    if not fused(probability):
        numbers = uniform(keys, skip + probability.shape[1], probability.device)
        return (numbers[:, skip:] < probability).to(torch.uint8)
    states = torch.empty(probability.shape, dtype=torch.uint8)
    chances = probability.detach().contiguous()
    chances = chances if chances.dtype == torch.float64 else chances.float()  # half precision is unknown to numpy
    _draw(chances.numpy(), keys, np.uint64(skip), states.numpy())
    return states


def uniform(keys: np.ndarray, count: int, device: torch.device) -> Tensor:
    """`keyed.uniform_of` computed on a device, bit for bit -> float64 [N, count]. Products of int64 wrap around as
    those of uint64 do."""
    golden, first, second = (int(np.uint64(factor).astype(np.int64)) for factor in (GOLDEN, MIX_1, MIX_2))
    steps = torch.arange(1, count + 1, device=device) * golden
    x = torch.from_numpy(keys.view(np.int64)).to(device)[:, None] + steps
    x = (x ^ _shift(x, 30)) * first
    x = (x ^ _shift(x, 27)) * second
    return _shift(x ^ _shift(x, 31), 11).double() * 2.0**-53


def _shift(x: Tensor, count: int) -> Tensor:
    """x >> count of unsigned numbers that an int64 tensor holds."""
    return (x >> count) & ((1 << (64 - count)) - 1)


@torch.no_grad()
def product(states: Tensor, weight: Tensor, start: Tensor, of_columns: bool = False, half: bool = False) -> Tensor:
    """start + states @ weight for states [N, D] of zeros and ones, weight [D, H], start [H] -> [N, H]; ``of_columns``:
    start + states^T @ weight, for weight [N, H] and start [D, H], which it may change, -> [D, H].

    On CPUs the weight's rows of the ones are added up: where one unit in seven is on, as in MNIST, in less than half
    the time of the matrix product, and to the same bits whatever other rows there are. ``half``: as a product in bf16.
    """
    if half or not fused(weight):
        return dense(states.T if of_columns else states, weight, start, half)
    rows, columns = reversed(states.shape) if of_columns else states.shape
    out = start if of_columns else torch.empty(rows, weight.shape[1], dtype=weight.dtype).copy_(start)
    on, count = np.empty((rows, columns + 1), np.uint32), np.zeros(rows, np.int64)
    (_ones_of_columns if of_columns else _ones)(states.to(torch.uint8).contiguous().numpy(), on, count)
    _sum_rows(on, count, weight.detach().contiguous().numpy(), out.detach().numpy())
    return out


def dense(states: Tensor, weight: Tensor, start: Tensor, half: bool = False) -> Tensor:
    """start + states @ weight as a product of matrices; ``half``: in bf16, of which states have all digits."""
    dtype = torch.bfloat16 if half else weight.dtype
    return start + (states.to(dtype) @ weight.to(dtype)).to(start.dtype)
