"""A real Ray cluster of several raylets on this machine, ended by the processes' own numbers.

Each raylet has a temporary folder of its own: two that share one unpack, and remove, each other's job packages.
"""

import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pipeline.placement import jobs
from tests import small
from tests.machines import Network
from tests.processes import below, send, started_with, until

MARK = "PIPELINE_TEST_CLUSTER"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Raylets:
    """``nodes`` raylets of ``cpus`` CPUs each; the first is the head, with the dashboard that jobs are sent to.
    ``apart``: each on a machine of its own, where we may make some."""

    def __init__(self, nodes: int = 2, cpus: int = 2, apart: bool = False):
        self.cpus = cpus
        self.folder = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))  # short: unix sockets allow 100 characters
        self.mark = secrets.token_hex(8)
        self.port, self.dashboard = free_port(), free_port()
        self.network = Network(self.folder) if apart and os.geteuid() == 0 else None
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
        self.env = kept | {
            MARK: self.mark,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_worker_niceness": "0",  # else 15: slow beside other tests
            "RAY_prestart_worker_first_driver": "0",  # a job's workers have an environment of their own
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_health_check_period_ms": "1000",  # a lost machine is missed after seconds
            "RAY_health_check_failure_threshold": "3",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
            "PIPELINE_GROW_S": "1",
            "OMP_NUM_THREADS": "1",
            "PIPELINE_ROOT": str(self.folder),
        }
        self.nodes: list[subprocess.Popen] = []
        try:
            self.head()
            for _ in range(nodes - 1):
                self.join()
        except BaseException:
            self.close()
            raise

    def head(self) -> None:
        host = self.network.address(len(self.nodes)) if self.network else "127.0.0.1"
        self.url = f"http://{host}:{self.dashboard}"
        ports = f"--port={self.port} --dashboard-port={self.dashboard} --ray-client-server-port={free_port()}"
        self.start(f"--head --dashboard-host={host} --include-dashboard=true {ports}")
        log = self.log(len(self.nodes) - 1)
        until(lambda: "--address='" in log.read_text(), 60, log.read_text)  # it is told after that all has started
        self.address = log.read_text().split("--address='")[1].split("'")[0]  # for a loopback, the machine's own

    def join(self) -> None:
        self.start(f"--address={self.address}")

    def start(self, options: str, again: int = 2) -> None:
        index = len(self.nodes)
        own = f"--temp-dir={self.folder}/{index} --dashboard-agent-listen-port={free_port()} --num-cpus={self.cpus}"
        words = f"ray start {options} {own} --object-store-memory=100000000 --disable-usage-stats --block"
        words += " --no-monitor --include-log-monitor=false"  # a second or two each, of what nothing here asks
        machine: list[str] = []
        if self.network:
            machine, words = self.network.machine(index), f"{words} --node-ip-address={self.network.address(index)}"
        log = self.log(index)
        with log.open("w") as file:
            command = [*machine, *words.split()]
            node = subprocess.Popen(
                command, env=self.env, cwd=self.folder, stdout=file, stderr=file, start_new_session=True
            )
        self.nodes.append(node)
        until(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None, 400, log.read_text)
        if node.poll() is not None:  # a raylet gives up where its agents take 15 s to start, as on a busy machine
            assert again, log.read_text()
            self.nodes.pop()
            self.start(options, again - 1)

    def log(self, index: int) -> Path:
        return self.folder / f"{index}.log"

    def kill(self, index: int) -> None:
        """A machine lost: the raylet and all below it, at once."""
        send(below(self.nodes[index].pid), signal.SIGKILL)
        self.nodes[index].wait()

    def drain(self, index: int) -> None:
        """Announces, as a cloud does of a spot machine, that a machine will be gone in ten minutes."""
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in below(self.nodes[index].pid)]
        (node, *_) = [found[1] for line in lines if (found := re.search(r"--node-id=(\w+)", line))]
        reason = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot --deadline-remaining-seconds 600"
        words = f"ray drain-node --address={self.address} --node-id={node} {reason}"
        subprocess.run(words.split(), env=self.env, check=True, capture_output=True)

    def find(self, words: str) -> list[int]:
        """Processes of this cluster whose command line begins with ``words``."""
        return [pid for pid, line in started_with(**{MARK: self.mark}).items() if line.startswith(words)]

    def client(self):
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"})

    def close(self) -> None:
        for node in self.nodes:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        while left := started_with(**{MARK: self.mark}):  # the watchers of jobs start others while we look
            left.pop(os.getpid(), None)
            send(left, signal.SIGKILL)
            for node in self.nodes:
                node.poll()
            if not left:
                break
            time.sleep(0.05)
        if self.network:
            self.network.close()
        subprocess.run(["rm", "-rf", str(self.folder)], check=False)


def submit(cluster: Raylets, config: Path, *words: str) -> str:
    """As `ray job submit --working-dir . -- python jobs/run.py CONFIG ...`, with a longer grace and a variable that
    the program would give its workers, too."""
    given = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "OMP_NUM_THREADS": "1"}
    return cluster.client().submit_job(
        entrypoint=f"python jobs/run.py {config} {shlex.join(words)}",
        runtime_env={"working_dir": str(small.ROOT), "env_vars": given},
    )


def ended(cluster: Raylets, job: str) -> tuple[int, str, object]:
    """A job's exit code as `pipeline submit` tells it, its log, and what the SDK says of it."""
    client = cluster.client()
    until(lambda: client.get_job_status(job).is_terminal(), 800, lambda: client.get_job_logs(job))
    told, log = client.get_job_info(job), client.get_job_logs(job)
    return jobs.exit_code(told, log), log, told
