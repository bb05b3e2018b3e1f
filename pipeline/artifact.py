"""Artifacts: the results of stages, each in a folder named by its key, a hash of everything that could change it.

`artifact.json` is written last: a folder with it is finished, one without it is resumed. One process at a time works
on a key; it holds a lock file that names it and has a heartbeat.
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
from pipeline.settings.nets import stage_named, trunk_of
from pipeline.settings.stage import Stage
from pipeline.settings.stages import Pack

QUARANTINE = "quarantine.json"
NAME, BEGUN, LOCK = "artifact.json", "begun.json", "lock"
LOG, STOP, FAILED = "error.log", "stop", "failed"
"""Files in a stage's folder: tracebacks; a request to stop; the exit code of a failed rank, for the other ranks."""
NUMBERS = ("torch", "torchvision", "numpy", "accelerate", "scipy", "scikit-learn", "numba", "pillow")
"""Packages whose version can change a number."""
BEAT, STALE = 10.0, 60.0
"""Seconds between heartbeats, and seconds without one after which another host's lock counts as stale."""


# ---------------------------------------------------------------------------------------------------------------- keys
def key(settings: Stage, seed: int, inputs: dict[str, str], outside: dict[str, str]) -> str:
    """SHA-256 of everything that can change the result -> 64 hex digits. ``seed``: the stage's, or the config's where
    it has none. ``inputs``: the identity of each stage that it reads. ``outside``: the fingerprint of what lies
    outside (`fingerprint`), which replaces the settings that name it."""
    elsewhere = {"seed"} | ({"source", "root"} if isinstance(settings, Pack) and outside else set())
    parts = {name: part for name, part in settings.key_parts().items() if name not in elsewhere}
    facts = {
        "version": settings.version,
        "settings": parts if isinstance(settings, Pack) else by_content(parts, outside),
        "seed": seed,
        "inputs": inputs,
        "outside": outside,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def by_content(parts: dict[str, Any], outside: dict[str, str]) -> dict[str, Any]:
    """The parts with, at each dotted name of ``outside``, the digest in the place of the path."""
    for name, digest in outside.items():
        first, _, rest = name.partition(".")
        parts = parts | {first: by_content(parts[first], {rest: digest}) if rest else digest}
    return parts


def idle_changes(settings: Stage, record: dict[str, Any]) -> str:
    """ "log_steps 20, keep 5": the housekeeping settings that differ from those of a finished artifact's record."""
    before = record.get("settings", {})
    now = settings.model_dump(mode="json", include=settings.housekeeping() & before.keys())
    return ", ".join(f"{name} {value}" for name, value in now.items() if value != before[name])


def fingerprint(settings: Stage, root: Path) -> dict[str, str]:
    """Identifies what a stage takes from outside of the runs: the data of a pack's source, without reading its images,
    and the file of a net's first weights. Empty for other stages. ``root``: the folder of runs, whose images are not
    packed. Raises DataError where the source cannot be packed, ConfigError where there is no such file."""
    if isinstance(settings, Pack):
        return open_source(settings, root).fingerprint()
    net = getattr(settings, "net", None)
    trunk = trunk_of(net)
    if trunk is None or trunk.init is None or stage_named(trunk.init):
        return {}
    from pipeline.nets import pretrained

    return {"net.trunk.init" if trunk is not net else "net.init": pretrained.digest(trunk.init)}


def check_weights(settings: Stage, planned: dict[str, str]) -> None:
    """Raises DataError where the file of a net's first weights is another one here than where the stage was planned
    (`fingerprint`), as on another machine it may be."""
    if not isinstance(settings, Pack) and planned and fingerprint(settings, Path()) != planned:
        raise DataError(f"{', '.join(planned)}: on {socket.gethostname()} the file is another one: bring the same")


def identity(out: Path, digest: str) -> str:
    """The hash that an artifact contributes to the keys of stages that read it: for shards the fingerprint of their
    content, for others the key. A quarantine list changes it."""
    record = read(out)
    if record is not None:
        digest = record["metrics"].get("fingerprint", digest)
    try:
        return hashlib.sha256(digest.encode() + (out / QUARANTINE).read_bytes()).hexdigest()
    except FileNotFoundError:
        return digest


def folder(root: Path, name: str, digest: str) -> Path:
    """The folder of a stage's artifact: root/<stage>-<first 8 digits of its key>."""
    return root / f"{name}-{digest[:8]}"


# ------------------------------------------------------------------------------------------------------------- records
def read(out: Path) -> dict[str, Any] | None:
    """A folder's artifact.json, or None where it has none. Raises DataError where it cannot be read."""
    try:
        return json.loads((out / NAME).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{out / NAME} cannot be read ({error}): delete the folder to make it anew") from None


def done(out: Path, digest: str) -> dict[str, Any] | None:
    """The record of a finished artifact with this key, or None. Raises DataError where the folder has another key."""
    record = read(out)
    if record is not None and record.get("key") != digest:
        other = record.get("key")
        raise DataError(f"{out} holds another artifact (key {other}, expected {digest}): move it out of the way")
    return record


def plain(value: Any) -> Any:
    """Converts numbers and arrays of numpy and torch for JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages in NUMBERS, without importing them."""
    numbers = {"python": platform.python_version()}
    for name in NUMBERS:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


def differences(recorded: dict[str, str]) -> str:
    """ "torch 2.14.0 (now 2.15.0), ...": the versions that have changed since a record; empty if none has."""
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
    """The processor's name; results are equal to the bit only on one type of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def begin(out: Path, facts: dict[str, Any] | None = None) -> str:
    """Writes begun.json with the time, the versions and ``facts``, unless it exists. Returns the versions that have
    changed since it was written; empty if none has."""
    try:
        return differences(json.loads((out / BEGUN).read_text())["versions"])
    except (OSError, ValueError, KeyError):
        body = {"started": time.time(), "versions": versions(), **(facts or {})}
        files.write_json(out / BEGUN, body, sort_keys=False)
        return ""


def finish(out: Path, facts: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Writes artifact.json, which marks the artifact as finished, and returns its content."""
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
    for name in (LOG, STOP, FAILED, *(p.name for p in out.glob(f".{LOCK}.*"))):  # the last of killed ones
        (out / name).unlink(missing_ok=True)
    files.write_json(out / NAME, record, sort_keys=False, default=plain)
    (out / BEGUN).unlink()
    return record


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# --------------------------------------------------------------------------------------------------------------- locks
def born(pid: int) -> str | None:
    """The start of a process in the kernel's clock ticks, since process numbers are reused. None where there is no
    such process, or where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def alive(owner: dict[str, Any], age: float) -> bool:
    """Whether a lock's owner is still running. ``age``: seconds since its last heartbeat."""
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
    """Lets one process at a time work on a key. It waits while another holds the lock, prints a line about it once,
    and takes over a stale lock. Raises Stopped where ``stop`` says so meanwhile.

    The lock file names the host, the process and its start; a thread touches it while the lock is held. A lock of this
    host is stale if its process is gone, one of another host after STALE seconds without a heartbeat.
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
        """Creates the lock, or takes over a stale one. False where a running process holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return self.take_over()
        with os.fdopen(handle, "w") as file:
            json.dump(self.mine, file)
        return True

    def take_over(self) -> bool:
        """Writes this process's name into a stale lock. Processes that try at the same time are serialised by flock,
        so that only the first succeeds."""
        import fcntl

        try:
            file = self.path.open("r+")
        except FileNotFoundError:
            return False  # it was released just now: the next attempt creates it
        with file:
            with suppress(OSError):  # without flock two processes could still both succeed, in a short window
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
        """The owner that the lock file names ({} while it is being written), and seconds since its heartbeat."""
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
        """Whether the lock file still names this process: one that was suspended too long may have lost it."""
        return self.owner()[0] == self.mine

    def beat(self) -> None:
        while not self.released.wait(BEAT):
            if not self.held():
                return
            os.utime(self.path)
