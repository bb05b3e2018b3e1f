"""Processes of this machine, found by what they were started with, and stopped in their tracks for a while."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def started_with(**env: str) -> dict[int, str]:
    """Processes with all of this in the environment they, or those that started them, were given: pid -> words."""
    marks = [f"{name}={value}".encode() for name, value in env.items()]
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (folder / "environ").read_bytes().split(b"\0")
            if all(mark in lines for mark in marks):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def owners(lock: Path) -> list[int]:
    """The process that an artifact's lock names, whose number may be that of a namespace of its own."""
    named = str(json.loads(lock.read_text())["pid"])
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            numbers = re.search(r"^NSpid:\s*(.*)$", (folder / "status").read_text(), re.MULTILINE)
            words = (folder / "cmdline").read_bytes()
            if numbers and numbers[1].split()[-1] == named and (b"ray::" in words or b"run" in words):
                found.append(int(folder.name))
    return found


def below(pid: int) -> set[int]:
    """A process and all that it, or those it started, have started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def pending(pid: int, number: int) -> bool:
    """Whether a signal waits for a process that is stopped."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def halted(pid: int) -> bool:
    """Whether a process is there and stopped."""
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """They do nothing meanwhile, so that what is sent to them arrives at one known step however fast they are."""
    pids = list(pids)
    assert pids
    send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pids, signal.SIGCONT)


def until(what: Callable[[], object], limit: float = 600, say: Callable[[], str] = str) -> None:
    """Waits for something to come true; ``say``: what to show where it does not."""
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, say()
        time.sleep(0.05)
