"""The pretraining step beside lightly's modules, and PIRL's negatives beside a gather a sample."""

import copy
import itertools
import os
import time
from collections.abc import Callable
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pipeline import objectives
from pipeline.board import Board
from pipeline.image import Image
from pipeline.objectives.base import Batch, Setup
from pipeline.objectives.memory import Bank
from pipeline.settings.nets import ResNet
from pipeline.settings.objectives import Head, MoCo
from pipeline.settings.training import Training
from pipeline.training import monitor
from pipeline.training.gradients import clip
from pipeline.training.loop import backward
from pipeline.training.state import compile_networks
from pipeline.world import World

BATCH = int(os.environ.get("BENCH_BATCH", "256"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
THREADS = int(os.environ.get("BENCH_THREADS", "2"))
IMAGE = Image(3, 32, (0.5,) * 3, (0.25,) * 3)
SETTINGS = MoCo(queue=4096, momentum=0.99, temperature=0.1, mask_own=False, head=Head(hidden=512, dim=128))


def rounds(work: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Seconds of each, the least of ``count`` interleaved rounds after one that is not counted: what else runs on the
    machine only ever adds."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for at in range(count + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if at:
                seconds[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in seconds.items()}


def batch() -> Batch:
    torch.manual_seed(0)
    views = tuple(torch.randn(BATCH, 3, 32, 32) for _ in range(2))
    return Batch(views, torch.arange(BATCH))


def ours(precision: str = "fp32", compiled: bool = False) -> Callable[[], None]:
    """One step of the loop, channels_last: forward, backward, optimiser, commit."""
    objective = objectives.build(SETTINGS, Setup(IMAGE, 50_000, ResNet(), World(THREADS), 0)).train()
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        compile_networks(objective)
    optimiser = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], 0.06, momentum=0.9)
    sample, at = batch(), iter(range(10**9))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            result = backward(objective, objective, [sample])
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        objective.commit(result.pending, next(at))

    return step


def bare() -> Callable[[], None]:
    """The passes that no implementation can do without: query forward and backward, key forward."""
    objective: Any = objectives.build(SETTINGS, Setup(IMAGE, 50_000, ResNet(), World(THREADS), 0)).train()
    objective.to(memory_format=torch.channels_last)
    first, second = batch().views

    def step() -> None:
        objective.head(objective.trunk(first)).square().sum().backward()
        with torch.no_grad():
            objective.key_head(objective.key_trunk(second))
        objective.zero_grad(set_to_none=True)

    return step


def lightlys() -> Callable[[], None]:
    """MoCo v2 composed of lightly's modules as its documentation does it."""
    from lightly.loss import NTXentLoss
    from lightly.models import ResNetGenerator
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    trunk = torch.nn.Sequential(*list(ResNetGenerator("resnet-18").children())[:-1], torch.nn.AdaptiveAvgPool2d(1))
    head = MoCoProjectionHead(512, 512, 128)
    slow, slow_head = copy.deepcopy(trunk), copy.deepcopy(head)
    deactivate_requires_grad(slow)
    deactivate_requires_grad(slow_head)
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))
    optimiser = torch.optim.SGD([*trunk.parameters(), *head.parameters()], 0.06, momentum=0.9)
    first, second = batch().views

    def step() -> None:
        update_momentum(trunk, slow, m=0.99)
        update_momentum(head, slow_head, m=0.99)
        query = head(trunk(first).flatten(1))
        with torch.no_grad():
            key = slow_head(slow(second).flatten(1))
        optimiser.zero_grad()
        criterion(query, key).backward()
        optimiser.step()

    return step


STEPS: dict[str, Callable[[], Callable[[], None]]] = {
    "lightly": lightlys, "fp32": ours, "compiled": partial(ours, compiled=True), "bare": bare,
    "bf16": partial(ours, "bf16"),
}  # fmt: skip


def serve(name: str, pipe: Connection) -> None:
    """Does a step whenever it is asked to, until nobody is there to ask."""
    torch.set_num_threads(THREADS)
    step = STEPS[name]()
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        step()
        pipe.send(None)


@cache
def steps() -> dict[str, float]:
    """All of them in one run, so that each is measured beside the others; each in a process of its own, since what
    ours sets for its process (how memory is kept) would serve the peer too."""
    names = [name for name in STEPS if name != "bf16" or torch.ops.mkldnn._is_mkldnn_bf16_supported()]
    context, work = get_context("spawn"), {}

    def ask(line: Connection) -> None:
        line.send(None)
        line.recv()

    for name in names:
        here, there = context.Pipe()
        context.Process(target=serve, args=(name, there), daemon=True).start()
        there.close()
        work[name] = partial(ask, here)
    return rounds(work, ROUNDS)


def compared(mine: str, peer: str) -> dict[str, Any] | None:
    seconds = steps()
    if mine not in seconds:
        return None
    ours, theirs = seconds[mine], seconds[peer]
    return {"ratio": theirs / ours, "ours": ours, "peer": theirs, "unit": "s/step", "n": ROUNDS}


def moco_step() -> dict[str, Any] | None:
    """ResNet-18, 32x32, fp32, channels_last, beside lightly's fp32."""
    return compared("fp32", "lightly")


def moco_step_compiled() -> dict[str, Any] | None:
    """The same with compile: true."""
    return compared("compiled", "lightly")


def moco_step_bf16() -> dict[str, Any] | None:
    """bf16 and channels_last, beside lightly's fp32, where the CPU has instructions for it."""
    return compared("bf16", "lightly")


def moco_overhead() -> dict[str, Any] | None:
    """The whole step beside its bare model passes: 0.95 is an overhead of 5 %."""
    return compared("fp32", "bare")


def watching() -> dict[str, Any]:
    """What is watched in a step, beside a hundredth of it: the gradient's norm each step, scalars and the board each
    tenth (`log_steps` as it stands by itself), with the step of `moco_step`."""
    torch.set_num_threads(THREADS)
    settings, world = Training(), World(THREADS)
    objective = objectives.build(SETTINGS, Setup(IMAGE, 50_000, ResNet(), world, 0)).train()
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    finite, at, sample = monitor.FiniteCheck("MoCo"), itertools.count(), batch()
    with TemporaryDirectory() as folder:
        board = Board(Path(folder), 0)

        def step() -> None:
            nonlocal result
            result = backward(objective, objective, [sample])

        def each() -> None:
            finite.note(next(at), result.loss, clip(objective, 0.0))

        def tenth() -> None:
            board.scalars(next(at), monitor.step_scalars(objective, result, sample, result.loss, 0.1, world))
            finite.check()

        result: Any = None
        seconds = rounds({"step": step, "each": each, "tenth": tenth}, ROUNDS)
        board.close()
    cost = seconds["each"] + seconds["tenth"] / settings.log_steps
    aim = seconds["step"] / 100
    return {"ratio": aim / cost, "ours": cost, "peer": aim, "unit": "s/step", "n": ROUNDS}


def pirl_negatives() -> dict[str, Any]:
    """Energies of 32 images against 32,000 rows each: one draw for the batch, or a gather for every sample."""
    torch.set_num_threads(1)
    bank = Bank(100_000, 128, 0)
    rows = torch.nn.functional.normalize(torch.randn(32, 128), dim=1)
    shared = torch.randperm(100_000)[:32_000]
    each = torch.randint(0, 100_000, (32, 32_000))

    def gathered() -> Tensor:
        return torch.einsum("bd,bkd->bk", rows, bank.rows[each.flatten()].view(32, 32_000, 128))

    seconds = rounds({"shared": lambda: rows @ bank.read(shared).T, "gathered": gathered}, 5 * ROUNDS)
    ratio = seconds["gathered"] / seconds["shared"]
    return {"ratio": ratio, "ours": seconds["shared"], "peer": seconds["gathered"], "unit": "s", "n": 5 * ROUNDS}
