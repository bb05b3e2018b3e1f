"""Images as encoders are evaluated on them, and the features of a whole split."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import files
from pipeline.data.images import SquareImages
from pipeline.tensors import write

BATCH = 128  # larger ones fall out of a CPU's caches


@torch.no_grad()
def features(
    encoder: nn.Module,
    pictures: SquareImages,
    device: torch.device,
    keep: Path | None = None,
    halt: Callable[[], None] = lambda: None,
) -> Tensor:
    """float32 [n, D] in id order, on the CPU. ``keep``: read from this file where an earlier start has written it
    whole, else written there. ``halt``: called between batches; raises where this is not to go on."""
    if keep is not None:
        with suppress(OSError, KeyError, SafetensorError):
            rows = load_file(keep)["features"]
            if len(rows) == pictures.n:
                return rows
    encoder = encoder.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    parts = []
    for batch in pictures.batches(BATCH):
        halt()
        parts.append(encoder(batch.to(device)).float().cpu())
    rows = torch.cat(parts)
    if keep is not None:
        with files.replacing(keep) as part:
            write({"features": rows}, part)
    return rows
