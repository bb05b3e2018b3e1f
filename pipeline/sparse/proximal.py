"""Accelerated proximal gradient, with a step length for each row: for energies that are smooth but for a penalty."""

from collections.abc import Callable

import torch
from torch import Tensor

SLACK = 16
"""Roundings by which an energy may exceed its bound: differences of energies are known no better."""


def minimise(
    smooth: Callable[[Tensor], Tensor], proximal: Callable[[Tensor, Tensor], Tensor], start: Tensor, steps: int
) -> Tensor:
    """Minimises smooth(z) + g(z) by ``steps`` steps of FISTA with backtracking (Beck & Teboulle 2009, sec. 4) from
    ``start`` [B, k] -> [B, k], without a graph.

    ``smooth``: [B, k] -> [B], each row's energy a function of its own row; ``proximal``: (z, step [B, 1]) -> the
    minimiser over u of g(u) + ||u - z||^2 / (2 step). A row's step is halved where the energy lies above its quadratic
    bound, and its momentum restarts where a step is against it (O'Donoghue & Candes 2015, gradient scheme).
    """
    z = x = start.detach()
    t = step = torch.ones_like(z[:, :1])
    slack = SLACK * torch.finfo(z.dtype).eps
    for _ in range(steps):
        energy, slope = _slope(smooth, x)
        after = proximal(x - step * slope, step)
        move = after - x
        with torch.no_grad():
            bound = energy + (slope * move).sum(1) + move.square().sum(1) / (2 * step[:, 0])
            fits = (smooth(after) <= bound + slack * energy.abs())[:, None]
        back = ((x - after) * (after - z)).sum(1, keepdim=True) > 0
        before = torch.where(back, 1.0, t)
        later = 0.5 * (1 + torch.sqrt(1 + 4 * before.square()))
        x = torch.where(fits, after + (before - 1) / later * (after - z), x)
        z, t, step = torch.where(fits, after, z), torch.where(fits, later, t), torch.where(fits, step, step / 2)
    return z


def _slope(smooth: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The energies [B] of rows [B, k] and their gradients [B, k], whether or not there is a graph around it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = smooth(x)
        (slope,) = torch.autograd.grad(energy.sum(), x)
    return energy.detach(), slope
