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
from pipeline.errors import ClusterError, ConfigError

if any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by ray when it is imported

GRACE = 120
"""Seconds that a stopped job may take to save before it is killed; Ray's own default is 3."""
PATIENCE = 60
"""Seconds that a cluster which is being watched may not answer."""
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
def reached(address: str) -> Iterator[None]:
    """Whatever the cluster's address answers wrongly, in one line."""
    from ray.exceptions import RayError

    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(unreachable(address, error)) from None


def unreachable(address: str, error: Exception) -> str:
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    if re.search(r"\b(401|403)\b|[Uu]nauthori|[Aa]uthenticat", str(error)):
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return (
            f"{address} refuses us (RAY_AUTH_MODE is {mode}): give RAY_AUTH_MODE=token and, in RAY_AUTH_TOKEN, the "
            f"token that the cluster was started with"
        )
    return f"{address} does not answer as a Ray dashboard ({told}): give its address, such as http://head:8265"


def name(config: str, cfg: Config) -> str:
    """What a run of this config is called: the same for the same stages, seed and root."""
    facts = json.dumps(cfg.model_dump(mode="json"), sort_keys=True).encode()
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", Path(config).stem)
    return f"{stem}-{hashlib.sha256(facts).hexdigest()[:8]}"


def running(client: Any, called: str) -> tuple[str | None, int]:
    """The job of a run that has not ended, if there is one, and how many there have been."""
    ours = [j for j in client.list_jobs() if (j.submission_id or "").rpartition("-")[0] == called]
    return next((j.submission_id for j in ours if not j.status.is_terminal()), None), len(ours)


def submit(client: Any, called: str, attempt: int, words: list[str], root: Path, python: str) -> str:
    """Uploads this folder's code and starts ``jobs/run.py WORDS`` with it; returns the job's id.

    The words reach the cluster's shell quoted, one by one.
    """
    if not Path("jobs/run.py").is_file():
        raise ConfigError(f"{Path.cwd()} has no jobs/run.py: run this from the project's folder, which is uploaded")
    return client.submit_job(
        entrypoint=f"{python} jobs/run.py {shlex.join(words)}",
        submission_id=f"{called}-{attempt}",
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
    said, patience = 0, time.monotonic() + PATIENCE
    while True:
        try:
            told = client.get_job_info(job)
            over = told.status.is_terminal()
            log = client.get_job_logs(job) if over else asyncio.run(tail(client, job, said, say))
        except (OSError, RuntimeError):
            if time.monotonic() > patience:
                raise
            time.sleep(1)
            continue
        if over:
            say(log[said:])
            return code(told, log)
        said, patience = max(said, len(log)), time.monotonic() + PATIENCE
        time.sleep(0.2)


async def tail(client: Any, job: str, said: int, say: Callable[[str], None]) -> str:
    """The log from its beginning, as far as the connection lasts; what comes after its first ``said`` letters is
    said."""
    log = ""
    try:
        async for part in client.tail_job_logs(job):
            log += part
            if len(log) > said:
                say(log[said:])
                said = len(log)
    except (TimeoutError, OSError, RuntimeError):
        pass
    return log


def code(told: Any, log: str) -> int:
    """The exit code of a job that has ended."""
    if told.status == "SUCCEEDED":
        return 0
    if told.driver_exit_code is not None:
        return told.driver_exit_code if told.driver_exit_code > 0 else 128 - told.driver_exit_code
    if told.status == "STOPPED":
        last = re.search(r"^exit code (\d+)\s*\Z", log, re.MULTILINE)
        return int(last[1]) if last else KILLED
    raise ClusterError(f"the cluster lost the job: {(told.message or 'no word').splitlines()[0]}; submit it again")


def stop(client: Any, job: str) -> int:
    """Asks a job to save and leave, waits until it has, and returns its exit code."""
    client.stop_job(job)
    return follow(client, job, lambda _: None)
