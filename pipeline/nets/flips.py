"""What each flip of a pixel does to the free energy of an RBM, all at once: no energy is computed twice, none kept.

With a the log-odds of hidden units, h = sigmoid(a) and q = 1 - h, softplus(a + w) - softplus(a) = log(q + h e^w): from
a table of e^w, the sum over hidden units is the logarithm of a product, and each unit costs a product and a sum.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from pipeline import jit

CACHED = 1 << 18
"""Numbers at a time that are summed over where there is no kernel: a megabyte, which a core's cache holds."""
LANES = 64
"""Products that go side by side."""
ROWS = 32
"""Pixels whose rows of the table a core's cache holds."""
LARGEST = 80.0
"""Logarithm of the largest product, less than that of fp32's largest number."""


class Recomputed(torch.autograd.Function):
    """A function of tensors of which a backward pass computes the inside again, so that no step of it is kept. As
    torch's checkpoint, which imports the compiler."""

    @staticmethod
    def forward(ctx, function, *tensors):
        ctx.function, ctx.tensors = function, tensors
        return function(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        inputs = [t if t.is_leaf else t.detach().requires_grad_(t.requires_grad) for t in ctx.tensors]
        with torch.enable_grad():
            out = ctx.function(*inputs)
        found = iter(torch.autograd.grad(out, [t for t in inputs if t.requires_grad], grads, allow_unused=True))
        return None, *(next(found) if t.requires_grad else None for t in inputs)


def recompute(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), of which nothing is kept for a backward pass but what is given: all that it depends on."""
    return Recomputed.apply(function, *tensors)  # type: ignore[return-value]


def hidden_change(a: Tensor, signs: Tensor, weight: Tensor) -> Tensor:
    """sum_j softplus(a_j + signs_i W_ij) - softplus(a_j) for log-odds a [B, H], signs [B, D] of 1 and -1 and W [D, H]
    -> [B, D], differentiable in a and W. By machine code where there is a CPU, numba, and no weight past LARGEST."""
    if jit.AVAILABLE and a.device.type == "cpu" and weight.detach().abs().max() < LARGEST:
        return Fused.apply(a, signs, weight)  # type: ignore[return-value]
    size = max(1, CACHED // a.numel())
    pairs = zip(signs.split(size, 1), weight.split(size), strict=True)
    return torch.cat([recompute(_moved, a, s, w) for s, w in pairs], 1)


def _moved(a: Tensor, signs: Tensor, weight: Tensor) -> Tensor:
    moved = torch.addcmul(a[:, None], signs[:, :, None], weight)
    return (softplus(moved) - softplus(a)[:, None]).sum(2)


class Fused(torch.autograd.Function):
    """The same by the kernels below."""

    @staticmethod
    def forward(ctx, a, signs, weight):
        fill = (0, -a.shape[1] % LANES)  # units that are never on
        powers = torch.stack([pad(sign * weight, fill).exp() for sign in (1, -1)])
        h, q = pad(a.sigmoid(), fill), pad((-a).sigmoid(), fill, value=1.0)
        minus, out = signs < 0, torch.empty_like(signs)
        factors = int(LARGEST / max(float(weight.abs().max()), 1e-3))
        _sum_logs(h.numpy(), q.numpy(), minus.numpy(), powers.numpy(), factors, out.numpy())
        ctx.save_for_backward(h, q, minus, powers, weight)
        return out

    @staticmethod
    def backward(ctx, *grads):
        h, q, minus, powers, weight = ctx.saved_tensors
        hidden = weight.shape[1]
        less_one = torch.stack([pad(torch.expm1(sign * weight), (0, h.shape[1] - hidden)) for sign in (1, -1)])
        of_a, of_weight = torch.zeros_like(h), torch.zeros_like(powers[0])
        arrays = (x.contiguous().numpy() for x in (h, q, minus, powers, less_one, grads[0], of_a, of_weight))
        _gradients(*arrays)
        return of_a[:, :hidden], None, of_weight[:, :hidden]


@jit.optional_jit
def _sum_log(h, q, power, factors, product):
    """sum_j log(q_j + h_j power_j). At most so many ``factors`` are multiplied before a logarithm is taken, lest their
    product be too large."""
    total, start = 0.0, 0
    while start < len(h):
        product[:] = 1
        end, count, width = min(len(h), start + factors * LANES), 0, LANES
        for j in range(start, end, LANES):
            # Slices, whose indices cannot be negative: else it is not vectorised.
            some, rest, powers = h[j : j + LANES], q[j : j + LANES], power[j : j + LANES]
            for k in range(LANES):
                product[k] *= rest[k] + some[k] * powers[k]
            count += 1
        while width > 1 and 2 * count <= factors:
            width //= 2
            count *= 2
            for k in range(width):
                product[k] *= product[k + width]
        for k in range(width):
            total += math.log(product[k])
        start = end
    return total


@jit.optional_jit
def _sum_logs(h, q, minus, powers, factors, out):
    """out [B, D] <- that sum for h and q [B, H] and the powers [2, D, H] of W or, where ``minus`` [B, D], of -W."""
    product = np.empty(LANES, h.dtype)
    for first in range(0, out.shape[1], ROWS):
        for b in range(out.shape[0]):
            for i in range(first, min(first + ROWS, out.shape[1])):
                power = powers[1, i] if minus[b, i] else powers[0, i]
                out[b, i] = _sum_log(h[b], q[b], power, factors, product)


@jit.optional_jit
def _gradients(h, q, minus, powers, less_one, grads, of_a, of_weight):
    """Adds the gradients of h's log-odds, [B, H], and of W, [D, H], for those of `_sum_logs`' result, [B, D].
    ``less_one``: the powers less one, which of small weights the powers do not tell."""
    for first in range(0, grads.shape[1], ROWS):
        for b in range(grads.shape[0]):
            some, rest, up = h[b], q[b], of_a[b]
            for i in range(first, min(first + ROWS, grads.shape[1])):
                side = 1 if minus[b, i] else 0
                power, less, down = powers[side, i], less_one[side, i], of_weight[i]
                g = grads[b, i]
                signed = -g if side else g
                for j in range(len(some)):
                    share = some[j] / (rest[j] + some[j] * power[j])
                    up[j] += g * share * rest[j] * less[j]
                    down[j] += signed * share * power[j]
