"""Solves the lasso on CPUs by coordinate descent on working sets, compiled by numba at the first call."""

import numpy as np

from pipeline.jit import jit

BLOCK = 8  # signals whose correlations are computed together
FIRST = 8  # coordinates of the first working set
LOOSE = 0.1  # goal for the working set's gap, as a share of the gap over all coordinates, while the set still grows
SWEEPS = 4  # between two computations of the working set's gap
PAYS = 6  # `_jump` takes the time of size / PAYS sweeps
RIDGE = 1e-10  # added to the diagonal of the support's Gram matrix, whose entries are 1
FAR = 8  # times a penalty, above which the largest correlation makes a code dense, and hard to reach from 0
ROUGH = 0.03  # gap to which a larger penalty's problem is solved on the way, as a share of ||y||^2 and of that penalty
STALLS = 20  # times that an unchanged working set is solved to a tenth of the gap; after that rounding limits it


@jit()
def solve(y, d, gram, penalty, tolerance, limit, start, stop, z_out, gap_out, violation_out, iterations_out):
    """Computes the codes of the signals ``start`` to ``stop`` - 1 of y [N, p] and writes them to the four outputs.

    For each signal it repeats three steps: (1) compute c = q - G z over all k, in float64, and the gap from it, for
    the code as rounded to the output's dtype; (2) add to the working set the coordinates that violate |c_j| <= penalty
    most; (3) sweep z_j <- soft_threshold(c_j + G_jj z_j, penalty) / G_jj over the set, with its own copy of G, until
    the set's gap is small enough. A code that will be dense is approached by way of sparser ones, with penalties that
    are halved. Where a signal, its square or its correlations are not finite, code, gap and violation are NaN.
    """
    k = d.shape[1]
    q_block, c = np.empty((BLOCK, k)), np.empty(k)
    marked = np.zeros(k, np.bool_)
    members, breaching = np.empty(k, np.int64), np.empty(k, np.int64)
    sub = np.empty((64, 64))
    zs, cs, qs = np.empty(k), np.empty(k), np.empty(k)
    for n in range(start, stop):
        if (n - start) % BLOCK == 0:
            _correlate(y[n : min(n + BLOCK, stop)], d, q_block)
        q = q_block[(n - start) % BLOCK]
        yy = _square(y[n], q)
        if not np.isfinite(yy):
            z_out[n], gap_out[n], violation_out[n] = np.nan, np.nan, np.nan
            continue
        size, sweeps, stalls = 0, 0, 0
        marked[:] = False
        goal = tolerance * yy
        inner = goal / 3
        largest = np.abs(q).max()
        now = max(penalty, largest / FAR)
        dense = now > penalty
        while True:
            _round(z_out, size, zs)
            cmax, gap = _certify(size, members, zs, q, gram, yy, now, c)
            if now > penalty and (gap <= max(goal, ROUGH * yy * now / largest) or stalls > 3 or sweeps >= limit):
                now, inner, stalls = max(penalty, now / 2), goal / 3, 0
                continue
            if gap <= goal or sweeps >= limit or stalls > STALLS or np.isnan(gap):
                break
            before = size
            size = _join(size, q, c, cmax, now, marked, breaching, members, zs, qs)
            if size == before:
                inner, stalls = inner / 10, stalls + 1
            aim = max(inner, LOOSE * gap) if size > before else inner
            if size > len(sub):
                sub = _wider(sub, before, min(k, 2 * size))
            _extend(before, size, members, gram, sub)
            for a in range(size):
                cs[a] = c[members[a]]
            sweeps += _solve_set(size, sub, zs, cs, qs, yy, now, aim, limit - sweeps, dense)
        for a in range(size):
            z_out[n, members[a]] = zs[a]
        gap_out[n], violation_out[n] = gap, _violation(size, members, zs, c, penalty)
        iterations_out[n] = sweeps


@jit()
def _square(y, q):
    """y'y in float64; NaN where it or a correlation is not finite."""
    yy = 0.0
    for i in range(len(y)):
        yy += np.float64(y[i]) ** 2
    for j in range(len(q)):
        if not np.isfinite(q[j]):
            return np.nan
    return yy


@jit(inline="always")
def _round(z_out, size, z):
    """Rounds the code to the output's dtype."""
    for a in range(size):
        z[a] = z_out.dtype.type(z[a])


@jit()
def _certify(size, members, z, q, gram, yy, penalty, c):
    """Computes c = q - G z over all coordinates. Returns ||c||_inf and the gap."""
    c[:] = q
    l1, qz, cz, cmax = 0.0, 0.0, 0.0, 0.0
    for a in range(size):
        v = z[a]
        if v != 0.0:
            row = gram[members[a]]
            for j in range(len(c)):
                c[j] -= v * row[j]
            l1 += abs(v)
            qz += v * q[members[a]]
    for a in range(size):
        cz += z[a] * c[members[a]]
    for j in range(len(c)):
        cmax = max(cmax, abs(c[j]))
    return cmax, _gap(yy - qz, yy - qz - cz, cmax, l1, penalty)


@jit()
def _join(size, q, c, cmax, penalty, marked, breaching, members, z, qs):
    """Adds to the working set the coordinates with the largest |c_j| above the penalty, at most as many as it has (or
    FIRST), and returns its new size."""
    count = 0
    for j in range(len(c)):
        if abs(c[j]) > penalty and not marked[j]:
            breaching[count] = j
            count += 1
    room, added = max(FIRST, size), 0
    bar = 0.5 * (cmax + penalty)
    while added < min(room, count):
        for i in range(count):
            j = breaching[i]
            if added < room and not marked[j] and abs(c[j]) > bar:
                marked[j] = True
                members[size], z[size], qs[size] = j, 0.0, q[j]
                size, added = size + 1, added + 1
        bar = 0.5 * (bar + penalty) if bar > 1.05 * penalty else penalty
    return size


@jit()
def _wider(sub, size, cap):
    """Copies the working set's Gram matrix [size, size] to a larger array [cap, cap]."""
    wider = np.empty((cap, cap))
    wider[:size, :size] = sub[:size, :size]
    return wider


@jit()
def _extend(before, size, members, gram, sub):
    """Fills the rows and columns of the working set's Gram matrix from ``before`` on."""
    for a in range(before, size):
        row = gram[members[a]]
        for b in range(size):
            sub[a, b] = row[members[b]]
            sub[b, a] = sub[a, b]


@jit()
def _violation(size, members, z, c, penalty):
    """The largest violation of the optimality conditions: |c| <= penalty, and c = penalty sign(z) where z is not
    0."""
    worst = 0.0
    for j in range(len(c)):
        worst = max(worst, abs(c[j]) - penalty)
    for a in range(size):
        if z[a] > 0:
            worst = max(worst, abs(c[members[a]] - penalty))
        elif z[a] < 0:
            worst = max(worst, abs(c[members[a]] + penalty))
    return worst


@jit()
def _correlate(y, d, q):
    """Computes q = D'y of a few signals, four rows of D at a time, which then stay in the cache for all of them. The
    order of a signal's sums does not depend on the other signals."""
    p, k = d.shape
    q[:] = 0.0
    for i in range(0, p - 3, 4):
        d0, d1, d2, d3 = d[i], d[i + 1], d[i + 2], d[i + 3]
        for n in range(len(y)):
            y0, y1 = np.float64(y[n, i]), np.float64(y[n, i + 1])
            y2, y3 = np.float64(y[n, i + 2]), np.float64(y[n, i + 3])
            row = q[n]
            for j in range(k):
                row[j] += y0 * d0[j] + y1 * d1[j] + y2 * d2[j] + y3 * d3[j]
    for i in range(p - p % 4, p):
        for n in range(len(y)):
            v = np.float64(y[n, i])
            for j in range(k):
                q[n, j] += v * d[i, j]


@jit(inline="always")
def _gap(yr, rr, cmax, l1, penalty):
    """The duality gap from y'r, r'r, ||c||_inf and ||z||_1, where the dual point is the best feasible multiple of
    r."""
    if rr <= 0.0 or cmax == 0.0:
        return penalty * l1
    bound = penalty / cmax
    s = min(max(yr / rr, -bound), bound)
    gap = 0.5 * rr + penalty * l1 - s * yr + 0.5 * s * s * rr
    return 0.0 if gap < 0.0 else gap  # max(0.0, gap) would turn NaN into 0


@jit()
def _solve_set(size, sub, z, c, q, yy, penalty, goal, limit, dense):
    """Solves the lasso on the working set until its gap is at most ``goal``. Returns the number of sweeps. ``dense``:
    jumps come before the signs are settled, and until one ends at the minimiser."""
    done, since = 0, 0
    live, step, factor = np.empty(size, np.int64), np.empty(size), np.empty((size, size))
    while done < max(1, limit):
        settled = False
        for _ in range(SWEEPS):
            moved, turned = _sweep(size, sub, z, c, penalty)
            done += 1
            since += 1
            settled = not turned
            if not moved:
                return done
        if _set_gap(size, z, c, q, yy, penalty) <= goal:
            break
        # A jump takes as long as size / PAYS sweeps, so it comes after as many, and when the signs no longer change.
        if (settled or dense) and since * PAYS > size:
            while _jump(size, sub, z, c, penalty, live, step, factor) and dense:
                pass
            since = 0
    return done


@jit()
def _sweep(size, sub, z, c, penalty):
    """Moves each coordinate to its minimiser in turn. Returns whether any moved, and whether any sign changed."""
    moved, turned = False, False
    for a in range(size):
        g, old = sub[a, a], z[a]
        u = c[a] + g * old
        new = 0.0
        if u > penalty:
            new = (u - penalty) / g
        elif u < -penalty:
            new = (u + penalty) / g
        if new != old:
            moved = True
            turned = turned or new * old <= 0.0
            z[a] = new
            row, by = sub[a], new - old
            for b in range(size):
                c[b] -= by * row[b]
    return moved, turned


@jit()
def _set_gap(size, z, c, q, yy, penalty):
    cmax, l1, qz, cz = 0.0, 0.0, 0.0, 0.0
    for a in range(size):
        cmax = max(cmax, abs(c[a]))
        l1 += abs(z[a])
        qz += q[a] * z[a]
        cz += c[a] * z[a]
    return _gap(yy - qz, yy - qz - cz, cmax, l1, penalty)


@jit()
def _jump(size, sub, z, c, penalty, live, step, factor):
    """Moves the nonzero coordinates S towards their joint minimiser for fixed signs, until the first reaches 0, and
    returns whether one did.

    Sweeps converge slowly where atoms are correlated; feature-sign search (Lee et al. 2006) instead solves
    (G_SS + RIDGE) step = c_S - penalty sign(z_S), here by elimination. P does not rise on the way, since it is a
    convex parabola for fixed signs. Linearly dependent atoms have no unique minimiser; with the ridge the step is
    long, and one of them reaches 0.
    """
    m = 0
    for a in range(size):
        if z[a] != 0.0:
            live[m] = a
            step[m] = c[a] - penalty if z[a] > 0 else c[a] + penalty
            m += 1
    for i in range(m):
        row = sub[live[i]]
        for j in range(i, m):
            factor[i, j] = row[live[j]]
        factor[i, i] += RIDGE
    for i in range(m):
        pivot = factor[i, i]
        if pivot < 0.5 * RIDGE:
            return False
        top = factor[i]
        for j in range(i + 1, m):
            share = top[j] / pivot
            if share != 0.0:
                below = factor[j]
                for b in range(j, m):
                    below[b] -= share * top[b]
                step[j] -= share * step[i]
    for i in range(m - 1, -1, -1):
        value = step[i]
        for j in range(i + 1, m):
            value -= factor[i, j] * step[j]
        step[i] = value / factor[i, i]
    length, first = 1.0, -1
    for i in range(m):
        at = z[live[i]]
        if step[i] * at < 0.0 and abs(at) < length * abs(step[i]):
            length, first = abs(at / step[i]), i
    for i in range(m):
        a = live[i]
        old = z[a]
        z[a] = 0.0 if i == first else old + length * step[i]
        by, row = z[a] - old, sub[a]
        for b in range(size):
            c[b] -= by * row[b]
    return first >= 0
