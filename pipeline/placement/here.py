"""Stages in this process, or in this rank of a world that accelerate launch, torchrun or srun started."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline import runner
from pipeline.errors import PipelineError, Stopped
from pipeline.launcher import size
from pipeline.runner import Job


def together(stop: Callable[[], bool]) -> Callable[[], bool]:
    """Whether any rank was asked to stop: the same answer on all, since none may go on without the others."""
    if size() == 1:
        return stop
    from pipeline.world import World

    return World(1, stop).stopping


def agreed(make: Callable[[], Any]) -> Any:
    """What the first rank makes, on every rank: files that were written just now may not be seen by all yet."""
    if size() == 1:
        return make()
    from pipeline.world import World

    world, made = World(1), None
    if world.main:
        try:
            made = make()
        except PipelineError as error:
            made = error
    made = world.share(made)
    if isinstance(made, PipelineError):
        raise made
    return made


def leave(code: int) -> None:
    """Ends this rank's part in a launcher's world: with the others where they end too, so that none takes down what
    another still speaks to; without waiting where one failed, since it may be gone."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    if code not in (0, Stopped.code):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # destructors of a group in disorder end the process by a signal, and with another code
    with suppress(RuntimeError):
        dist.barrier()
        dist.destroy_process_group()


def run_stage(job: Job, asked: Callable[[], bool]) -> Any:
    """Runs one stage and returns its metrics, the same on every rank; ``asked``: whether this one was signalled."""
    if size() == 1 or job.settings.shared:
        return runner.work(job, asked=asked)
    from pipeline.world import World

    world, told = World(1), None
    if world.main:
        try:
            told = runner.work(job, alone, asked)
        except Exception as error:
            told = runner.explained(job, error)
    told = world.share(told)
    if isinstance(told, PipelineError):
        raise told
    return told


def alone(threads: int, stop: Callable[[], bool]) -> Any:
    """This process as a world of one, so that no collective waits for ranks that do not take part."""
    from pipeline.world import World

    world: Any = World(threads, stop)
    world.rank, world.size, world.barrier = 0, 1, lambda: None
    return world
