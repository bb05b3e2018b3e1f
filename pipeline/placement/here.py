"""What stages in the ranks of a world that accelerate launch, torchrun or srun started have to agree on."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.errors import Stopped
from pipeline.launcher import size


def any_rank_stopping(stop: Callable[[], bool]) -> Callable[[], bool]:
    """Whether any rank was asked to stop: the same answer on all, since none may go on without the others."""
    if size() == 1:
        return stop
    from pipeline.world import World

    return World(1, stop).stopping


def from_first_rank(make: Callable[[], Any]) -> Any:
    """What ``make`` returns, or raises, on the first rank, on every rank. Others may not see yet what it reads."""
    if size() == 1:
        return make()
    from pipeline.world import World

    return World(1).from_first(make)


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
