"""Reading shards, their size, and planning an epoch; beside webdataset on the same tars, and MosaicML's shuffle."""

import os
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

import numpy as np
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from benchmarks.data import need
from benchmarks.rounds import compare, rounds
from pipeline import files, keyed
from pipeline.data.loader import PLANNED
from pipeline.data.order import Sampler
from pipeline.data.reader import read, read_many
from pipeline.data.shards import MANIFEST, Shards, shard_table, table_bytes
from pipeline.data.sources import open_source
from pipeline.data.write import describe, split_table, write
from pipeline.settings.stages import Pack
from pipeline.world import World

BATCH = 256


@contextmanager
def packed(folder: Path, count: int, shard_images: int) -> Iterator[Path]:
    """A folder with ``count`` images of a folder, packed."""
    source = f"folder:{folder}"
    listing = open_source(Pack(source=source)).listing()
    ids = keyed.permute(np.arange(len(listing.items)), len(listing.items), 0, "bench")[:count]
    settings = Pack(source=source, shard_images=shard_images)
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:
        out = Path(place)
        items = [listing.items[i] for i in ids]
        entry, stats = write("train", items, settings, out, pool, [], World())
        splits = {"train": entry, "test": split_table(out, "test", [])}
        files.write_json(out / MANIFEST, describe(listing.classes, splits, {"train": stats}, 0))
        yield out


def ours(shards: Shards, order: Sampler, at_once: int = BATCH) -> int:
    """One epoch in the order of training, planned as a feed does, ``at_once`` images a call, every byte checked ->
    bytes."""
    total = 0
    for start in range(0, order.n, PLANNED):
        ids = order.ids(0, np.arange(start, min(start + PLANNED, order.n)))
        for at in range(0, len(ids), at_once):
            total += sum(map(len, read_many(shards, ids[at : at + at_once])))  # type: ignore[arg-type]
    return total


def one_by_one(shards: Shards, order: Sampler) -> int:
    ids = order.ids(0, np.arange(order.n)).tolist()
    return sum(len(read(shards, sample)) for sample in ids)


def limit(handles: list[tuple[int, list[int], list[int]]]) -> int:
    """What any reader in Python is bounded by: the calls and the copies alone, no order, no checks."""
    return sum(sum(map(len, map(os.pread, repeat(fd), sizes, offsets))) for fd, sizes, offsets in handles)


def webdataset_stream(folder: Path, shuffle: int = 0) -> int:
    """The same images by webdataset, in the order of the tars, or from a buffer -> bytes."""
    data = WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    if shuffle:
        data = data.shuffle(shuffle)
    return sum(len(sample["jpg"]) for sample in data)


def reading(source: Path, count: int, shard_images: int, at_once: int) -> dict:
    with packed(source, count, shard_images) as folder:
        shards = Shards.open(folder)
        anywhere, window = Sampler(shards.counts, 0), Sampler(shards.counts, 0, 4)
        best = f"ours, {at_once} a call, four shards at a time"
        handles = []
        for k in range(len(shards.counts)):
            rows = shards.table(k)
            handle = os.open(folder / shards.name(k), os.O_RDONLY)
            handles.append((handle, rows["size"].tolist(), rows["offset"].tolist()))
        work = {
            best: lambda: ours(shards, window, at_once),
            f"ours, {at_once} a call": lambda: ours(shards, anywhere, at_once),
            "ours, a batch of 256 a call": lambda: ours(shards, anywhere, BATCH),
            "ours, a batch of 256, four shards at a time": lambda: ours(shards, window, BATCH),
            "ours, image by image": lambda: one_by_one(shards, anywhere),
            "pread alone, front to back, no order, no checks": lambda: limit(handles),
            "webdataset": lambda: webdataset_stream(folder),
            "webdataset, shuffle(1000)": lambda: webdataset_stream(folder, 1000),
        }
        sizes = {run() for run in work.values()}
        assert len(sizes) == 1, "not the same bytes"
        return compare(rounds(work), shards.n, "images/s", best, "webdataset")


def read_32() -> dict:
    """CIFAR-10 as JPEG, 0.9 kB each: what a call costs."""
    return reading(need("cifar10"), 10_000, 1000, PLANNED)


def read_jpeg() -> dict:
    """Photographs of 110 kB: what memory gives."""
    return reading(need("imagenet-sample"), 1000, 100, 64)


def shard_size() -> dict:
    """Bytes a CIFAR image takes in a tar, with the same jpg and cls members."""
    with packed(need("cifar10"), 2000, 2000) as folder, tempfile.TemporaryDirectory() as place:
        shards = Shards.open(folder)
        with TarWriter(f"{place}/x.tar") as sink:
            for i in range(shards.n):
                sink.write({"__key__": shards.key(i), "jpg": read(shards, i), "cls": str(shards.labels[i])})
        mine, theirs = int(shards.shards["bytes"].sum()) / shards.n, Path(place, "x.tar").stat().st_size / shards.n
    print(f"\n  {mine:.0f} bytes an image, webdataset.TarWriter {theirs:.0f}: {1 - mine / theirs:.1%} smaller")
    return {"ratio": round(theirs / mine, 3), "ours": mine, "peer": theirs, "unit": "bytes/image", "n": shards.n}


def mosaic(n: int, shards: int, block: int = 1 << 18) -> np.ndarray:
    """MosaicML's py1e as it is described: shards in random order, each position moved by noise within a block, then
    sorted: an epoch's order as one array."""
    draw = np.random.default_rng(0)
    size = n // shards
    ids = (draw.permutation(shards)[:, None] * size + np.arange(size)).ravel()
    return ids[np.argsort(np.arange(n) + draw.uniform(-block / 2, block / 2, n))]


def order_1e9() -> dict:
    """From nothing to the first batch at position 9e8 of 1e9 samples in 1e5 shards, reading the table of shards too;
    MosaicML's way needs the whole epoch first, here of 1e7 samples."""
    names = [(f"train-{i:06d}.tar", 10_000, 1 << 30, 1, 1, bytes(32)) for i in range(100_000)]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "train.npy")
        path.write_bytes(table_bytes(shard_table(names)))

        def begin(window: int | None) -> np.ndarray:
            counts = np.load(path, allow_pickle=False)["images"].astype(np.int64)
            return Sampler(counts, 0, window).ids(0, np.arange(900_000_000, 900_000_000 + BATCH))

        work = {
            "ours, no window": lambda: begin(None),
            "ours, 16 shards at a time": lambda: begin(16),
            "ours, 64 shards at a time": lambda: begin(64),
            "ours, 256 shards at a time": lambda: begin(256),
            "MosaicML's py1e, 1e7 samples": lambda: mosaic(10**7, 1000),
        }
        seconds = rounds(work, 3)
        print("\nfirst batch of 256 at 9e8 of 1e9, 3 rounds, CPU time and memory at the peak")
        for name, run in work.items():
            tracemalloc.start()
            run()
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            print(f"  {name:<34}{1e3 * min(seconds[name]):>9.1f} ms{peak:>9.1f} MB")
    for window, count in ((None, 1 << 20), (64, 1 << 16)):
        order = Sampler(np.full(100_000, 10_000), 0, window)
        places = np.random.default_rng(0).integers(0, order.n, count) if window is None else np.arange(count)
        order.ids(0, places[:1])
        start = time.process_time()
        for part in np.array_split(places, count // 4096):
            order.ids(0, part)
        print(f"  {1e9 * (time.process_time() - start) / count:.0f} ns an id, window {window}, 4,096 at a time")
    mine, theirs = (1e3 * min(seconds[name]) for name in ("ours, 64 shards at a time", "MosaicML's py1e, 1e7 samples"))
    return {"ratio": round(theirs / mine, 2), "ours": mine, "peer": theirs, "unit": "ms", "n": 10**9}
