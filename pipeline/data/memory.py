"""Memory that a process shares with the worker processes that it starts."""

import math
import mmap
import os
from collections.abc import Sequence

import torch
from torch import Tensor


class SharedMemory:
    """``size`` bytes, zero at first, that a child process maps too where it inherits ``fd``. They have no name and no
    file, so that nothing is left of them once the last process is gone, however it ended. Pickled, this is the number
    of the file descriptor."""

    def __init__(self, size: int, inherited: int | None = None):
        self.size, self.fd, self.inherited = size, -1, inherited is not None
        if inherited is not None:
            self.fd = inherited
        elif hasattr(os, "memfd_create"):  # elsewhere than on Linux there are no worker processes
            self.fd = os.memfd_create("pipeline")
            os.ftruncate(self.fd, max(1, size))
        self.map = mmap.mmap(self.fd, max(1, size))

    def __reduce__(self) -> tuple:
        return SharedMemory, (self.size, self.fd)

    def __del__(self):
        if self.fd >= 0 and not self.inherited:
            os.close(self.fd)  # the map stays for as long as a tensor has it

    def tensors(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.uint8) -> tuple[Tensor, ...]:
        """Tensors of these shapes, one after the other from the first byte on."""
        sizes = [math.prod(shape) for shape in shapes]
        flat = torch.frombuffer(self.map, dtype=dtype)[: sum(sizes)]
        return tuple(part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True))
