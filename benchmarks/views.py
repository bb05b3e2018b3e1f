"""Views per core: JPEG bytes to crops and to finished MoCo v2 views, beside PIL, torchvision and lightly; the feed.

Every function is one figure. Threads: one, in every library.
"""

import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture

from benchmarks.data import need
from benchmarks.rounds import compare, rounds
from pipeline.data.loader import Loader
from pipeline.data.shards import Shards
from pipeline.image import Image
from pipeline.settings.data import MoCoV2
from pipeline.settings.objectives import Inputs
from pipeline.settings.stages import Pack
from pipeline.stages import pack
from pipeline.views import transforms
from pipeline.views.decode import Scratch, decode
from pipeline.world import World

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOURCES = {224: ("imagenet-sample", "*.JPEG", 64), 32: ("cifar10/train", "*.jpg", 1024)}


def files(side: int) -> list[bytes]:
    """JPEG files: photographs of about 500 x 375, or CIFAR-10's 32 x 32, spread over the classes."""
    torch.set_num_threads(1)
    folder, pattern, count = SOURCES[side]
    paths = sorted(need(folder).rglob(pattern))
    return [p.read_bytes() for p in paths[:: max(1, len(paths) // count)][:count]]


class Ours:
    """The feed's own steps without its threads: decode, cut, and finish in tasks of 32."""

    def __init__(self, data: list[bytes], side: int):
        self.data, self.scratch = data, Scratch()
        self.transform = transforms.build(Inputs(), (MoCoV2(size=side),), Image(3, side, MEAN, STD), 0)
        self.rooms = tuple(torch.empty(32, *s, dtype=torch.uint8) for s in self.transform.crop_shapes)
        self.out = tuple(torch.empty(32, *s) for s in self.transform.view_shapes)

    def run(self, finish: bool) -> None:
        for at in range(0, len(self.data), 32):
            part = self.data[at : at + 32]
            ids = np.arange(at, at + len(part))
            params = self.transform.params(0, ids)
            rooms = tuple(r[: len(part)] for r in self.rooms)
            for i, data in enumerate(part):
                self.transform.crop(decode(data, 3, self.scratch), params, i, tuple(r[i] for r in rooms))
            if finish:
                self.transform.views(rooms, 0, ids, tuple(m[: len(part)] for m in self.out))


def pil_crops(data: list[bytes], side: int) -> None:
    """Decoded once, two RandomResizedCrops (bilinear, as Pillow antialiases), flips, as arrays."""
    from torchvision import transforms

    crop, flip = transforms.RandomResizedCrop(side, (0.2, 1)), transforms.RandomHorizontalFlip()
    for encoded in data:
        image = Picture.open(io.BytesIO(encoded)).convert("RGB")
        for _ in range(2):
            np.asarray(flip(crop(image)))


def crops(side: int) -> dict:
    data = files(side)
    ours = Ours(data, side)
    seconds = rounds({"ours": lambda: ours.run(False), "PIL, decoded once": lambda: pil_crops(data, side)})
    return compare(seconds, len(data), "images/s", "ours", "PIL, decoded once")


def moco_views(side: int) -> dict:
    data = files(side)

    from lightly.transforms.moco_transform import MoCoV2Transform
    from torchvision.transforms import v2

    ours = Ours(data, side)
    transform = MoCoV2Transform(input_size=side)
    width = 2 * max(1, int(side * 0.1 / 2)) + 1
    tv = v2.Compose([
        v2.RandomResizedCrop(side, (0.2, 1), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(width, (0.1, 2.0))], 0.5),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip

    def lightly() -> None:
        for encoded in data:
            transform(Picture.open(io.BytesIO(encoded)).convert("RGB"))

    def torchvision() -> None:
        for encoded in data:
            image = decode(encoded, 3)
            for _ in range(2):
                tv(image)

    work = {
        "ours, all of it on the CPU": lambda: ours.run(True),
        "ours, uint8 crops (a GPU does the rest)": lambda: ours.run(False),
        "lightly MoCoV2Transform": lightly,
        "torchvision v2 on tensors": torchvision,
    }
    seconds = rounds(work, 5)
    best, cut, peer, _ = work
    result = compare(seconds, len(data), "images/s", best, peer)
    return result | {"ratio_crops_only": float(np.median(seconds[peer]) / np.median(seconds[cut]))}


def feed(side: int) -> dict:
    """The feed alone, one thread, beside the sum of its stages' own limits; then a consumer that takes 80 % of it."""
    torch.set_num_threads(1)
    folder, _, _ = SOURCES[side]
    world = World(threads=1)
    with tempfile.TemporaryDirectory() as out:
        source = need(folder) if side == 224 else need(folder).parent
        pack.run(Pack(source=f"folder:{source}", test=0.1), 0, {}, Path(out), world)
        shards = Shards.open(Path(out), "train")
        transform = transforms.build(Inputs(), (MoCoV2(size=side),), Image(3, side, MEAN, STD), 0)
        batch, steps = (32, 24) if side == 224 else (256, 60)

        def make() -> Loader:
            return Loader(shards, transform, batch=batch, seed=0, total_steps=steps, memory=0)

        rates, shares, waits = [], [], []
        for _ in range(3):
            source = make()
            start = time.perf_counter()
            for _step in source.steps(0):
                pass
            wall = time.perf_counter() - start
            source.close()
            work = sum(v for k, v in source.seconds.items() if k != "wait")
            rates.append(batch * steps / wall)
            shares.append(work / wall)
            pause = wall / steps / 0.8
            slow, at = make(), time.perf_counter()
            for step, _, _ in slow.steps(0):
                if step == 3:  # the first batches have nobody before them
                    first, at = slow.seconds["wait"], time.perf_counter()
                time.sleep(pause)
            waits.append((slow.seconds["wait"] - first) / (time.perf_counter() - at))
            slow.close()
    rate, share, wait = (float(np.median(v)) for v in (rates, shares, waits))
    print(f"\nfeed_{side}: {rate:.0f} images/s with one thread, {share:.1%} of its stages' own limit; a consumer that")
    print(f"takes 80 % of that waits {wait:.2%} of its time")
    return {"ratio": share, "ours": rate, "peer": rate / share, "unit": "images/s", "n": batch * steps, "wait": wait}


def crops_224() -> dict:
    return crops(224)


def crops_32() -> dict:
    return crops(32)


def moco_views_224() -> dict:
    return moco_views(224)


def moco_views_32() -> dict:
    return moco_views(32)


def feed_224() -> dict:
    return feed(224)


def feed_32() -> dict:
    return feed(32)
