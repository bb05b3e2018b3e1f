"""The first and the last thing a process of ours does.

To import torch makes a million objects that stay. Python looks for garbage among them again and again meanwhile, and
takes them apart one by one at the end: a fifth of what a short command took, each.
"""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress


def settle() -> None:
    """Has Python look for garbage rarely."""
    gc.set_threshold(100_000, 20, 20)


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
    try:
        code = main()
    except SystemExit as asked:  # argparse's --help
        code = int(asked.code or 0)
