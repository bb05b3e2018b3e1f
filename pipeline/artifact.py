"""Artifacts: what a stage makes, in a folder named by the hash of everything that could change it.

`artifact.json` is written last: a folder that has it is done, a folder that has not is gone on with. One process at a
time works on a key; its lock is a file with its owner and a heartbeat.
"""

import hashlib
import json
import os
import platform
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import files, progress
from pipeline.data.sources import open_source
from pipeline.errors import DataError, Stopped
from pipeline.settings.stage import Stage
from pipeline.settings.stages import Pack

QUARANTINE = "quarantine.json"
NAME, BEGUN, LOCK = "artifact.json", "begun.json", "lock"
LOG, STOP, FAILED = "error.log", "stop", "failed"
"""Tracebacks; what asks the stage to stop; the exit code that a rank ended with, for those it took with it."""
NUMBERS = ("torch", "torchvision", "numpy", "accelerate", "scipy", "scikit-learn", "numba", "pillow")
"""Packages whose version can change a number."""
BEAT, STALE = 10.0, 60.0
"""Seconds between heartbeats, and without one after which a lock from another host counts as left behind."""


# ---------------------------------------------------------------------------------------------------------------- keys
def key(settings: Stage, seed: int, inputs: dict[str, str], outside: dict[str, str]) -> str:
    """SHA-256 of all that can change the result -> 64 hex digits. ``inputs``: keys by stage name. ``outside``: the
    fingerprint of data from outside, which stands in the place of the settings that name it. ``seed``: the stage's, or
    else the config's."""
    elsewhere = {"seed"} | ({"source", "root"} if outside else set())
    facts = {
        "version": settings.version,
        "settings": {name: part for name, part in settings.key_parts().items() if name not in elsewhere},
        "seed": seed,
        "inputs": inputs,
        "outside": outside,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def idle_changes(settings: Stage, record: dict[str, Any]) -> str:
    """ "log_steps 20, keep 5": the housekeeping settings that are not those a finished artifact was made with."""
    before = record.get("settings", {})
    now = settings.model_dump(mode="json", include=settings.housekeeping() & before.keys())
    return ", ".join(f"{name} {value}" for name, value in now.items() if value != before[name])


def fingerprint(settings: Stage, root: Path) -> dict[str, str]:
    """What is known of a pack's source without reading its images; nothing for other stages. ``root``: where runs are
    kept, which are none.

    Raises DataError where the source cannot be packed."""
    return open_source(settings, root).fingerprint() if isinstance(settings, Pack) else {}


def identity(out: Path, digest: str) -> str:
    """An artifact as those that use it see it: shards by their own fingerprint, which the images decide, all else by
    its key; with a quarantine list, another."""
    record = read(out)
    if record is not None:
        digest = record["metrics"].get("fingerprint", digest)
    try:
        return hashlib.sha256(digest.encode() + (out / QUARANTINE).read_bytes()).hexdigest()
    except FileNotFoundError:
        return digest


def folder(root: Path, name: str, digest: str) -> Path:
    """Where a stage's artifact lies: root/<stage>-<first 8 digits of its key>."""
    return root / f"{name}-{digest[:8]}"


# ------------------------------------------------------------------------------------------------------------- records
def read(out: Path) -> dict[str, Any] | None:
    """A folder's artifact.json, or None where it is not done."""
    try:
        return json.loads((out / NAME).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{out / NAME} cannot be read ({error}): delete the folder to make it anew") from None


def done(out: Path, digest: str) -> dict[str, Any] | None:
    """The record of a finished artifact with this key, or None."""
    record = read(out)
    if record is not None and record.get("key") != digest:
        other = record.get("key")
        raise DataError(f"{out} holds another artifact (key {other}, expected {digest}): move it out of the way")
    return record


def plain(value: Any) -> Any:
    """Numbers of numpy and torch as JSON's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, without importing any of it."""
    numbers = {"python": platform.python_version()}
    for name in NUMBERS:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


def differences(recorded: dict[str, str]) -> str:
    """ "torch 2.14.0 (now 2.15.0), ..." for what has changed since a record was made; empty if nothing has."""
    now = versions()
    changed = [n for n in now | recorded if now.get(n) != recorded.get(n)]
    return ", ".join(f"{n} {recorded.get(n, 'absent')} (now {now.get(n, 'absent')})" for n in changed)


def commit() -> str | None:
    """The git commit of this code, "-dirty" where files differ from it; None outside a work tree."""
    options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        description = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", *options], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return description.stdout.strip() or None


def cpu() -> str:
    """The processor's name: bitwise claims hold on one type."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def begin(out: Path, facts: dict[str, Any] | None = None) -> str:
    """Notes when and with which versions work on a folder began, and what it is to be. Returns what has changed since
    then, if it was begun before, else an empty string."""
    try:
        return differences(json.loads((out / BEGUN).read_text())["versions"])
    except (OSError, ValueError, KeyError):
        body = {"started": time.time(), "versions": versions(), **(facts or {})}
        files.write_json(out / BEGUN, body, sort_keys=False)
        return ""


def finish(out: Path, facts: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Writes artifact.json, the last thing to be written: from then on the artifact is done."""
    begun = json.loads((out / BEGUN).read_text())
    now = time.time()
    record = facts | {
        "versions": begun["versions"],
        "git": commit(),
        "host": socket.gethostname(),
        "cpu": cpu(),
        "started": stamp(begun["started"]),
        "finished": stamp(now),
        "seconds": round(now - begun["started"], 3),
        "metrics": metrics,
    }
    progress.clear(out)
    for name in (LOG, STOP, FAILED, *(p.name for p in out.glob(f".{LOCK}.*"))):  # the last, of those that were killed
        (out / name).unlink(missing_ok=True)
    files.write_json(out / NAME, record, sort_keys=False, default=plain)
    (out / BEGUN).unlink()
    return record


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# --------------------------------------------------------------------------------------------------------------- locks
def born(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: two processes may share a number, not this too. None: no such
    process, or none that this system tells of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def alive(owner: dict[str, Any], age: float) -> bool:
    """Whether a lock's owner still works on it; ``age``: seconds since its last heartbeat."""
    if owner.get("host") != socket.gethostname():
        return age < STALE
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(int(owner["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return born(int(owner["pid"])) == owner.get("born")


def locked(out: Path) -> bool:
    """Whether a living process works on a folder."""
    lock = Lock(out)
    if not lock.path.exists():
        return False
    try:
        owner, age = lock.owner()
    except OSError:  # of a folder that cannot be written to: by this machine's clock, then
        owner, age = {}, time.time() - lock.path.stat().st_mtime
    return alive(owner, age) if owner else age < STALE


class Lock:
    """One worker a key. Waits while its owner lives, says so once, and takes over what a dead one left behind.

    The lock file names host, process and that process's start; a thread touches it while it is held. A lock left on
    this host is known by its dead process, one left on another by a minute without a heartbeat.
    """

    def __init__(self, out: Path, say: Callable[[str], None] = print, stop: Callable[[], bool] = lambda: False):
        self.path, self.say, self.stop = out / LOCK, say, stop
        self.mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": born(os.getpid()), "at": time.time_ns()}

    def __enter__(self) -> "Lock":
        waited = False
        while not self.take():
            if self.stop():
                raise Stopped(f"asked to stop while waiting for {self.path}; the same command goes on")
            if not waited:
                owner, _ = self.owner()
                self.say(f"waiting: process {owner.get('pid')} on {owner.get('host')} works on {self.path.parent}")
                waited = True
            time.sleep(0.2)
        self.released = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.thread.join()
        if self.held():
            self.path.unlink(missing_ok=True)

    def take(self) -> bool:
        """Creates the lock, or takes over a stale one; false where a living process holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return self.take_over()
        with os.fdopen(handle, "w") as file:
            json.dump(self.mine, file)
        return True

    def take_over(self) -> bool:
        """Writes our name into a stale lock. Rivals queue at the kernel's lock on the file, so that one of them does;
        the next finds a living owner."""
        import fcntl

        try:
            file = self.path.open("r+")
        except FileNotFoundError:
            return False  # released just now: the next try creates it
        with file:
            with suppress(OSError):  # a file system without such locks: what follows is then only nearly exclusive
                fcntl.flock(file, fcntl.LOCK_EX)
            owner, age = self.owner()
            try:
                same = os.stat(self.path).st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                same = False
            if not same or (alive(owner, age) if owner else age < STALE):
                return False
            self.say(f"taking over {self.path.parent}: process {owner.get('pid')} on {owner.get('host')} is gone")
            file.truncate()
            json.dump(self.mine, file)
            return True

    def owner(self) -> tuple[dict[str, Any], float]:
        """Who the lock names, {} while that is being written, and seconds since its last heartbeat."""
        now = self.path.with_name(f".{LOCK}.{os.getpid()}")
        try:
            now.touch()  # the file system's clock, which may not be this machine's
            age = now.stat().st_mtime - self.path.stat().st_mtime
            return json.loads(self.path.read_text()), age
        except FileNotFoundError:
            return {}, 0.0
        except ValueError:
            return {}, age
        finally:
            now.unlink(missing_ok=True)

    def held(self) -> bool:
        """Whether the lock is still ours: a process that slept too long may have lost it."""
        return self.owner()[0] == self.mine

    def beat(self) -> None:
        while not self.released.wait(BEAT):
            if not self.held():
                return
            os.utime(self.path)
