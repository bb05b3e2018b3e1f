"""The ranks that a launcher (torchrun, accelerate launch, srun) announced: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*.

Images, notebooks and shells inside a scheduler's job leave some of them behind: what is no whole world is no world.
"""

import math
import os
import sys

from pipeline.errors import ConfigError
from pipeline.lines import say

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OTHERS = ("LOCAL_WORLD_SIZE", "RAY_ADDRESS", "PIPELINE_GATE_S", "PIPELINE_NODES", "PIPELINE_GROW_S")
"""What else is read of the environment: empty is as if it were not set."""
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Of mpirun, which Accelerate would follow."""


def size() -> int:
    """Processes that the launcher announced."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    return int(os.environ.get("RANK") or 0)


def number(name: str, default: float) -> float:
    """A variable that is a number. Raises ConfigError where it is none."""
    value = os.environ.get(name) or str(default)
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ConfigError(f"{name}={value}: expected a number from 0 on, or leave it unset for {default:g}")
    return found


def adopt() -> None:
    """Leaves in the environment a whole world of several ranks, or nothing of one; says in a line what it takes away.

    Raises ConfigError where several ranks are announced and something of them is missing or wrong.
    """
    env = os.environ
    for name in OTHERS:
        if not env.get(name, "").strip():
            env.pop(name, None)
    found = {name: env[name].strip() for name in NAMES if env.get(name, "").strip()}
    count = whole("WORLD_SIZE", found.get("WORLD_SIZE", "1"), 1)
    if count > 1:
        if absent := [name for name in NAMES if name not in found]:
            raise ConfigError(
                f"WORLD_SIZE={count}, but {' and '.join(absent)} not set: start the ranks by torchrun, accelerate "
                f"launch or srun, or unset WORLD_SIZE for one process"
            )
        for name in ("RANK", "LOCAL_RANK"):
            if whole(name, found[name], 0) >= count:
                raise ConfigError(f"{name}={found[name]}, but WORLD_SIZE={count}: expected less")
        whole("MASTER_PORT", found["MASTER_PORT"], 0)
        return
    stale = {name: found[name] for name in ("RANK", "LOCAL_RANK") if name in found and "WORLD_SIZE" not in found}
    stale |= {name: env[name] for name in MPI if env.get(name, "1").strip() not in ("", "1")}
    several = "ACCELERATE_MIXED_PRECISION" in env and "MASTER_PORT" in found and "WORLD_SIZE" not in found
    for name in (*NAMES, *MPI, "LOCAL_WORLD_SIZE"):
        env.pop(name, None)
    if several:  # its --cpu starts one, whatever --num_processes says, and leaves an address without ranks
        note = (
            "accelerate launch started one process where several were asked: it starts them with --multi_gpu in the "
            "place of --cpu, on CPUs too; or use torchrun --nproc-per-node"
        )
        say(note, event="warning", file=sys.stderr)
    elif stale:
        left = " ".join(f"{name}={value}" for name, value in stale.items())
        say(f"{left} without WORLD_SIZE is left over from a launcher: this is one process", event="warning",
            file=sys.stderr)  # fmt: skip


def whole(name: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise ConfigError(f"{name}={value}: expected a whole number from {least} on, as a launcher sets it")
    return int(value)
