"""The environment variables by which a launcher (torchrun, accelerate launch, srun) announces ranks: RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_*; and those of this package, PIPELINE_*.

Container images, notebooks and shells inside a job may have only some of the launcher's variables: unless WORLD_SIZE
announces several ranks, they are removed.
"""

import math
import os
import sys

from pipeline.errors import ConfigError
from pipeline.lines import say

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OURS = {
    "PIPELINE_LOG": "json: every line is a JSON object, as with --json",
    "PIPELINE_REPORT": "no: a run draws no report at its end (`pipeline report` does, whatever this is)",
    "PIPELINE_ROOT": "folder below which a job's relative root lies (default: that of submission; Ray jobs: the home)",
    "PIPELINE_JOIN_S": "seconds that ranks and Ray nodes may take to come together (default: 300)",
    "PIPELINE_HEAD_IP": "address of a Slurm job's first node, where its first one is not reached by the others",
    "PIPELINE_NODES": "Ray nodes that must be alive before a run begins (default: 1)",
    "PIPELINE_GROW_S": "seconds between looks for room for one more of min_workers to workers (default: 60)",
}
"""Every variable of this package, with its meaning."""
OTHERS = ("LOCAL_WORLD_SIZE", "RAY_ADDRESS", *OURS)
"""Further variables that are read; an empty one counts as not set."""
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Set by mpirun; Accelerate would follow them."""


def size() -> int:
    """The number of processes that the launcher announced; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    return int(os.environ.get("RANK") or 0)


def number(name: str, default: float) -> float:
    """A variable's value as a number, or ``default`` if it is not set. Raises ConfigError where it is no number."""
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name}={text}: expected a number from 0 on, or leave it unset for {default:g}")
    return value


def check_environment() -> None:
    """Removes the variables of a launcher that did not start several ranks, and prints a line about it.

    Raises ConfigError where several ranks are announced and a variable is missing or wrong.
    """
    for name in OTHERS:
        if not os.environ.get(name, "").strip():
            os.environ.pop(name, None)
    world = {name: os.environ[name].strip() for name in NAMES if os.environ.get(name, "").strip()}
    count = whole_number("WORLD_SIZE", world.get("WORLD_SIZE", "1"), 1)
    if count > 1:
        check_world(world, count)
        return
    if text := leftovers(world):
        say(text, event="warning", file=sys.stderr)
    for name in (*NAMES, *MPI, "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def check_world(world: dict[str, str], count: int) -> None:
    if absent := [name for name in NAMES if name not in world]:
        raise ConfigError(
            f"WORLD_SIZE={count}, but {' and '.join(absent)} not set: start the ranks by torchrun, accelerate "
            f"launch or srun, or unset WORLD_SIZE for one process"
        )
    for name in ("RANK", "LOCAL_RANK"):
        if whole_number(name, world[name], 0) >= count:
            raise ConfigError(f"{name}={world[name]}, but WORLD_SIZE={count}: expected less")
    whole_number("MASTER_PORT", world["MASTER_PORT"], 0)


def leftovers(world: dict[str, str]) -> str:
    """The line about variables of a launcher that did not start several ranks; empty where there are none."""
    env = os.environ
    if "WORLD_SIZE" not in world and "ACCELERATE_MIXED_PRECISION" in env and "MASTER_PORT" in world:
        # accelerate launch --cpu starts one process, whatever --num_processes says, and sets an address without ranks.
        return (
            "accelerate launch started one process where several were asked: it starts them with --multi_gpu in the "
            "place of --cpu, on CPUs too; or use torchrun --nproc-per-node"
        )
    stale = {name: world[name] for name in ("RANK", "LOCAL_RANK") if name in world and "WORLD_SIZE" not in world}
    stale |= {name: env[name] for name in MPI if env.get(name, "1").strip() not in ("", "1")}
    if not stale:
        return ""
    values = " ".join(f"{name}={value}" for name, value in stale.items())
    return f"{values} without WORLD_SIZE is left over from a launcher: this is one process"


def whole_number(name: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise ConfigError(f"{name}={value}: expected a whole number from {least} on, as a launcher sets it")
    return int(value)
