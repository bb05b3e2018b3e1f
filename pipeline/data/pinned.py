"""Pinned buffers that are reused, and the CUDA stream that copies them to the device while it computes."""

import torch
from torch import Tensor


class PinnedBuffers:
    """Sets of uint8 tensors: `take` gives a set, threads fill it, `send` copies it to the device, and it may be taken
    again once the copy is over. For a device other than CUDA the memory is not pinned and the copy is synchronous."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self.cuda else None
        self.sent: list[tuple[torch.Event | None, tuple[Tensor, ...]]] = []

    def take(self, shapes: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """Tensors of these shapes, the same at every call."""
        if self.sent and (self.sent[0][0] is None or self.sent[0][0].query()):
            return self.sent.pop(0)[1]
        return tuple(torch.empty(shape, dtype=torch.uint8, pin_memory=self.cuda) for shape in shapes)

    def send(self, filled: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Copies of the tensors on the device, which work launched on its current stream from now on may use."""
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
        self.sent.append((event, filled))
        return copies
