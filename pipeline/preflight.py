"""Checks before a run on several ranks, and in `pipeline doctor --cluster`, that the processes have the same code and
versions, agree on the time, and share the folder of runs.

    facts(root, token)      what one process reports of itself
    faults(processes)       one line for each mismatch, the most important first
    check(root)             both, called by every rank
"""

import hashlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifact
from pipeline.errors import ClusterError

if TYPE_CHECKING:
    from pipeline.world import World

SKEW = 2.0
"""Seconds that clocks may differ, since a lock's file time shows whether it is stale."""
SPACE = 2**30
"""Bytes that must be free where runs are written."""
SLOW = 30.0
"""Seconds that the ranks' first all-reduce, of MEGABYTES, may take."""
MEGABYTES = 16

Facts = dict[str, Any]


def code() -> str:
    """A digest of the package's own files: 12 hex digits."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def facts(root: Path, token: str = "") -> Facts:
    """What this process reports of itself: code, versions, clock, devices, and its access to ``root``. ``token``: the
    name of a file that another process has written there, to see whether the folder is shared."""
    above = next(p for p in (root, *root.parents) if p.is_dir())
    rank, host = os.environ.get("RANK"), socket.gethostname()
    return {
        "who": host if rank is None else f"rank {rank} on {host}",
        "code": code(),
        "versions": artifact.versions(),
        "sees": not token or (root / token).exists(),
        "writes": os.access(above, os.W_OK),
        "free": shutil.disk_usage(above).free,
        "clock": time.time(),
        "root": str(root),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES") or f"{len(os.sched_getaffinity(0))} CPU",
    }


def faults(processes: list[Facts]) -> list[str]:
    """One line for each mismatch between processes, whose clocks were read at the same moment."""
    first = processes[0]
    texts = [text for process in processes[1:] for text in differences(process, first)]
    return texts + [text for process in processes for text in shortages(process, first)]


def differences(process: Facts, first: Facts) -> Iterator[str]:
    """Lines about what a process has otherwise than the first one."""
    who = process["who"]
    if process["code"] != first["code"]:
        yield f"{who} has other code than {first['who']} ({process['code']}, {first['code']}): update it"
    versions = first["versions"]
    others = [f"{n} {v} (not {versions.get(n)})" for n, v in process["versions"].items() if versions.get(n) != v]
    if others:
        yield f"{who} has {', '.join(others)}: make its environment that of {first['who']}"
    if abs(skew := process["clock"] - first["clock"]) > SKEW:
        yield f"the clock of {who} is {skew:+.1f} s off that of {first['who']}: set it by NTP"


def shortages(process: Facts, first: Facts) -> Iterator[str]:
    """Lines about what a process lacks in the folder of runs: sight of it, the right to write, or space."""
    who, root, free = process["who"], process["root"], process["free"]
    if not process["sees"]:
        yield f"{who} does not see what {first['who']} wrote to {root}: root= a shared folder"
    if not process["writes"]:
        yield f"{who} cannot write to {root}: root= another folder, or change its rights"
    if free < SPACE:
        yield f"{who} has {free / 2**30:.2g} GB free for {root}, less than 1: free some"


def check(root: Path) -> list[Facts]:
    """Returns the facts of all ranks, on every rank; all ranks call it together. Raises ClusterError, with every
    mismatch, where they do not fit together or the network between them is too slow."""
    from pipeline.world import World

    world = World(1)
    token = world.from_first(lambda: write_token(root))
    processes = world.everyone(facts(root, token))
    seconds = world.share(sum_seconds(world))
    world.barrier()
    if world.main:
        (root / token).unlink(missing_ok=True)
    texts = faults(processes)
    if seconds > SLOW:
        texts.append(f"{MEGABYTES} MB took {seconds:.0f} s between the ranks: check which network they use")
    if texts:
        raise ClusterError("\n".join(texts))
    return processes


def write_token(root: Path) -> str:
    """Creates a file in ``root`` for other processes to look for, and returns its name."""
    token = f".preflight-{secrets.token_hex(4)}"
    root.mkdir(parents=True, exist_ok=True)
    (root / token).touch()
    return token


def sum_seconds(world: "World") -> float:
    """Seconds that an all-reduce of MEGABYTES over the ranks takes."""
    import torch

    start = time.perf_counter()
    world.sum(torch.ones(MEGABYTES * 2**18, device=world.device))
    return time.perf_counter() - start
