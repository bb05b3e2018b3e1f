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
"""Open files that are asked for, where the limit allows so many."""


def settle() -> None:
    """Has Python look for garbage rarely, and opens as many files as the hard limit allows."""
    gc.set_threshold(100_000, 20, 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Unread(io.FileIO):
    """An output whose reader may leave (`| head -1`, a terminal that is closed): the work goes on unheard."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            return memoryview(data).nbytes


def speak() -> None:
    """Makes standard output and error last: closed ones lead nowhere, a reader may leave, and letters that their
    encoding lacks are replaced."""
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
        raw = io.BufferedWriter(Unread(number, "wb", closefd=False))
        made = io.TextIOWrapper(raw, encoding, "replace" if number == 1 else "backslashreplace", line_buffering=True)
        setattr(sys, name, made)


def run(main: Callable[[], int]) -> None:
    """Runs ``main`` and ends the process with its code, after all that is to be done at exit."""
    code = 1  # where main raises

    @atexit.register  # the first to be registered is the last to be called
    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    settle()
    speak()
    try:
        code = main()
    except SystemExit as asked:  # argparse's --help
        code = int(asked.code or 0)
