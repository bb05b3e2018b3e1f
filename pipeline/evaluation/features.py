"""Images as encoders are evaluated on them, and the features of a whole split."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import files
from pipeline.data.loader import images
from pipeline.data.shards import Shards
from pipeline.tensors import write

BATCH = 128  # larger ones fall out of a CPU's caches
HELD = 1 << 30  # bytes of decoded images kept for the next encoder


class Pictures:
    """The images of a split as encoders are evaluated on them, decoded once where they fit in memory. ``n``: how many
    there are, the first ``limit`` of the split's ids."""

    def __init__(self, shards: Shards, side: int, limit: int | None = None):
        self.shards, self.side, self.n = shards, side, min(shards.n, limit or shards.n)
        fits = self.n * shards.manifest["channels"] * side * side <= HELD
        self.held = images(shards, np.arange(self.n), side) if fits else None

    def batches(self) -> Iterator[Tensor]:
        """uint8 [<= BATCH, C, side, side], in id order."""
        for start in range(0, self.n, BATCH):
            yield self.take(np.arange(start, min(start + BATCH, self.n)))

    def take(self, ids: np.ndarray) -> Tensor:
        """uint8 [n, C, side, side] of these ids."""
        return images(self.shards, ids, self.side) if self.held is None else self.held[torch.from_numpy(ids)]


@torch.no_grad()
def features(
    encoder: nn.Module,
    pictures: Pictures,
    device: torch.device,
    keep: Path | None = None,
    halt: Callable[[], None] = lambda: None,
) -> Tensor:
    """float32 [n, D] in id order, on the CPU. ``keep``: read from this file where an earlier start has written it
    whole, else written there. ``halt``: called between batches; raises where this is not to go on."""
    if keep is not None:
        with suppress(OSError, KeyError, SafetensorError):
            found = load_file(keep)["features"]
            if len(found) == pictures.n:
                return found
    encoder = encoder.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    found = []
    for batch in pictures.batches():
        halt()
        found.append(encoder(batch.to(device)).float().cpu())
    rows = torch.cat(found)
    if keep is not None:
        with files.replacing(keep) as part:
            write({"features": rows}, part)
    return rows
