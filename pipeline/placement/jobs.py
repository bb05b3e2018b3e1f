"""Submits a config as a Ray job by the address of the cluster's dashboard, follows it, and stops it.

Besides ray.py only this file imports ray, and only its job client. The exit code is the driver's own, read through the
SDK, since `ray job submit` returns 1 for any failure; of a stopped job it is read from the last line of the log.
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
from pipeline.settings import imports

TOKEN = Path("~/.ray/auth_token").expanduser()
"""Where Ray keeps a machine's token; if there is one, a cluster that is started there asks for it."""
if TOKEN.is_file() or any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by ray when it is imported

GRACE = 120
"""Seconds that a stopped job has to save before it is killed; Ray's default is 3."""
SILENCE = 60
"""Seconds without an answer after which the cluster counts as lost."""
KILLED = 137
LEFT_OUT = [".git", ".venv", "/data", "/runs", "/tests", "/benchmarks", "uv.lock"]
"""Parts of the project's folder that are not uploaded, in addition to .gitignore and .rayignore."""


def connect(address: str) -> Any:
    """A job client of the cluster whose dashboard has this address, such as http://head:8265.

    If the cluster requires a token, it is taken from RAY_AUTH_TOKEN, from the file RAY_AUTH_TOKEN_PATH, or from TOKEN.
    Raises ClusterError where the cluster does not answer.
    """
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


@contextmanager
def one_line(address: str) -> Iterator[None]:
    """Turns errors of the connection to the cluster at an address into a ClusterError of one line."""
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
    """The name of a run of this config, which is the same for the same stages, seed, root and files of the user's."""
    hashes = [file.sha256 for stage in cfg.stages.values() for file in imports.used(stage)]
    facts = json.dumps([cfg.model_dump(mode="json"), hashes], sort_keys=True).encode()
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", Path(config).stem)
    return f"{stem}-{hashlib.sha256(facts).hexdigest()[:8]}"


def running(client: Any, run: str) -> tuple[str | None, int]:
    """The job of this run that has not ended, or None, and the number of jobs that this run has had."""
    ours = [j for j in client.list_jobs() if (j.submission_id or "").rpartition("-")[0] == run]
    return next((j.submission_id for j in ours if not j.status.is_terminal()), None), len(ours)


def submit(client: Any, run: str, attempt: int, words: list[str], root: Path, python: str) -> str:
    """Uploads the code in the working directory, starts ``jobs/run.py WORDS`` on the cluster, and returns the job's
    id. Each word is quoted for the cluster's shell. Raises ConfigError where the directory has no jobs/run.py.
    """
    if not Path("jobs/run.py").is_file():
        raise ConfigError(f"{Path.cwd()} has no jobs/run.py: run this from the project's folder, which is uploaded")
    return client.submit_job(
        entrypoint=f"{python} jobs/run.py {shlex.join(words)}",
        submission_id=f"{run}-{attempt}",
        runtime_env={
            "working_dir": ".",
            "excludes": LEFT_OUT,
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE)},
        },
        metadata={"root": str(root), "tensorboard": f"tensorboard --logdir {shlex.quote(str(root))}"},
    )


def follow(client: Any, job: str, say: Callable[[str], None]) -> int:
    """Passes a job's log to ``say`` until the job has ended, and returns its exit code. A lost connection is opened
    again and the log continued at the same position."""
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
    """Reads the log from its beginning until the connection ends, and passes what follows ``position`` to ``say``.
    Returns the log."""
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
    """The exit code of a job that has ended. Raises ClusterError where the cluster lost the job."""
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is not None:
        return info.driver_exit_code if info.driver_exit_code > 0 else 128 - info.driver_exit_code
    if info.status == "STOPPED":
        last = re.search(r"^exit code (\d+)\s*\Z", log, re.MULTILINE)
        return int(last[1]) if last else KILLED
    raise ClusterError(f"the cluster lost the job: {(info.message or 'no word').splitlines()[0]}; submit it again")


def stop(client: Any, job: str) -> int:
    """Asks a job to save and stop, waits until it has ended, and returns its exit code."""
    client.stop_job(job)
    return follow(client, job, lambda _: None)
