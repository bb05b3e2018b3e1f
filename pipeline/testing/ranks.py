"""Several ranks are one: the same losses, gradients and state for the same global batches."""

import multiprocessing
import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.objectives.base import Batch, Objective
from pipeline.testing.cases import SAMPLES, Case
from pipeline.testing.contract import expect, gradients, near
from pipeline.training import loop, monitor, sharded
from pipeline.world import World

STEPS, GLOBAL = 10, 8


def train(objective: Objective, draw: Callable[..., Batch], world: World, dtype: torch.dtype = torch.float64,
          pieces: int = 1, shards: bool = False) -> dict[str, Any]:  # fmt: skip
    """This rank's share of a few steps -> the global loss of each, the mean energy of data, the first gradient, the
    state at the end. ``pieces``: micro-batches a step; ``shards``: of the weights, one for each rank."""
    if shards and world.size > 1:
        sharded.shard_modules(objective.children(), world)
        model: nn.Module = objective
    else:
        model = world.wrap(objective)
    optimiser = torch.optim.SGD(objective.parameters(), 0.05, momentum=0.9)
    losses, energies, first = [], [], {}
    for step in range(STEPS):
        size, share = GLOBAL // pieces, GLOBAL // pieces // world.size
        starts = [piece * size + world.rank * share for piece in range(pieces)]
        ids = [(5 * step + i) % SAMPLES for i in range(GLOBAL)]
        result = loop.backward(model, objective, [draw(objective, ids[s : s + share], step, dtype) for s in starts])
        losses.append(float(world.sum(result.loss) / world.size))
        energies.append(float(world.sum(result.low.abs().mean()) / world.size))
        if step == 0:
            first = {name: sharded.full_tensor(grad).clone() for name, grad in gradients(objective).items()}
        optimiser.step()
        optimiser.zero_grad()
        objective.commit(result.pending, step, (step + 1) / STEPS)
    monitor.compare_ranks(objective, STEPS, world)
    ended = {name: sharded.full_tensor(x).clone() for name, x in objective.state_dict().items()}
    return {"losses": losses, "energies": energies, "gradient": first, "state": ended}


def two_ranks_are_one(case: Case) -> None:
    """Two processes over gloo: for the same global batches the same losses, first gradient and last state to rounding,
    and on both ranks the same bits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        made = pickle.dumps((case.make, case.draw))
        ranks = [spawn.Process(target=rank, args=(i, port, made, folder)) for i in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        expect(all(process.exitcode == 0 for process in ranks), "a rank has failed: its traceback stands above")
        two = torch.load(Path(folder) / "first.pt")
    one = train(case.make(world=case.world), case.draw, case.world)
    near(torch.tensor(two["losses"]), torch.tensor(one["losses"]), "two ranks are not one: losses", 1e-9, 1e-10)
    for what in ("gradient", "state"):
        scale = max(float(x.abs().max()) for x in one[what].values() if x.is_floating_point())
        for name, x in one[what].items():
            limit = 1e-9 * scale if x.is_floating_point() else 0
            near(two[what][name], x, f"two ranks are not one: {what} of {name}", 0, limit)


def rank(number: int, port: int, case: bytes, folder: str) -> None:
    """One of two ranks; the first writes what it came to into a folder. ``case``: its two functions, pickled."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(number), "LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    make, draw = pickle.loads(case)
    world = World()
    result = train(make(world=world), draw, world)
    if world.main:
        torch.save(result, Path(folder) / "first.pt")
    world.close()
