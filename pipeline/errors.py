"""The errors for users, each with the exit code that a script or a scheduler acts on.

0 done · 1 a fault of this program · 2 usage or config · 65 data · 69 the cluster did not form (requeue elsewhere)
· 70 no progress (do not repeat) · 75 saved after a signal (run the same command again).
"""

import errno as numbers
import os
import re
import traceback
from collections.abc import Iterator


class PipelineError(Exception):
    """An error whose text is one line for the user: what was found, what was expected, what to change."""

    code = 1


class ConfigError(PipelineError):
    """A config, an override or a command line is wrong. The text has one line for each mistake."""

    code = 2


class DataError(PipelineError):
    """Images or shards are missing or altered, or too many cannot be read."""

    code = 65


class ClusterError(PipelineError):
    """The processes of a run did not come together; on other nodes they may."""

    code = 69


class NoProgressError(PipelineError):
    """The same command would fail again in the same way."""

    code = 70


class UserError(NoProgressError):
    """A file of the user's own (`imports` of a config) has raised an error."""


class DivergedError(NoProgressError):
    """A training has diverged or collapsed: ``found``, since ``step``, and ``advice`` for whoever has it end there."""

    def __init__(self, found: str, advice: str = "", step: int = 0):
        super().__init__(f"{found}; {advice}" if advice else found)
        self.found, self.step = found, step


class Stopped(PipelineError):
    """The process was asked to stop and has saved; the same command resumes."""

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
"""What to do about errors of the user's disk, rights and limits; running again does not help before that."""
MESSAGES = {
    r"can't start new thread": numbers.EAGAIN,
    r"DefaultCPUAllocator|Cannot allocate memory|bad_alloc": numbers.ENOMEM,
    r"unable to mmap|No space left on device": numbers.ENOSPC,
    r"Read-only file system": numbers.EROFS,
    r"Too many open files": numbers.EMFILE,
    r"Disk quota exceeded": numbers.EDQUOT,
}
"""Patterns of library errors that mean the same without an errno."""
PEER_LOST = re.compile(
    r"Connection (closed by peer|reset by peer|refused)|Broken pipe|communicator was aborted|remote process exited"
)
"""Texts of gloo's and NCCL's errors when the process at the other end, or its machine, has died."""
BUGS = {numbers.EBADF, numbers.EFAULT, numbers.ENOTSOCK, numbers.ECHILD, numbers.ESRCH, numbers.EINVAL, numbers.ESPIPE}
"""Numbers of system errors that only a fault of this program causes."""


USERS: set[str] = set()
"""Paths of the user's own files that this process runs (`imports` of a config)."""


def explain(error: BaseException, where: str = "") -> PipelineError | None:
    """Turns an error into one with a line for the user, if the user's files, disk, rights or limits caused it; None if
    it is a fault of this program. ``where``: what was being written, for errors that name no file."""
    if isinstance(error, PipelineError):
        return error
    if peer_lost(error):
        return ClusterError(f"another rank is gone ({first_line(error)[:160]}); the same command goes on")
    for cause in causes(error):
        if isinstance(cause, PipelineError):
            continue  # the error of an earlier attempt, reported then
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
    line = user_line(error)
    return UserError(line) if line else None


def user_line(error: BaseException) -> str | None:
    """"mine.py:31: KeyError: 'x'" for an error that came about in one of USERS, or in what it called."""
    text = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError) and error.filename in USERS:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    return next((f"{f.filename}:{f.lineno}: {text}" for f in reversed(frames) if f.filename in USERS), None)


def peer_lost(error: BaseException) -> bool:
    """Whether an error of gloo or NCCL says that another process is gone. They raise RuntimeErrors; Python's own
    errors of files and sockets do not count."""
    return not isinstance(error, OSError | PipelineError) and bool(PEER_LOST.search(str(error)))


def fault(error: BaseException) -> str:
    """The line for an error that is a fault of this program."""
    return f"a fault of this program, {type(error).__name__}: {first_line(error)}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, then its cause, then that one's cause, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def system_number(error: BaseException) -> int | None:
    """The errno of an error: its attribute, or the one that MESSAGES gives for its text."""
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
    """The first line of an error's text, or its class's name if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
