"""Signals that ask this process to save and leave."""

import signal
import time


class Stop:
    """Whether this process was asked to stop, and since when (``since``, by the monotonic clock).

    TERM, USR2, INT, or HUP of a terminal that closes set a flag and nothing else, so that a second one does not lose
    the save; a third INT does not wait for it. What nohup ignores stays ignored.
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
        # Once asked, a further signal must not kill the process on its way to exit code 75.
        for number, before in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.requested else before)
