"""Shards damaged at random: every sample is delivered, replaced or refused, and accounted for.

    python -m tests.fuzz_shards --n 1000 [--seed 0]
"""

import argparse
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.data import tar
from pipeline.data.faults import ATTEMPTS
from pipeline.data.order import Sampler
from pipeline.data.reader import BadSample, read_many
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.views.decode import decode


def damaged(data: bytes, draw: random.Random) -> bytes:
    """One to four random injuries."""
    body = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(body)), draw.choice([1, 4, 100, 512, 3000])
        match draw.choice(["flip", "random", "zeros", "cut", "insert", "remove", "copy"]):
            case "flip":
                body[at] ^= 1 << draw.randrange(8)
            case "random":
                body[at : at + length] = draw.randbytes(min(length, len(body) - at))
            case "zeros":
                body[at : at + length] = bytes(min(length, len(body) - at))
            case "cut":
                del body[max(1, at) :]
            case "insert":
                body[at:at] = draw.randbytes(length)
            case "remove":
                del body[at : at + length]
            case "copy":
                other = draw.randrange(len(body))
                body[at : at + length] = body[other : other + length]
        body = body or bytearray(b"x")
    return bytes(body)


def account(folder: Path, truth: list[bytes], draw: random.Random, counts: Counter) -> None:
    """Reads a whole epoch of a damaged set as training does. Raises AssertionError where a sample is unaccounted."""
    try:
        Shards.open(folder)
    except DataError:
        counts["refused at the start"] += 1  # and a shard that changed while it was in use:
    shards = Shards.open(folder, check=False)
    order = Sampler(shards.counts, 0, draw.choice([None, 2]))
    ids = order.ids(0, np.arange(order.n))
    for position, (sample, data) in enumerate(zip(ids.tolist(), read_many(shards, ids), strict=True)):
        attempt = 0
        while isinstance(data, BadSample) and attempt < ATTEMPTS:
            attempt += 1
            sample = order.replacement(0, position, attempt)
            (data,) = read_many(shards, np.array([sample]))
        if isinstance(data, BadSample):
            counts["given up"] += 1
            continue
        assert data == truth[sample], "wrong bytes were delivered"
        decode(bytes(data), 3)
        counts["replaced" if attempt else "delivered"] += 1


def walk(data: bytes, counts: Counter) -> None:
    """As a tar without an index: read whole, or refused with a word."""
    try:
        found = list(tar.members(lambda offset, size: data[offset : offset + size], len(data)))
        tar.samples(found)
        counts["walked"] += 1
    except tar.BrokenTar as error:
        assert error.kind in ("cut", "header", "end", "compressed", "refused") and str(error)
        counts[f"tar {error.kind}"] += 1


def fuzz(packed: Path, n: int, seed: int) -> Counter:
    """Injures one shard of a copy of the packed set ``n`` times -> what came of all samples."""
    counts: Counter = Counter()
    shards = Shards.open(packed)
    truth = [d for d in read_many(shards, np.arange(shards.n)) if not isinstance(d, BadSample)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        shutil.copytree(packed, folder)
        for i in range(n):
            draw = random.Random(seed * 1_000_003 + i)
            path = folder / shards.name(draw.randrange(len(shards.shards)))
            whole = path.read_bytes()
            path.write_bytes(body := damaged(whole, draw))
            account(folder, truth, draw, counts)
            walk(body, counts)
            path.write_bytes(whole)
    done = counts["delivered"] + counts["replaced"] + counts["given up"]
    assert done == n * shards.n, f"{done} of {n * shards.n} samples accounted for"
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from pipeline.settings.stages import Pack
    from pipeline.stages import pack
    from pipeline.world import World
    from tests.test_pack import picture

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "in").mkdir()
        (root / "set").mkdir()
        for i in range(40):
            (root / f"in/{i:02d}.jpg").write_bytes(picture(i))
        pack.run(Pack(source=f"folder:{root}/in", shard_images=10, test=0.0), 0, {}, root / "set", World())
        for what, count in sorted(fuzz(root / "set", options.n, options.seed).items()):
            print(f"{count:9d} {what}")


if __name__ == "__main__":
    main()
