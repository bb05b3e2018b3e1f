"""L-BFGS (Nocedal & Wright 2006, alg. 7.4 and 7.5) of many independent problems side by side, on any device."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

MEMORY = 10  # pairs of steps and gradient changes kept
HALVINGS = 30  # of a step, before a problem counts as solved to rounding
ARMIJO = 1e-4


def minimise(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, tolerance: float, limit: int = 1000
) -> Tensor:
    """Minimisers [P, N] of P strictly convex problems, each from its row of ``x`` until its gradient's norm is at most
    ``tolerance``. ``function``: [P, N] -> values [P], gradients [P, N]. Solve well-scaled problems: the first step is
    the gradient's. Strict convexity makes every pair's curvature positive, so halving steps is search enough."""
    value, gradient = function(x)
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
    stuck = torch.zeros_like(value, dtype=torch.bool)
    for _ in range(limit):
        unsolved = (gradient.norm(dim=1) > tolerance) & ~stuck
        if not unsolved.any():
            break
        step = torch.where(unsolved[:, None], direction(gradient, pairs), 0)
        slope = (step * gradient).sum(1)
        length, fine = torch.ones_like(value), ~unsolved
        for _ in range(HALVINGS):
            ahead = x + length[:, None] * step
            value_ahead, gradient_ahead = function(ahead)
            fine = (value_ahead <= value + ARMIJO * length * slope) | ~unsolved
            if fine.all():
                break
            length = torch.where(fine, length, length / 2)
        stuck, moved = stuck | ~fine, (fine & unsolved)[:, None]
        s, y = torch.where(moved, ahead - x, 0), torch.where(moved, gradient_ahead - gradient, 0)
        product = (s * y).sum(1, keepdim=True)
        pairs.append((s, y, torch.where(product > 0, 1 / product, 0)))  # a problem that stands still adds nothing
        x, value = torch.where(moved, ahead, x), torch.where(moved[:, 0], value_ahead, value)
        gradient = torch.where(moved, gradient_ahead, gradient)
    return x


def direction(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """-H gradient by the two-loop recursion, H from the (s, y, 1 / s'y) seen; scaled by the newest pair."""
    q, shares = gradient, []
    for s, y, inverse in reversed(pairs):
        share = inverse * (s * q).sum(1, keepdim=True)
        shares.append(share)
        q = q - share * y
    if pairs:
        _, y, inverse = pairs[-1]
        size = (y * y).sum(1, keepdim=True) * inverse
        q = torch.where(size > 0, q / size, q)
    for (s, y, inverse), share in zip(pairs, reversed(shares), strict=True):
        q = q + (share - inverse * (y * q).sum(1, keepdim=True)) * s
    return -q
