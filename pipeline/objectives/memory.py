"""What contrastive objectives remember between steps: a ring of recent keys, or a row for every sample.

Both are plain buffers, saved with the objective; only `commit` writes to them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline import keyed
from pipeline.world import World


def unit_rows(count: int, dim: int, *parts: Any) -> Tensor:
    """Random directions, a function of the key alone -> [count, dim], each of length 1."""
    return normalize(torch.randn(count, dim, generator=keyed.generator(*parts)), dim=1)


class Queue(nn.Module):
    """A ring of the newest ``size`` keys, each with its sample's id and the step that made it.

    Slots never written hold random directions, as MoCo starts, with id and step -1.
    """

    keys: Tensor
    ids: Tensor
    steps: Tensor
    next: Tensor

    def __init__(self, size: int, dim: int, seed: int):
        super().__init__()
        self.register_buffer("keys", unit_rows(size, dim, seed, "init", "queue"))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("steps", torch.full((size,), -1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def write(self, keys: Tensor, ids: Tensor, step: int) -> None:
        """Puts keys [n, dim] of samples ids [n] after the newest, over the oldest; of n > size the last ones stay."""
        size, n = len(self.ids), len(ids)
        last = min(n, size)
        slots = (self.next + torch.arange(n - last, n, device=self.next.device)) % size
        self.keys[slots] = keys[n - last :].to(self.keys.dtype)
        self.ids[slots] = ids[n - last :]
        self.steps.index_fill_(0, slots, step)
        self.next.add_(n).remainder_(size)

    def hidden(self, ids: Tensor) -> Tensor:
        """Which slots are no negatives of samples ids [B] -> bool [B, size]: their own image's keys, and slots never
        written, but for the first step, which has no others."""
        empty = self.steps < 0
        return (ids[:, None] == self.ids) | (empty & ~empty.all())

    def age(self, step: int) -> Tensor:
        """Mean age in steps of the keys written so far, 0-d."""
        written = self.steps >= 0
        return ((step - self.steps) * written).sum() / written.sum().clamp(min=1)


class Bank(nn.Module):
    """A unit row for every sample, by id, and the step that last wrote it (-1: still the random direction it began
    with, the same on every rank).

    ``sharded``: every rank holds the rows with id mod ranks = its own number; what is read and saved is the same.
    """

    rows: Tensor
    last_step: Tensor

    def __init__(self, samples: int, dim: int, seed: int, world: World | None = None, sharded: bool = False):
        super().__init__()
        self.samples, self.world = samples, world
        self.rank, self.size = (world.rank, world.size) if sharded and world else (0, 1)
        rows = unit_rows(samples, dim, seed, "init", "bank")[self.rank :: self.size].clone()
        self.register_buffer("rows", rows)
        self.register_buffer("last_step", torch.full((len(rows),), -1))

    def read(self, ids: Tensor) -> Tensor:
        """Rows of ids [n], the same ids on every rank -> [n, dim]."""
        return self._whole(self.rows, ids)

    def read_own(self, ids: Tensor) -> Tensor:
        """Rows of this rank's ids [n], as many on every rank -> [n, dim]."""
        if self.size == 1:
            return self.rows.index_select(0, ids)
        assert self.world is not None
        return self.read(self.world.gather(ids))[self.rank * len(ids) :][: len(ids)]

    def _whole(self, values: Tensor, ids: Tensor) -> Tensor:
        """Entries of a sharded buffer: each rank gives its own, the rest are zeros, and the sum is exact."""
        if self.size == 1:
            return values.index_select(0, ids)  # a third of the time of values[ids]
        assert self.world is not None
        mine = (ids % self.size == self.rank).view(-1, *[1] * (values.ndim - 1))
        held = values[(ids // self.size).clamp(max=len(values) - 1)]
        return self.world.sum(torch.where(mine, held, torch.zeros_like(held)))

    @torch.no_grad()
    def write(self, values: Tensor, ids: Tensor, step: int, momentum: float) -> None:
        """row <- normalise(momentum row + (1 - momentum) value) for values [n, dim] of samples ids [n], the same on
        every rank.

        Values of a sample that is there more than once are averaged first, so that their order cannot matter.
        """
        same = (ids[:, None] == ids).to(self.rows.dtype)
        values = (same @ values.to(self.rows.dtype)) / same.sum(1, keepdim=True)
        if self.size > 1:
            mine = ids % self.size == self.rank
            ids, values = ids[mine] // self.size, values[mine]
        # Repeated ids write equal rows, so it does not matter which write is last.
        self.rows[ids] = normalize(torch.lerp(values, self.rows[ids], momentum), dim=1)
        self.last_step.index_fill_(0, ids, step)

    def age(self, step: int) -> Tensor:
        """Mean age in steps of the rows written so far, over all ranks, 0-d."""
        written = self.last_step >= 0
        sums = torch.stack([((step - self.last_step) * written).sum(), written.sum()])
        if self.size > 1:
            assert self.world is not None
            sums = self.world.sum(sums)
        return sums[0] / sums[1].clamp(min=1)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """All rows, whichever rank holds them, so that a checkpoint fits any number of ranks. All ranks call it."""
        everyone = torch.arange(self.samples, device=self.rows.device)
        for name, value in self.named_buffers():
            value = value if keep_vars else value.detach()
            destination[prefix + name] = value if self.size == 1 else self._whole(value, everyone)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        for name in ("rows", "last_step"):
            if self.size > 1 and prefix + name in state_dict:
                state_dict[prefix + name] = state_dict[prefix + name][self.rank :: self.size]
        super()._load_from_state_dict(state_dict, prefix, *rest)
