"""Runs stages in this process, and keeps the ranks that accelerate launch, torchrun or srun started in agreement."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.errors import Stopped
from pipeline.launcher import size


def any_rank_stopping(stop: Callable[[], bool]) -> Callable[[], bool]:
    """A function that says whether any rank was asked to stop, with the same answer on all ranks, since none can
    continue without the others."""
    if size() == 1:
        return stop
    from pipeline.world import World

    return World(1, stop).stopping


def from_first_rank(make: Callable[[], Any]) -> Any:
    """Calls ``make`` on the first rank, and returns its result or raises its error on every rank: the others may not
    see files yet that it reads."""
    if size() == 1:
        return make()
    from pipeline.world import World

    return World(1).from_first(make)


def leave(code: int) -> None:
    """Leaves the process group. After success or a stop it first waits for the other ranks, which may still need this
    one; after an error it ends the process at once, since other ranks may be gone."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    if code not in (0, Stopped.code):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # destructors of a broken group could end the process by a signal instead
    with suppress(RuntimeError):
        dist.barrier()
        dist.destroy_process_group()
