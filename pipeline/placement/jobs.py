"""Ray Jobs: a config sent to a cluster by its dashboard's address, watched, and stopped.

Beside ray.py the only file that imports ray, and only its client. The exit code is the driver's own: `ray job submit`
answers 1 whatever the driver said, so it is read through the SDK; of a stopped job from the last line of its log.
"""

import asyncio
import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import ClusterError, ConfigError, first_line

if any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by ray when it is imported

GRACE = 120
"""Seconds that a stopped job may take to save before it is killed; Ray's own default is 3."""
SILENCE = 60
"""Seconds without an answer after which a cluster counts as gone."""
KILLED = 137
LEFT_OUT = [".git", ".venv", "/data", "/runs", "/tests", "/benchmarks", "uv.lock"]
"""Of the project's folder, beside what .gitignore and .rayignore name."""


def connect(address: str) -> Any:
    """A client of the cluster whose dashboard has this address, such as http://head:8265.

    A cluster that asks for a token gets the one in RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH.
    """
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


@contextmanager
def one_line(address: str) -> Iterator[None]:
    """Turns whatever goes wrong with the cluster at an address into one line."""
    from ray.exceptions import RayError

    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(unreachable(address, error)) from None


def unreachable(address: str, error: Exception) -> str:
    if re.search(r"\b(401|403)\b|[Uu]nauthori|[Aa]uthenticat", str(error)):
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return (
            f"{address} refuses us (RAY_AUTH_MODE is {mode}): give RAY_AUTH_MODE=token and, in RAY_AUTH_TOKEN, the "
            f"token that the cluster was started with"
        )
    return f"{address} does not answer as a Ray dashboard ({first_line(error)}): give its address, such as http://head:8265"


def run_name(config: str, cfg: Config) -> str:
    """The name of a run of this config: the same for the same stages, seed and root."""
    facts = json.dumps(cfg.model_dump(mode="json"), sort_keys=True).encode()
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", Path(config).stem)
    return f"{stem}-{hashlib.sha256(facts).hexdigest()[:8]}"


def running(client: Any, run: str) -> tuple[str | None, int]:
    """The job of a run that has not ended, if there is one, and how many there have been."""
    ours = [j for j in client.list_jobs() if (j.submission_id or "").rpartition("-")[0] == run]
    return next((j.submission_id for j in ours if not j.status.is_terminal()), None), len(ours)


def submit(client: Any, run: str, attempt: int, words: list[str], root: Path, python: str) -> str:
    """Uploads this folder's code and starts ``jobs/run.py WORDS`` with it; returns the job's id.

    The words reach the cluster's shell quoted, one by one.
    """
    if not Path("jobs/run.py").is_file():
        raise ConfigError(f"{Path.cwd()} has no jobs/run.py: run this from the project's folder, which is uploaded")
    return client.submit_job(
        entrypoint=f"{python} jobs/run.py {shlex.join(words)}",
        submission_id=f"{run}-{attempt}",
        runtime_env={
            "working_dir": ".",
            "excludes": LEFT_OUT,
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE), "OMP_NUM_THREADS": "1"},
        },
        metadata={"root": str(root), "tensorboard": f"tensorboard --logdir {shlex.quote(str(root))}"},
    )


def follow(client: Any, job: str, say: Callable[[str], None]) -> int:
    """Says a job's log as it comes, until the job has ended; returns its exit code. A dropped connection is taken up
    again where it broke."""
    position, deadline = 0, time.monotonic() + SILENCE
    while True:
        try:
            info = client.get_job_info(job)
            over = info.status.is_terminal()
            log = client.get_job_logs(job) if over else asyncio.run(tail(client, job, position, say))
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
            continue
        if over:
            say(log[position:])
            return exit_code(info, log)
        position, deadline = max(position, len(log)), time.monotonic() + SILENCE
        time.sleep(0.2)


async def tail(client: Any, job: str, position: int, say: Callable[[str], None]) -> str:
    """The log from its beginning, as far as the connection lasts; what comes after ``position`` is said."""
    log = ""
    try:
        async for part in client.tail_job_logs(job):
            log += part
            if len(log) > position:
                say(log[position:])
                position = len(log)
    except (TimeoutError, OSError, RuntimeError):
        pass
    return log


def exit_code(info: Any, log: str) -> int:
    """The exit code of a job that has ended."""
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is not None:
        return info.driver_exit_code if info.driver_exit_code > 0 else 128 - info.driver_exit_code
    if info.status == "STOPPED":
        last = re.search(r"^exit code (\d+)\s*\Z", log, re.MULTILINE)
        return int(last[1]) if last else KILLED
    raise ClusterError(f"the cluster lost the job: {(info.message or 'no word').splitlines()[0]}; submit it again")


def stop(client: Any, job: str) -> int:
    """Asks a job to save and leave, waits until it has, and returns its exit code."""
    client.stop_job(job)
    return follow(client, job, lambda _: None)
