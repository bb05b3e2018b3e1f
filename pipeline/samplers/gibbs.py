"""Gibbs sampling of binary units: products with states of zeros and ones, and keyed draws, fused by numba on CPUs.

States are uint8. A unit is one where its number is below its probability. The numbers of a row are those that
`keyed.uniform_of` gives for the row's key, so a chain depends neither on its batch mates nor on the device.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
def _sum_rows(states, weight, bias, out):
    """out [n] <- bias + the rows of weight whose unit is one in states [n], four at a time."""
    on = np.empty(states.shape[1] + 1, np.int64)
    for n in range(states.shape[0]):
        count = 0
        for i in range(states.shape[1]):
            on[count] = i
            count += states[n, i] != 0
        row = out[n]
        row[:] = bias
        k = 0
        while k + 4 <= count:
            a, b, c, d = weight[on[k]], weight[on[k + 1]], weight[on[k + 2]], weight[on[k + 3]]
            for j in range(row.shape[0]):
                row[j] += (a[j] + b[j]) + (c[j] + d[j])
            k += 4
        while k < count:
            a = weight[on[k]]
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


def product(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """bias + states @ weight for states [N, D] of zeros and ones, weight [D, H], bias [H] -> [N, H].

    On CPUs the weight's rows of the ones are added up: where one unit in seven is on, as in MNIST, in half the time of
    the matrix product, and to the same bits whatever other rows there are.
    """
    if not fused(weight) or states.requires_grad or torch.is_autocast_enabled("cpu"):
        return torch.addmm(bias, states.to(weight.dtype), weight)
    return _Product.apply(states.to(torch.uint8), weight, bias)  # type: ignore[return-value]


class _Product(torch.autograd.Function):
    """The sum of rows, and as its gradient by the weight the transposed states' sum of the output's gradients."""

    @staticmethod
    def forward(ctx, states, weight, bias):
        ctx.save_for_backward(states)
        return _sums(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        (grad,), (states,) = grads, ctx.saved_tensors
        return None, _sums(states.T.contiguous(), grad, grad.new_zeros(grad.shape[1])), grad.sum(0)


def _sums(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = torch.empty(len(states), weight.shape[1], dtype=weight.dtype)
    states, weight, bias = (x.detach().contiguous() for x in (states, weight, bias))
    _sum_rows(states.numpy(), weight.numpy(), bias.numpy(), out.numpy())
    return out
