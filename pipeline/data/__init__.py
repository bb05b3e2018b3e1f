"""Reads plain WebDataset tars: the sample at any position is known without reading those before it, the order is the
same for any number of ranks, and every image is checked by its CRC-32.

    from pipeline.data import Shards, Stream, datasource

    for sample in Stream("runs/shards-1234abcd", seed=0, epoch=3, start=1000):
        sample["id"], sample["key"], sample["image"], sample["label"]
    ray.data.read_datasource(datasource("runs/shards-1234abcd"))

Each name is imported when it is asked for: Shards, Sampler and read_many need numpy, Stream torch, datasource Ray.
"""

import importlib
from typing import Any

HOME = {"Shards": "shards", "Sampler": "order", "read": "reader", "read_many": "reader", "Stream": "interop",
        "datasource": "interop"}  # fmt: skip
__all__ = ["Sampler", "Shards", "Stream", "datasource", "read", "read_many"]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOME[name]}"), name)
