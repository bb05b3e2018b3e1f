"""What can go wrong, each with the exit code a script or a scheduler acts on.

0 done · 1 a fault of ours · 2 usage or config · 65 data · 69 the cluster did not form (requeue elsewhere)
· 70 no progress (stop) · 75 saved after a signal, run me again.
"""

import errno as numbers
import os
import re
from collections.abc import Iterator


class PipelineError(Exception):
    """One clear line for the user: what was found, what was expected, what to change."""

    code = 1


class ConfigError(PipelineError):
    """A config, an override or a command line that cannot be run. Holds one line per mistake."""

    code = 2


class DataError(PipelineError):
    """Images or shards that are missing, altered or unreadable past the limits."""

    code = 65


class ClusterError(PipelineError):
    """The processes asked for did not come together: worth trying on other nodes."""

    code = 69


class NoProgressError(PipelineError):
    """Running again would end in the same place."""

    code = 70


class Stopped(PipelineError):
    """Asked to stop, and saved: the same command goes on from here."""

    code = 75


def of_code(code: int) -> type[PipelineError]:
    """The class of errors that end with an exit code."""
    return next((kind for kind in PipelineError.__subclasses__() if kind.code == code), PipelineError)


AGAIN = "then run the same command again"
LIMITS = {
    numbers.ENOSPC: f"free some, {AGAIN}",
    numbers.EDQUOT: f"free some or ask for more, {AGAIN}",
    numbers.EFBIG: f"raise the largest size of a file (ulimit -f), {AGAIN}",
    numbers.EROFS: "name a folder that can be written to",
    numbers.EACCES: "change its rights, or name another",
    numbers.EPERM: "change its rights, or name another",
    numbers.EMFILE: f"raise the limit by `ulimit -n 4096`, {AGAIN}",
    numbers.ENFILE: f"the machine's files are all in use: end other programs, {AGAIN}",
    numbers.ENOMEM: f"lower batch or threads, or find more memory, {AGAIN}",
    numbers.EAGAIN: f"raise the number of processes and threads (ulimit -u), {AGAIN}",
    numbers.ENOLCK: f"the file system has no locks left: name another folder, {AGAIN}",
    numbers.ENAMETOOLONG: "name a shorter one",
}
"""What a user's disk, rights and limits refuse, and what to do about it: no further start helps before that."""
MESSAGES = {
    r"can't start new thread": numbers.EAGAIN,
    r"DefaultCPUAllocator|Cannot allocate memory|bad_alloc": numbers.ENOMEM,
    r"unable to mmap|No space left on device": numbers.ENOSPC,
    r"Read-only file system": numbers.EROFS,
    r"Too many open files": numbers.EMFILE,
    r"Disk quota exceeded": numbers.EDQUOT,
}
"""How libraries report the same without a number."""
PEER_LOST = re.compile(
    r"Connection (closed by peer|reset by peer|refused)|Broken pipe|communicator was aborted|remote process exited"
)
"""What gloo and NCCL say when the process at the other end, or its machine, died."""
BUGS = {numbers.EBADF, numbers.EFAULT, numbers.ENOTSOCK, numbers.ECHILD, numbers.ESRCH, numbers.EINVAL, numbers.ESPIPE}
"""What the system answers to calls that should not have been made."""


def explain(error: BaseException, where: str = "") -> PipelineError | None:
    """An error as the line for the user whose files, disk, rights or limits caused it, with its exit code; None where
    it is a fault of ours. ``where``: what was being written, for errors that name no file."""
    if isinstance(error, PipelineError):
        return error
    if peer_lost(error):
        return ClusterError(f"another rank is gone ({first_line(error)[:160]}); the same command goes on")
    for cause in causes(error):
        if isinstance(cause, PipelineError):
            continue  # an attempt before this one, which said so
        if (number := system_number(cause)) in LIMITS:
            return NoProgressError(f"{subject(cause, where)}{os.strerror(number).lower()}: {LIMITS[number]}")
        if type(cause).__name__ == "OutOfMemoryError":
            why = f"no memory left on the device: lower batch, or raise accumulate ({first_line(cause)})"
            return NoProgressError(why)
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        name = error.object[max(0, error.start - 60) : error.end + 60].encode("utf-8", "surrogateescape")
        return DataError(f"{name.decode('utf-8', 'backslashreplace')}: a name that is not UTF-8; rename it")
    if isinstance(error, OSError) and error.errno not in BUGS:
        why = f"{subject(error, where)}{error.strerror.lower()}" if error.strerror else first_line(error)
        return DataError(f"{why}: see that it is there and can be reached, {AGAIN}")
    return None


def peer_lost(error: BaseException) -> bool:
    """Whether an error tells of another process that is gone. Python's own errors of files and sockets do not: gloo
    and NCCL raise RuntimeErrors."""
    return not isinstance(error, OSError | PipelineError) and bool(PEER_LOST.search(str(error)))


def fault(error: BaseException) -> str:
    """The line for an error that is a fault of ours."""
    return f"a fault of ours, {type(error).__name__}: {first_line(error)}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that caused it, one after another."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def system_number(error: BaseException) -> int | None:
    """The operating system's number of an error (errno): its own, or the one that its text gives."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, MemoryError):
        return numbers.ENOMEM
    text = str(error)
    if match := re.search(r"(?:os error|errno:?|Error code) (\d+)", text, re.IGNORECASE):
        return int(match[1])
    return next((number for pattern, number in MESSAGES.items() if re.search(pattern, text)), None)


def subject(error: BaseException, where: str) -> str:
    """"runs/x: ", the file that an error names or else ``where``, as the beginning of a line about it."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else where
    return f"{text}: " if text else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its class, where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
