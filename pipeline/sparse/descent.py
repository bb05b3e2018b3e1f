"""The kernel of the sparse codes on CPUs: coordinate descent on working sets, compiled by numba at its first call."""

import numba
import numpy as np

FIRST = 8  # coordinates of the first working set
SWEEPS = 4  # between two looks at the working set's own gap
PATIENCE = 20  # times an unchanged working set is solved ten times better: past that, rounding is what is left


@numba.njit(cache=True, nogil=True)
def solve(y, d, gram, penalty, tolerance, limit, start, stop, z_out, gap_out, violation_out, iterations_out):
    """Codes of the signals ``start`` to ``stop`` of y [N, p], written to the four outputs.

    Per signal: (1) c = q - G z over all k, in float64, and from it the gap (the certificate is of the code as it is
    returned, rounded to the output's dtype); (2) the coordinates that breach |c_j| <= penalty most join the working
    set; (3) sweeps z_j <- shrink(c_j + G_jj z_j, penalty) / G_jj over the set alone, on its own copy of G, until the
    set's gap is a third of the one asked for; and again from (1).
    """
    p, k = d.shape
    q, c = np.empty(k), np.empty(k)
    chosen = np.zeros(k, np.bool_)
    members = np.empty(k, np.int64)
    cap = 64
    sub = np.empty((cap, cap))
    zs, cs, qs = np.empty(k), np.empty(k), np.empty(k)
    for n in range(start, stop):
        yy = 0.0
        q[:] = 0.0
        for i in range(p):
            v = np.float64(y[n, i])
            yy += v * v
            if v != 0.0:
                for j in range(k):
                    q[j] += v * d[i, j]
        size = 0
        chosen[:] = False
        sweeps = 0
        goal = tolerance * yy
        inner, idle = goal / 3, 0
        gap = 0.0
        cmax = 0.0
        while True:
            c[:] = q
            l1 = 0.0
            qz = 0.0
            for a in range(size):
                zs[a] = z_out.dtype.type(zs[a])
                v = zs[a]
                if v != 0.0:
                    row = gram[members[a]]
                    for j in range(k):
                        c[j] -= v * row[j]
                    l1 += abs(v)
                    qz += v * q[members[a]]
            cz = 0.0
            for a in range(size):
                cz += zs[a] * c[members[a]]
            cmax = 0.0
            for j in range(k):
                cmax = max(cmax, abs(c[j]))
            gap = _gap(yy - qz, yy - qz - cz, cmax, l1, penalty)
            if gap <= goal or sweeps >= limit or idle > PATIENCE:
                break
            # The worst offenders join: from the upper half of the breach down, at most as many as are in.
            room, added, before = max(FIRST, size), 0, size
            bar = 0.5 * (cmax + penalty)
            while added < room:
                for j in range(k):
                    if added < room and not chosen[j] and abs(c[j]) > bar:
                        chosen[j] = True
                        members[size], zs[size], qs[size] = j, 0.0, q[j]
                        size, added = size + 1, added + 1
                if bar == penalty:
                    break
                bar = 0.5 * (bar + penalty) if bar > 1.05 * penalty else penalty
            if added == 0:
                inner, idle = inner / 10, idle + 1
            if size > cap:
                cap = min(k, 2 * size)
                wider = np.empty((cap, cap))
                wider[:before, :before] = sub[:before, :before]
                sub = wider
            for a in range(before, size):
                row = gram[members[a]]
                for b in range(size):
                    sub[a, b] = row[members[b]]
                    sub[b, a] = sub[a, b]
            for a in range(size):
                cs[a] = c[members[a]]
            sweeps += _sweep(size, sub, zs, cs, qs, yy, penalty, inner, limit - sweeps)
        worst = 0.0
        for j in range(k):
            worst = max(worst, abs(c[j]) - penalty)
        for a in range(size):
            j = members[a]
            z_out[n, j] = zs[a]
            if zs[a] > 0:
                worst = max(worst, abs(c[j] - penalty))
            elif zs[a] < 0:
                worst = max(worst, abs(c[j] + penalty))
        gap_out[n] = gap
        violation_out[n] = worst
        iterations_out[n] = sweeps


@numba.njit(cache=True, nogil=True, inline="always")
def _gap(yr, rr, cmax, l1, penalty):
    """Duality gap from y'r, r'r, ||c||_inf and ||z||_1: the dual point is the best feasible multiple of r."""
    if rr <= 0.0 or cmax == 0.0:
        return max(0.0, penalty * l1)
    bound = penalty / cmax
    s = min(max(yr / rr, -bound), bound)
    return max(0.0, 0.5 * rr + penalty * l1 - s * yr + 0.5 * s * s * rr)


@numba.njit(cache=True, nogil=True)
def _sweep(size, sub, z, c, q, yy, penalty, goal, limit):
    """Sweeps over the working set until its own gap is at most ``goal``; returns how many."""
    done = 0
    while done < max(1, limit):
        for _ in range(SWEEPS):
            done += 1
            moved = 0.0
            for a in range(size):
                g = sub[a, a]
                old = z[a]
                u = c[a] + g * old
                new = 0.0
                if u > penalty:
                    new = (u - penalty) / g
                elif u < -penalty:
                    new = (u + penalty) / g
                if new != old:
                    step = new - old
                    z[a] = new
                    row = sub[a]
                    for b in range(size):
                        c[b] -= step * row[b]
                    moved = max(moved, abs(step))
            if moved == 0.0:
                return done
        cmax, l1, qz, cz = 0.0, 0.0, 0.0, 0.0
        for a in range(size):
            cmax = max(cmax, abs(c[a]))
            l1 += abs(z[a])
            qz += q[a] * z[a]
            cz += c[a] * z[a]
        if _gap(yy - qz, yy - qz - cz, cmax, l1, penalty) <= goal:
            break
    return done
