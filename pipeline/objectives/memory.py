"""What objectives remember between steps: a ring of recent keys, a row for every sample, or particles.

All are plain buffers, saved with the objective; only `commit` writes to them.
"""

from typing import Any

import numpy as np
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


class Shared(nn.Module):
    """Buffers with an entry for each of ``count`` numbers. ``sharded``: a rank holds those whose number mod ranks is
    its own; what is saved is the same, so that a checkpoint fits any number of ranks."""

    def __init__(self, count: int, world: World | None = None, sharded: bool = False):
        super().__init__()
        self.count, self.world = count, world
        self.rank, self.size = (world.rank, world.size) if sharded and world else (0, 1)

    def own(self, entries: Tensor) -> Tensor:
        """This rank's of all entries [count, ...], in memory of their own."""
        return entries[self.rank :: self.size].clone()

    def entries(self, values: Tensor, numbers: Tensor) -> Tensor:
        """Entries of a buffer by their numbers [n], the same on every rank: each rank gives its own, the rest are
        zeros, and the sum is exact."""
        if self.size == 1:
            return values.index_select(0, numbers)  # a third of the time of values[numbers]
        assert self.world is not None
        mine = (numbers % self.size == self.rank).view(-1, *[1] * (values.ndim - 1))
        held = values[(numbers // self.size).clamp(max=len(values) - 1)]
        return self.world.sum(torch.where(mine, held, torch.zeros_like(held)))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """All entries, whichever rank holds them. All ranks call it."""
        for name, value in self.named_buffers():
            value = value if keep_vars else value.detach()
            everyone = torch.arange(self.count, device=value.device)
            destination[prefix + name] = value if self.size == 1 else self.entries(value, everyone)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        for name, _ in self.named_buffers():
            if self.size > 1 and prefix + name in state_dict:
                state_dict[prefix + name] = self.own(state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Bank(Shared):
    """A unit row for every sample, by id, and the step that last wrote it (-1: still the random direction it began
    with, the same on every rank)."""

    rows: Tensor
    last_step: Tensor

    def __init__(self, samples: int, dim: int, seed: int, world: World | None = None, sharded: bool = False):
        super().__init__(samples, world, sharded)
        self.register_buffer("rows", self.own(unit_rows(samples, dim, seed, "init", "bank")))
        self.register_buffer("last_step", torch.full((len(self.rows),), -1))

    def read(self, ids: Tensor) -> Tensor:
        """Rows of ids [n], the same ids on every rank -> [n, dim]."""
        return self.entries(self.rows, ids)

    def read_own(self, ids: Tensor) -> Tensor:
        """Rows of this rank's ids [n], as many on every rank -> [n, dim]."""
        if self.size == 1:
            return self.rows.index_select(0, ids)
        assert self.world is not None
        return self.read(self.world.gather(ids))[self.rank * len(ids) :][: len(ids)]

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


class Particles(Shared):
    """Binary states of chains that go on from step to step, uint8 [n, D] on each rank: those of the ``count``
    particles whose number mod ranks is its own. What is drawn for a particle depends on (seed, step, number) alone.

    ``means``: probabilities [D] of a fresh particle's ones; without them one half. ``moved``: particles over all ranks
    that go on at a step, in turn; without it all.
    """

    states: Tensor

    def __init__(
        self,
        count: int,
        dim: int,
        seed: int,
        world: World | None = None,
        means: Tensor | None = None,
        moved: int | None = None,
    ):
        super().__init__(count, world, sharded=True)
        self.chances = np.full(dim, 0.5) if means is None else means.double().numpy()
        self.numbers = np.arange(self.rank, count, self.size)
        self.moved = len(self.numbers) if moved is None else moved // self.size
        self.register_buffer("states", torch.as_tensor(self.fresh(self.numbers, seed, "init")))

    def fresh(self, numbers: np.ndarray, *parts: Any) -> np.ndarray:
        """States of noise of these particles, a function of the key and their numbers -> uint8 [n, D]."""
        draws = keyed.uniform(len(self.chances), *parts, numbers, "particle")
        return (draws < self.chances).astype(np.uint8)

    def part(self, piece: tuple[int, int], step: int = 0) -> tuple[np.ndarray, Tensor]:
        """Numbers [m] and states [m, D] of this rank's particles in a micro-batch of a step."""
        i, pieces = piece
        start, end = (self.first(step) + self.moved * j // pieces for j in (i, i + 1))
        return self.numbers[start:end], self.states[start:end]

    def first(self, step: int) -> int:
        """Where this rank's particles of a step begin."""
        return step * self.moved % len(self.numbers)

    def renewed(self, states: Tensor, numbers: np.ndarray, share: float, *parts: Any) -> Tensor:
        """The states [m, D] with a random share of them anew from noise."""
        if not share:
            return states
        again = keyed.uniform(1, *parts, numbers, "refresh")[:, 0] < share
        states = states.clone()
        fresh = torch.from_numpy(self.fresh(numbers[again], *parts)).to(states)
        states[torch.from_numpy(again).to(states.device)] = fresh
        return states

    @torch.no_grad()
    def write(self, states: Tensor, step: int = 0) -> None:
        """Puts this rank's particles where their chains have come, [n, D], in the order in which `part` gave them."""
        self.states[self.first(step) :][: self.moved] = states


class GreyParticles(Particles):
    """The same of pixels in [0, 1], float [n, D]; fresh ones are uniform noise."""

    def fresh(self, numbers: np.ndarray, *parts: Any) -> np.ndarray:
        return keyed.uniform(len(self.chances), *parts, numbers, "particle").astype(np.float32)
