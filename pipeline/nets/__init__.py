"""The networks: trunks, heads, encoder-decoders, and batch norm over the global batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline import keyed


@contextmanager
def seeded(*parts: Any) -> Iterator[None]:
    """Modules built inside take their first weights from the key alone, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed.generator(*parts).initial_seed())
        yield
