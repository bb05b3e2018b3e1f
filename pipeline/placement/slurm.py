"""Ranks that srun started, and the check before a Slurm job requeues itself.

    export_ranks()                              SLURM_* -> RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
    python -m pipeline.placement.slurm FOLDER   exit 0: requeue; 70: the job no longer makes progress
"""

import json
import os
import re
import sys
from pathlib import Path

from pipeline import errors
from pipeline.errors import NoProgressError

IDLE = 2
"""Attempts in a row that may end without progress, since a node may be taken away before the first step."""
ATTEMPTS = 100


def export_ranks() -> None:
    """Sets the variables of torchrun (RANK, ...) from Slurm's, in the tasks of an srun step of several.

    It changes nothing where another launcher has set them, in a step of one task, and in the batch shell (which has
    SLURM_PROCID too, but no step).
    """
    env = os.environ
    size = int(env.get("SLURM_STEP_NUM_TASKS") or 1)
    if env.get("RANK") or size == 1:
        return
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], str(size)
    local = int(env["SLURM_LOCALID"])
    devices = [d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    # With --gpus-per-task a task sees only its own GPUs.
    env["LOCAL_RANK"] = str(local % len(devices) if devices else local)
    one_node = env.get("SLURM_STEP_NUM_NODES", "1") == "1"
    env.setdefault("MASTER_ADDR", "127.0.0.1" if one_node else first_host(env["SLURM_STEP_NODELIST"]))
    env.setdefault("MASTER_PORT", str(port(int(env["SLURM_JOB_ID"]))))


def first_host(nodes: str) -> str:
    """The first name in a Slurm node list: "gpu[07-09,12],login1" -> "gpu07"."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).split(",")[0]


def port(job: int) -> int:
    """A port that depends on the job's number, below the kernel's ephemeral ports."""
    return 20000 + job % 10000


def progress(root: Path) -> list[str]:
    """The finished artifacts and each training's newest checkpoint in a folder of runs."""
    done = [str(p.relative_to(root)) for p in root.glob("*/artifact.json")]
    return sorted(done + [str(max(p.glob("[0-9]*"), default=p).relative_to(root)) for p in root.glob("*/checkpoints")])


def guard_requeue(root: Path, job: str) -> None:
    """Records the progress of a job's attempt. Raises NoProgressError where IDLE attempts in a row made none, or where
    this was the last of ATTEMPTS."""
    note = root / f".slurm-{job}.json"
    before = json.loads(note.read_text()) if note.exists() else {"progress": None, "idle": 0, "attempts": 0}
    now = progress(root)
    idle = before["idle"] + 1 if now == before["progress"] else 0
    attempts = before["attempts"] + 1
    root.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"progress": now, "idle": idle, "attempts": attempts}))
    if idle >= IDLE or attempts >= ATTEMPTS:
        newest = ", ".join(now) or "nothing"
        raise NoProgressError(
            f"job {job} is not requeued: {attempts} attempts, the last {idle + 1} of which ended at the same place "
            f"({newest} in {root}); give it more time (--time, or a longer lead in --signal), then submit it again"
        )


if __name__ == "__main__":
    try:
        guard_requeue(Path(sys.argv[1]), os.environ["SLURM_JOB_ID"])
    except Exception as error:
        line = errors.explain(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        sys.exit(line.code)
