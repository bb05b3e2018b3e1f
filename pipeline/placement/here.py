"""Stages in this process, or in this rank of a world that accelerate launch, torchrun or srun started."""

import os
from collections.abc import Callable

from pipeline import runner
from pipeline.errors import PipelineError

TOGETHER = ("pretrain", "generate")
"""Kinds that every rank works on; the others are rank 0's alone."""


def size() -> int:
    """Processes that the launcher announced."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def run_stage(job: "runner.Job", asked: Callable[[], bool]) -> dict:
    """Runs one stage and returns its metrics, the same on every rank. ``asked``: whether this process was signalled."""
    from pipeline.world import World

    if size() == 1 or job.kind in TOGETHER:
        return runner.work(job, World, asked)
    together = World(job.settings.threads)
    told = None
    if together.main:
        try:
            told = runner.work(job, alone, asked)
        except PipelineError as error:
            told = error
    told = together.share(told)
    if isinstance(told, PipelineError):
        raise told
    return told


def alone(threads: int, stop: Callable[[], bool]):
    """This process as a world of one, so that no collective waits for the ranks that do not take part."""
    from pipeline.world import World

    world = World(threads, stop)
    world.rank, world.size = 0, 1
    world.barrier = lambda: None
    return world
