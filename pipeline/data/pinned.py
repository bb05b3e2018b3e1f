"""Pinned memory that is filled again and again, and the stream that copies it to the device beside the computation."""

import torch
from torch import Tensor


class PinnedBuffers:
    """Sets of uint8 tensors: taken, filled by threads, sent, and taken again once their copy is over.

    On a device other than CUDA's the memory is not pinned and the copy waits.
    """

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
        """Their copies on the device, in time for whatever is asked of its current stream from now on."""
        if self.stream is None:
            copies, event = tuple(t.to(self.device, copy=True) for t in filled), None
        else:
            with torch.cuda.stream(self.stream):
                copies = tuple(t.to(self.device, non_blocking=True) for t in filled)
                event = self.stream.record_event()
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for t in copies:  # allocated on the one stream, used on the other
                t.record_stream(current)
        self.sent.append((event, filled))
        return copies
