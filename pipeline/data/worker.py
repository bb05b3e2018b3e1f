"""Processes that prepare images for a training on a GPU, where on a CPU threads would.

One thread of a process runs Python at a time. Beside threads that decode and crop, a training's own thread would wait
for its turn after every kernel that it launches, and the device for the thread. What the processes prepare lies in
memory that they share; only the samples' numbers go through the sockets between them.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from pipeline.data.cropper import Cropper, Report
from pipeline.data.pinned import Buffers
from pipeline.errors import NoProgressError
from pipeline.signals import Stop

NICENESS = 5
"""By which the training's own thread goes before its workers, where the cores are too few for both."""
SECONDS = 1.0
"""For which `Workers.close` waits."""
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of a worker: one thread, and no memory of a GPU."""


class Workers:
    """Starts ``count`` processes with copies of ``cropper``, which write to ``buffers``. They end when this process
    does, or at `close`. Each call is answered by one that is idle; it raises what the cropper's does, and
    NoProgressError where a process has died."""

    def __init__(self, cropper: Cropper, buffers: Buffers, count: int):
        pairs = [Pipe() for _ in range(count)]
        self.connections, theirs = [ours for ours, _ in pairs], [there.fileno() for _, there in pairs]
        kept = [memory.fd for memory in (buffers.memory, cropper.decoded and cropper.decoded.memory) if memory]
        # A signal to the whole group asks the training to save; the workers, which inherit this, serve it until then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, Stop.SIGNALS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                pass_fds=kept + theirs,
                env=os.environ | ALONE | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.connections[0].send((cropper, buffers))
        self.idle: SimpleQueue[Connection] = SimpleQueue()
        for connection in self.connections:
            self.idle.put(connection)

    def decode(self, ids: range) -> None:
        """As `Cropper.decode`."""
        self._ask("decode", ids)

    def fill(self, buffer: int, rows: slice, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray) -> Report:
        """As `Cropper.fill`, or `Cropper.crop` where the buffers are of bytes, into ``rows`` of a set of them."""
        report, ids[:] = self._ask("fill", buffer, rows, step, epoch, positions, ids)
        return report

    def close(self) -> None:
        """Ends the processes, after the tasks that they are at."""
        for connection in self.connections:
            with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
                end.shutdown(socket.SHUT_RDWR)  # which a thread that waits for an answer notices, unlike a close
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(SECONDS)

    def _ask(self, *message: Any) -> Any:
        connection = self.idle.get()
        try:
            connection.send(message)
            answer, error = connection.recv()
        except (EOFError, ConnectionError):
            raise NoProgressError(self._death()) from None
        finally:
            self.idle.put(connection)
        if error is not None:
            raise error
        return answer

    def _death(self) -> str:
        code = self.process.wait()
        code = 128 - code if code < 0 else code  # of the process that has forked the others
        how = f"killed by {signal.Signals(code - 128).name}" if code > 128 else f"ended with code {code}"
        hint = "memory may have run out: lower threads; " if code == 128 + signal.SIGKILL else ""
        return f"a process that decodes images was {how}; {hint}the same command goes on from the last checkpoint"


def answer(cropper: Cropper, buffers: Buffers, task: str, *words: Any) -> Any:
    """What a task returns: nothing of `Workers.decode`, the report and the ids of `Workers.fill`."""
    if task == "decode":
        return cropper.decode(*words)
    buffer, rows, step, epoch, positions, ids = words
    write = cropper.crop if buffers.dtype == torch.uint8 else cropper.fill
    return write(step, epoch, positions, ids, tuple(t[rows] for t in buffers.sets[buffer])), ids


def serve(connection: Connection, setup: bytes) -> None:
    """Answers each message by (answer, None) or (None, the error), until the other end is gone. ``setup``: a pickled
    cropper and buffers."""
    made: tuple = ()
    with suppress(EOFError, ConnectionError):
        while True:
            message = connection.recv()  # of the process that started this one
            try:
                made = made or pickle.loads(setup)
                reply = answer(*made, *message), None
            except Exception as error:
                reply = None, error
            connection.send(reply)


def main(connections: list[Connection]) -> int:
    """Forks a process for each connection, after one import for all, and waits for them. Returns 128 + the number of
    the signal that killed one of them."""
    setup = connections[0].recv_bytes()
    for connection in connections:
        if not os.fork():
            for other in connections:
                if other is not connection:
                    other.close()
            serve(connection, setup)
            os._exit(0)
    for connection in connections:
        connection.close()
    for _ in connections:
        if code := os.waitstatus_to_exitcode(os.wait()[1]):
            return 128 - code if code < 0 else code
    return 0


if __name__ == "__main__":
    os.nice(NICENESS)
    torch.set_num_threads(1)
    with suppress(EOFError):
        os._exit(main([Connection(int(fd)) for fd in sys.argv[1:]]))
