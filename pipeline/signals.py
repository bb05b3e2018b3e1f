"""Signals that ask this process to save and stop."""

import signal
import time


class Stop:
    """Whether this process was asked to stop, and since when (``since``, in seconds of the monotonic clock).

    SIGTERM, SIGUSR2, SIGINT and SIGHUP only set a flag, so that a second signal does not interrupt the save; the third
    SIGINT raises KeyboardInterrupt. A SIGHUP that nohup ignores stays ignored.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)

    def __init__(self):
        self.requested, self.interrupts, self.before = False, 0, {}
        self.since = time.monotonic()

    def __call__(self) -> bool:
        return self.requested

    def handle(self, number: int, _frame: object) -> None:
        if not self.requested:
            self.requested, self.since = True, time.monotonic()
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 2:
            raise KeyboardInterrupt

    def __enter__(self) -> "Stop":
        handled = [n for n in self.SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self.handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        # After a first signal, another must not kill the process before it exits with code 75.
        for number, before in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.requested else before)
