"""Online dictionary learning (Mairal, Bach, Ponce & Sapiro 2010, algorithms 1 and 2).

After each batch of n signals y with codes z: A <- beta A + sum z z' / n, B <- beta B + sum y z' / n, then one sweep of
block coordinate descent on 1/2 tr(D'D A) - tr(D'B) over the atoms, each scaled to norm 1.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed

WINDOW = 10  # batches over which the use of atoms is counted
RARE = 50  # an atom is dead, and replaced, if it was used less than 1 / RARE as often as 1 / k of the signals


@dataclass
class Dictionary:
    """The state of dictionary learning; float tensors are float64, all on the CPU.

    ``atoms`` [p, k] with unit columns; ``a`` [k, k], ``b`` [p, k]: the discounted sums A and B; ``used`` [k]: times
    that each atom was used in this window; ``seen``, ``batches`` and ``replaced``: signals and batches so far, and
    atoms replaced (0-d int64).
    """

    atoms: Tensor
    a: Tensor
    b: Tensor
    used: Tensor
    seen: Tensor
    batches: Tensor
    replaced: Tensor

    def state(self) -> dict[str, Tensor]:
        """The tensors by name, from which `Dictionary(**state)` restores it."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def begin(signals: Tensor, atoms: int, seed: int) -> Dictionary:
    """Initialises the atoms with random signals of [N, p], scaled to norm 1, and with noise where fewer than ``atoms``
    signals are nonzero."""
    p = signals.shape[1]
    alive = signals[signals.norm(dim=1) > 0].double()
    drawn = alive[torch.from_numpy(keyed.permute(np.arange(min(atoms, len(alive))), len(alive), seed, "atoms"))]
    noise = torch.from_numpy(keyed.normal(p, seed, "atoms", np.arange(atoms - len(drawn))))
    d = torch.cat([drawn, noise]).T.contiguous()  # a checkpoint's layout: the order of sums depends on it
    zero = torch.zeros((), dtype=torch.int64)
    return Dictionary(
        atoms=d / d.norm(dim=0),
        a=d.new_zeros(atoms, atoms),
        b=d.new_zeros(p, atoms),
        used=torch.zeros(atoms, dtype=torch.int64),
        seen=zero,
        batches=zero.clone(),
        replaced=zero.clone(),
    )


def discount(seen: int, batch: int) -> float:
    """Beta for the t-th batch of n signals (Mairal et al., sec. 3.4.3): (theta + 1 - n) / (theta + 1), with theta =
    t n for t < n and n^2 + t - n afterwards. It discounts the poor codes of early batches."""
    t = seen // batch + 1
    theta = t * batch if t < batch else batch**2 + t - batch
    return (theta + 1 - batch) / (theta + 1)


def update(now: Dictionary, signals: Tensor, z: Tensor) -> None:
    """Adds one batch, signals [n, p] with codes z [n, k], to the sums and updates the atoms, in place."""
    y, z = signals.double(), z.double()
    n = len(y)
    beta = discount(int(now.seen), n)
    now.a.mul_(beta).add_(z.T @ z / n)
    now.b.mul_(beta).add_(y.T @ z / n)
    now.used += (z != 0).sum(0)
    now.seen += n
    now.batches += 1
    sweep(now.atoms, now.a, now.b)
    if int(now.batches) % WINDOW == 0:
        dead = now.used * RARE * now.used.numel() < n * WINDOW
        if dead.any():
            replace(now, dead, y, z)
        now.used.zero_()


def sweep(atoms: Tensor, a: Tensor, b: Tensor) -> None:
    """One pass of block coordinate descent over the columns: u = d_j + (b_j - D a_j) / a_jj, d_j = u / ||u||.

    Atoms with a_jj = 0 are not changed. In place.
    """
    rows, weights, goals = atoms.T.contiguous().numpy(), a.numpy(), b.T.contiguous().numpy()
    for j, weight in enumerate(weights.diagonal().tolist()):
        if weight <= 0:
            continue
        u = rows[j] + (goals[j] - weights[j] @ rows) / weight
        norm = float((u @ u) ** 0.5)
        if norm > 0:
            rows[j] = u / norm
    atoms.copy_(torch.from_numpy(rows).T)


def replace(now: Dictionary, dead: Tensor, y: Tensor, z: Tensor) -> None:
    """Replaces the atoms ``dead`` by the largest residuals y - D z of the batch, and sets their sums to 0."""
    residual = y - z @ now.atoms.T
    lack = residual.norm(dim=1)
    worst = lack.argsort(descending=True, stable=True)[: int(dead.sum())]
    worst = worst[lack[worst] > 0]
    where = dead.nonzero()[: len(worst), 0]
    now.atoms[:, where] = (residual[worst] / lack[worst, None]).T
    now.a[where] = 0
    now.a[:, where] = 0
    now.b[:, where] = 0
    now.replaced += len(where)
