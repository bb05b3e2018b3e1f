"""Solvers of the lasso, min over z of P(z) = 1/2 ||y - D z||^2 + penalty ||z||_1 for each signal y, with duality gaps.

Notation: D [p, k] has unit columns, G = D'D, q = D'y, c = D'(y - D z) = q - G z. A code is optimal where c_j = penalty
sign(z_j) on its support and |c_j| <= penalty off it. The duality gap bounds P(z) - min P; a code counts as solved if
its gap is at most tolerance ||y||^2. Where a signal or the dictionary is not finite, code, gap and violation are NaN.

ISTA and FISTA (Beck & Teboulle 2009) work on batches, for GPUs and as references. Coordinate descent on working sets
takes one signal at a time, for CPUs; a signal's code does not depend, to the bit, on the signals around it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-4
LIMIT = 10000  # steps or sweeps a signal
MARGIN = 0.95  # on the tolerance while iterating in the signals' precision; the final gap is computed in float64


class Codes(NamedTuple):
    """``z``: codes [N, k] in the signals' dtype; ``gap``: duality gap, an upper bound on P(z) - min P, float64 [N];
    ``violation``: the largest violation of the optimality conditions, float64 [N]; ``iterations``: steps, or sweeps
    over a working set, int64 [N]."""

    z: Tensor
    gap: Tensor
    violation: Tensor
    iterations: Tensor


def half(lecture: float) -> float:
    """The penalty for which P has the same minimiser as ||y - D z||^2 + lecture ||z||_1, the energy without 1/2 of
    LeCun's lectures, which is then 2 P.
    """
    return lecture / 2


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    """sign(x) max(|x| - threshold, 0), the proximal operator of threshold ||x||_1. The compiled coordinate descent has
    its own scalar form."""
    return x.sign() * torch.relu(x.abs() - threshold)


def energy(signals: Tensor, dictionary: Tensor, z: Tensor, penalty: float) -> Tensor:
    """P(z) of each signal [N]."""
    return 0.5 * (signals - z @ dictionary.T).square().sum(1) + penalty * z.abs().sum(1)


def largest_penalty(signals: Tensor, dictionary: Tensor) -> Tensor:
    """||D'y||_inf of each signal [N], the smallest penalty for which its code is 0."""
    return (signals @ dictionary).abs().amax(1)


def curvature(dictionary: Tensor) -> Tensor:
    """The largest eigenvalue of D'D, 0-d, whose inverse is the step size. It is exact, since ISTA may diverge with a
    smaller value."""
    rows = dictionary if dictionary.shape[0] < dictionary.shape[1] else dictionary.T
    return torch.linalg.eigvalsh((rows @ rows.T).double())[-1].to(dictionary.dtype)


def certify(signals: Tensor, dictionary: Tensor, z: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The duality gap and the violation of any codes, computed in float64 -> ([N], [N])."""
    y, d, z = signals.double(), dictionary.double(), z.double()
    q = y @ d
    return _certificate(y.square().sum(1), q, (y - z @ d.T) @ d, z, penalty)


def _certificate(yy: Tensor, q: Tensor, c: Tensor, z: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Gap and violation from c = q - G z, without the residual r: y'r = y'y - q'z and r'r = y'r - c'z.

    The dual point is the best multiple s r of the residual that is feasible, |D'(s r)| <= penalty.
    """
    yr = yy - (q * z).sum(1)
    rr = (yr - (c * z).sum(1)).clamp_min(0)
    limit = penalty / c.abs().amax(1).clamp_min(torch.finfo(c.dtype).tiny)
    s = torch.where(rr > 0, yr / rr, torch.zeros_like(rr)).clamp(-limit, limit)
    gap = (0.5 * rr + penalty * z.abs().sum(1) - s * yr + 0.5 * s.square() * rr).clamp_min(0)
    off = (c.abs() - penalty).clamp_min(0)
    violation = torch.where(z != 0, (c - penalty * z.sign()).abs(), off).amax(1)
    return gap, violation


class Iterate(NamedTuple):
    """``z`` and the extrapolated point ``x`` [N, k], their correlations ``c`` and ``cx``, momentum ``t`` [N, 1]."""

    z: Tensor
    c: Tensor
    x: Tensor
    cx: Tensor
    t: Tensor


def begin(q: Tensor) -> Iterate:
    """The first iterate, z = 0, where c = q."""
    zero = torch.zeros_like(q)
    return Iterate(zero, q, zero, q, torch.ones_like(q[:, :1]))


def advance(at: Iterate, gram: Tensor, q: Tensor, penalty: float, step: Tensor, momentum: bool) -> Iterate:
    """One step of ISTA, or of FISTA with ``momentum``, with one product with G, from which the gap is computed, too.

    z+ = soft_threshold(x + step D'(y - D x), step penalty); t+ = (1 + sqrt(1 + 4 t^2)) / 2;
    x+ = z+ + (t - 1) / t+ (z+ - z).
    The momentum of a signal restarts where its step is against it (O'Donoghue & Candes 2015, gradient scheme).
    """
    z = soft_threshold(at.x + step * at.cx, step * penalty)
    c = q - z @ gram
    if not momentum:
        return Iterate(z, c, z, c, at.t)
    back = ((at.x - z) * (z - at.z)).sum(1, keepdim=True) > 0
    t = torch.where(back, 1.0, at.t)
    after = 0.5 * (1 + torch.sqrt(1 + 4 * t.square()))
    weight = (t - 1) / after
    # c is affine in z, so that c at x needs no other product.
    return Iterate(z, c, z + weight * (z - at.z), c + weight * (c - at.c), after)


def iterates(
    signals: Tensor, dictionary: Tensor, penalty: float, steps: int, momentum: bool
) -> Iterator[Tensor]:
    """The codes [N, k] after 0 to ``steps`` steps of ISTA, or of FISTA with ``momentum``."""
    gram, q, step = dictionary.T @ dictionary, signals @ dictionary, 1 / curvature(dictionary)
    at = begin(q)
    yield at.z
    for _ in range(steps):
        at = advance(at, gram, q, penalty, step, momentum)
        yield at.z


def _descent(
    signals: Tensor, dictionary: Tensor, penalty: float, tolerance: float, limit: int, momentum: bool
) -> Codes:
    n, k = len(signals), dictionary.shape[1]
    if not torch.isfinite(dictionary).all():
        signals, dictionary = torch.full_like(signals, torch.nan), torch.zeros_like(dictionary)
    gram, q = dictionary.T @ dictionary, signals @ dictionary
    step = 1 / curvature(dictionary).clamp_min(torch.finfo(q.dtype).tiny)
    yy = signals.square().sum(1)
    z = q.new_zeros(n, k)
    iterations = torch.zeros(n, dtype=torch.int64, device=q.device)
    rows, at = torch.arange(n, device=q.device), begin(q)
    for i in range(limit + 1):
        gap, _ = _certificate(yy[rows], q[rows], at.c, at.z, penalty)
        left = gap > MARGIN * tolerance * yy[rows]
        done = ~left | (i == limit)
        if done.any():  # signals that are solved leave the batch
            z[rows[done]], iterations[rows[done]] = at.z[done], i
            rows, at = rows[~done], Iterate(*(x[~done] for x in at))
        if not len(rows):
            break
        at = advance(at, gram, q[rows], penalty, step, momentum)
    gap, violation = certify(signals, dictionary, z, penalty)
    missed = gap > tolerance * signals.double().square().sum(1)
    if missed.any() and signals.dtype != torch.float64:  # rounding limits the gap: solve these again in float64
        again = _descent(signals[missed].double(), dictionary.double(), penalty, tolerance, limit, momentum)
        z[missed], iterations[missed] = again.z.to(z), iterations[missed] + again.iterations
        gap, violation = certify(signals, dictionary, z, penalty)
    broken = ~torch.isfinite(gap)
    z[broken], gap[broken], violation[broken] = torch.nan, torch.nan, torch.nan
    return Codes(z, gap, violation, iterations)


def ista(
    signals: Tensor, dictionary: Tensor, penalty: float, tolerance: float = TOLERANCE, limit: int = LIMIT
) -> Codes:
    """Codes of signals [N, p] by ISTA, at most ``limit`` steps for each signal."""
    return _descent(signals, dictionary, penalty, tolerance, limit, momentum=False)


def fista(
    signals: Tensor, dictionary: Tensor, penalty: float, tolerance: float = TOLERANCE, limit: int = LIMIT
) -> Codes:
    """Codes of signals [N, p] by FISTA, with restarts of each signal's momentum."""
    return _descent(signals, dictionary, penalty, tolerance, limit, momentum=True)


def encode(
    signals: Tensor, dictionary: Tensor, penalty: float, tolerance: float = TOLERANCE, limit: int = LIMIT
) -> Codes:
    """Codes of signals [N, p], solved to a gap of tolerance ||y||^2, which is computed in float64.

    On a CPU it uses coordinate descent (numba, with torch's number of threads); on a GPU, and without numba, FISTA.
    """
    if signals.device.type != "cpu" or find_spec("numba") is None:
        return fista(signals, dictionary, penalty, tolerance, limit)
    return descend(signals, dictionary, penalty, tolerance, limit)


CHUNK = 256  # signals of one task of a thread


def descend(
    signals: Tensor, dictionary: Tensor, penalty: float, tolerance: float = TOLERANCE, limit: int = LIMIT
) -> Codes:
    """Codes of signals [N, p] by coordinate descent on working sets, at most ``limit`` sweeps for each signal."""
    n, k = len(signals), dictionary.shape[1]
    d = dictionary.double()
    gram, d = (d.T @ d).numpy(), d.contiguous().numpy()
    y = signals.detach().contiguous().numpy()
    z = torch.zeros(n, k, dtype=signals.dtype)
    gap, violation = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    iterations = torch.zeros(n, dtype=torch.int64)
    solve = partial(_kernel(), y, d, gram, penalty, tolerance, limit)
    outputs = (z.numpy(), gap.numpy(), violation.numpy(), iterations.numpy())
    starts = range(0, n, CHUNK)
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        solve(0, n, *outputs)
    else:  # the kernel releases the GIL, so threads run in parallel
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda a: solve(a, min(n, a + CHUNK), *outputs), starts))
    return Codes(z, gap, violation, iterations)


@cache
def _kernel():
    from pipeline.sparse.coordinate_descent import solve

    return solve
