"""The first and the last thing a process of ours does: it makes the best of the terminal, the limits and the memory
that it was given.

To import torch makes a million objects that stay. Python looks for garbage among them again and again meanwhile, and
takes them apart one by one at the end: a fifth of what a short command took, each.
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
"""Open files that a process may need."""


def raise_limits() -> None:
    """Makes Python look for garbage rarely, and raises the number of files that may be open as far as the hard limit
    allows, up to FILES."""
    gc.set_threshold(100_000, 20, 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


class Output(io.FileIO):
    """An output whose reader may leave (`| head -1`, a terminal that is closed): what is written then is dropped, and
    the work goes on."""

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
    """Makes standard output and error safe to write to: one that is closed leads to /dev/null, its reader may leave,
    and letters that its encoding lacks are replaced."""
    for number in (0, 1, 2):  # else the next file that is opened would take the place
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
    """Runs ``main`` and ends the process with its code, after all that is to be done at exit."""
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
