"""Whether the processes of a run fit together, told before it starts: the gate of every world of several ranks, and
`pipeline doctor --cluster`.

    facts(root, token)      what one process knows of itself
    faults(found)           what does not fit, one line each, the first thing to mend first
"""

import hashlib
import os
import secrets
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from pipeline import artifact, errors
from pipeline.errors import ClusterError

SKEW = 2.0
"""Seconds that clocks may differ: files' times tell a living lock from a dead one."""
SPACE = 2**30
"""Bytes that must be free where runs are written."""
SLOW = 30.0
"""Seconds that the ranks' first sum of MEGABYTES may take."""
MEGABYTES = 16


def code() -> str:
    """A digest of the package's own files: 12 hex digits."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def facts(root: Path, token: str = "") -> dict[str, Any]:
    """What this process knows of itself. ``token``: a file below ``root`` that another process has written."""
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


def faults(found: list[dict[str, Any]]) -> list[str]:
    """What of several processes' facts does not fit, in words; nothing where all is well. Their clocks were read at
    the same moment."""
    first, said = found[0], []
    for one in found[1:]:
        if one["code"] != first["code"]:
            said.append(f"{one['who']} has other code than {first['who']} ({one['code']}, {first['code']}): update it")
        other = [f"{n} {v} (not {first['versions'].get(n)})" for n, v in one["versions"].items()
                 if first["versions"].get(n) != v]  # fmt: skip
        if other:
            said.append(f"{one['who']} has {', '.join(other)}: make its environment that of {first['who']}")
        if abs(skew := one["clock"] - first["clock"]) > SKEW:
            said.append(f"the clock of {one['who']} is {skew:+.1f} s off that of {first['who']}: set it by NTP")
    for one in found:
        if not one["sees"]:
            said.append(f"{one['who']} does not see what {first['who']} wrote to {one['root']}: root= a shared folder")
        if not one["writes"]:
            said.append(f"{one['who']} cannot write to {one['root']}: root= another folder, or change its rights")
        if one["free"] < SPACE:
            free = one["free"] / 2**30
            said.append(f"{one['who']} has {free:.2g} GB free for {one['root']}, less than 1: free some")
    return said


def gate(root: Path) -> list[dict[str, Any]]:
    """Called by every rank of a world: their facts, on each of them. Raises ClusterError, with all that is wrong,
    where they do not fit, or where they reach each other too slowly."""
    import torch

    from pipeline.world import World

    world = World(1)
    token = world.share(f".preflight-{secrets.token_hex(4)}" if world.main else None)
    refused = None
    if world.main:
        try:
            root.mkdir(parents=True, exist_ok=True)
            (root / token).touch()
        except OSError as error:
            refused = errors.explained(error)
    if refused := world.share(refused):
        raise refused
    found = world.everyone(facts(root, token))
    begun = time.perf_counter()
    world.sum(torch.ones(MEGABYTES * 2**18, device=world.device))
    took = time.perf_counter() - begun
    world.barrier()
    if world.main:
        (root / token).unlink(missing_ok=True)
    said = faults(found)
    if world.share(took) > SLOW:
        said.append(f"{MEGABYTES} MB took {took:.0f} s between the ranks: check which network they use")
    if said:
        raise ClusterError("\n".join(said))
    return found
