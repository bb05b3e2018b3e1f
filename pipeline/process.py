"""Sets up a process of this package (garbage collector, limits, standard output), and ends it.

Importing torch creates a million objects that stay. Python searches them for garbage during the import and frees them
one by one at exit, each of which took a fifth of a short command's time; both are avoided here.
"""

import atexit
import errno
import gc
import io
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

FILES = 65536
"""Files that a process may need to have open."""


def raise_limits() -> None:
    """Makes garbage collection rare, and raises the limit of open files to FILES, or as far as the hard limit
    allows."""
    gc.set_threshold(100_000, 20, 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


class Output(io.FileIO):
    """An output that drops what is written after its reader has gone (`| head -1`, a closed terminal), so that the
    work continues."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            return memoryview(data).nbytes


def guard_output() -> None:
    """Makes standard output and error safe to write to: a closed one becomes /dev/null, the reader may go away, and
    characters that the encoding lacks are replaced."""
    for number in (0, 1, 2):  # else the next opened file would get this number
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is not None and getattr(before, "buffer", None) is None:
            continue  # a test's
        encoding = getattr(before, "encoding", None) or "utf-8"
        raw = io.BufferedWriter(Output(number, "wb", closefd=False))
        errors = "replace" if number == 1 else "backslashreplace"
        setattr(sys, name, io.TextIOWrapper(raw, encoding, errors, line_buffering=True))


def run(main: Callable[[], int]) -> None:
    """Runs ``main`` and ends the process with its exit code, after all other functions registered at exit."""
    code = 1  # where main raises

    @atexit.register  # the first to be registered is the last to be called
    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    raise_limits()
    guard_output()
    try:
        code = main()
    except SystemExit as exit:  # argparse's --help
        code = int(exit.code or 0)
