"""Pinned buffers that worker processes fill, and the CUDA stream that copies them to the device while it computes."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.data.memory import SharedMemory

Shapes = Sequence[tuple[int, ...]]


class Buffers:
    """``count`` sets of tensors of the same ``shapes`` and ``dtype``, in memory that worker processes share."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype, count: int, memory: SharedMemory | None = None):
        self.shapes, self.dtype, self.count = list(shapes), dtype, count
        size = sum(map(math.prod, self.shapes)) * dtype.itemsize
        self.memory = memory or SharedMemory(count * size)
        tensors = self.memory.tensors(self.shapes * count, dtype)
        self.sets = [tensors[at : at + len(shapes)] for at in range(0, len(tensors), len(shapes))]

    def __reduce__(self) -> tuple:
        return Buffers, (self.shapes, self.dtype, self.count, self.memory)


class PinnedBuffers:
    """Lends sets of `Buffers`: `take` names one, workers fill it, `send` copies it to the device, and it is lent again
    once the copy is over. For a device other than CUDA the memory is not pinned and the copy is synchronous."""

    def __init__(self, device: torch.device, shapes: Shapes, dtype: torch.dtype, count: int):
        self.device, self.buffers = device, Buffers(shapes, dtype, count)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free = deque(range(count))
        self.sent: deque[tuple[torch.Event | None, int]] = deque()
        self.bytes = torch.frombuffer(self.buffers.memory.map, dtype=torch.uint8)
        if self.stream is not None:
            with torch.cuda.device(device):
                runtime: Any = torch.cuda.cudart()
                torch.cuda.check_error(int(runtime.cudaHostRegister(self.bytes.data_ptr(), len(self.bytes), 0)))

    def take(self) -> int:
        """The number of a set that may be written to. Waits for the oldest copy where all sets are in use."""
        if not self.free:
            event, k = self.sent.popleft()
            if event is not None:
                event.synchronize()
            self.free.append(k)
        return self.free.popleft()

    def send(self, k: int) -> tuple[Tensor, ...]:
        """Copies of a set's tensors on the device, which work launched on its current stream from now on may use."""
        filled = self.buffers.sets[k]
        if self.stream is None:
            copies, event = tuple(t.to(self.device, copy=True) for t in filled), None
        else:
            with torch.cuda.stream(self.stream):
                copies = tuple(t.to(self.device, non_blocking=True) for t in filled)
                event = self.stream.record_event()
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for t in copies:  # allocated on one stream, used on another
                t.record_stream(current)
        self.sent.append((event, k))
        return copies

    def close(self) -> None:
        """Waits for the copies and unpins the memory."""
        if self.stream is not None:
            self.stream.synchronize()
            runtime: Any = torch.cuda.cudart()
            runtime.cudaHostUnregister(self.bytes.data_ptr())
            self.stream = None
