"""The feed of natural images: the same views for any ranks, threads and memory, whole or resumed, whoever decodes."""

import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from pipeline.data.loader import Loader, MicroBatch
from pipeline.data.shards import Shards
from pipeline.settings.data import CifarViews, MoCoV2, PirlViews, SmallCrops
from pipeline.settings.objectives import Inputs, Jigsaw
from pipeline.settings.stages import Pack
from pipeline.stages import pack
from pipeline.views import decode as decoding
from pipeline.views import transforms
from pipeline.views.decode import decode
from tests.test_views import pictures

BATCH = 24
TWO, JIGSAW = Inputs(), Inputs(jigsaw=Jigsaw())


def packed(folder, out, world, sizes) -> Shards:
    for i, (height, width) in enumerate(sizes):
        pixels = pictures(1, 3, height, width)[0].permute(1, 2, 0).numpy()
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Picture.fromarray(np.roll(pixels, i, 2)).save(folder / f"{i % 2}" / f"{i:03d}.jpg", quality=90)
    out.mkdir()
    pack.run(Pack(source=f"folder:{folder}", shard_images=30), 0, {}, out, world)
    return Shards.open(out, "train")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, world) -> Shards:
    """80 training images of many sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    return packed(folder / "in", folder / "out", world, [(90 + i % 37, 70 + i % 53) for i in range(100)])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, world) -> Shards:
    """80 training images of 32 x 32."""
    folder = tmp_path_factory.mktemp("tiny")
    return packed(folder / "in", folder / "out", world, [(32, 32)] * 100)


def loader(shards: Shards, inputs: Inputs = TWO, views=None, **changes) -> Loader:
    views = views or MoCoV2(size=64)
    transform = transforms.build(inputs, (views,), shards.image(views.size), 5)
    return Loader(shards, transform, **({"batch": BATCH, "seed": 5, "total_steps": 7} | changes))


def run(source: Loader, start: int = 0, stop: int | None = None) -> list[list[MicroBatch]]:
    try:
        return [loaded for step, _, loaded in source.steps(start) if stop is None or step < stop]
    finally:
        source.close()


def digest(ranks: list[list[list[MicroBatch]]]) -> str:
    """SHA-256 over ids and views of every step, the ranks' micro-batches joined in their order."""
    sha = hashlib.sha256()
    for step in zip(*ranks, strict=True):
        for micro in zip(*step, strict=True):
            for column in zip(*((m.ids, *m.views) for m in micro), strict=True):
                sha.update(torch.cat(column).numpy().tobytes())
    return sha.hexdigest()


CASES = {
    "two": (TWO, MoCoV2(size=64)),
    "jigsaw": (JIGSAW, PirlViews(size=64)),
    "small": (TWO, MoCoV2(size=64, small=SmallCrops(count=5, size=24))),
}


@pytest.mark.parametrize("name", CASES)
def test_ranks_threads_and_starts_change_no_bit(photographs, name):
    given = CASES[name]
    one = digest([run(loader(photographs, *given))])
    for size, threads in [(1, 4), (2, 1), (3, 2), (4, 7), (8, 1)]:
        shares = [run(loader(photographs, *given, rank=r, size=size, threads=threads)) for r in range(size)]
        assert digest(shares) == one
    begun, rest = run(loader(photographs, *given), stop=4), run(loader(photographs, *given), start=4)
    assert digest([begun + rest]) == one
    assert digest([run(loader(photographs, *given, seed=6))]) != one


def test_small_crops_are_small_different_and_leave_the_views_as_they_were(photographs):
    small = SmallCrops(count=5, size=24, scale=(0.05, 0.1))
    plain, more = (run(loader(photographs, views=MoCoV2(size=64, small=s)), stop=1)[0][0] for s in (None, small))
    assert all(torch.equal(a, b) for a, b in zip(plain.views, more.views[:2], strict=True)) and len(plain.views) == 2
    crops = more.views[2]
    assert crops.shape == (BATCH, 5, 3, 24, 24)
    assert len({crop.numpy().tobytes() for crop in crops.flatten(0, 1)}) == 5 * BATCH
    transform = transforms.build(Inputs(), (MoCoV2(size=64, small=small),), photographs.image(64), 5)
    for params in transform.params(0, np.arange(80))[2:]:
        areas = [h * w / 1e6 for _, _, h, w in (params.box(i, 1000, 1000) for i in range(80))]
        assert 0.049 < min(areas) < 0.06 and 0.09 < max(areas) < 0.101


def test_accumulation_cuts_the_same_batch(photographs):
    whole, cut = run(loader(photographs)), run(loader(photographs, accumulate=3))
    for big, small in zip(whole, cut, strict=True):
        assert len(small) == 3
        assert torch.equal(big[0].views[1], torch.cat([m.views[1] for m in small]))


@pytest.mark.parametrize("views", [CifarViews(), CifarViews(small=SmallCrops(size=16, count=3)), PirlViews()])
def test_images_held_in_memory_give_the_same_pixels(tiny, views):
    inputs = JIGSAW if isinstance(views, PirlViews) else TWO
    streaming, held = loader(tiny, inputs, views, memory=0), loader(tiny, inputs, views)
    assert digest([run(streaming)]) == digest([run(held)])
    assert streaming.decoded is None and held.decoded is not None


def test_a_set_that_is_seen_once_is_not_held(tiny):
    source = loader(tiny, views=CifarViews(), total_steps=2)
    run(source)
    assert source.decoded is None


def test_stage_times_are_told(photographs):
    source = loader(photographs)
    run(source)
    assert all(source.seconds[stage] > 0 for stage in ("read", "decode", "crop", "augment", "wait"))


# ---- decoding


def encoded(kind: str, mode: str = "RGB", size=(40, 56), **options) -> bytes:
    pixels = pictures(1, 3, *size)[0].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Picture.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


JPEGS = {
    "plain": encoded("JPEG"),
    "fine": encoded("JPEG", quality=97, subsampling=0),
    "422": encoded("JPEG", subsampling=1),
    "progressive": encoded("JPEG", progressive=True),
    "odd": encoded("JPEG", size=(33, 41)),
    "grey": encoded("JPEG", "L"),
    "cmyk": encoded("JPEG", "CMYK"),
    "restart": encoded("JPEG", restart_marker_rows=1),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", JPEGS)
def test_pixels_do_not_depend_on_who_decodes(name, channels, monkeypatch):
    scratch = decoding.Scratch()
    fast, reused = decode(JPEGS[name], channels), decode(JPEGS[name], channels, scratch)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    slow = decode(JPEGS[name], channels)
    assert torch.equal(fast, slow) and torch.equal(reused, slow)
    assert slow.shape[0] == channels and slow.dtype == torch.uint8


def test_scratch_is_used_again():
    scratch = decoding.Scratch()
    first = decode(JPEGS["plain"], 3, scratch)
    second = decode(JPEGS["fine"], 3, scratch)
    assert first.data_ptr() == second.data_ptr()


@pytest.mark.parametrize("name", ["plain", "grey", "progressive"])
@pytest.mark.parametrize("cut", [2, 30, 0.5, 0.95])
def test_a_cut_jpeg_is_refused(name, cut):
    data = JPEGS[name]
    with pytest.raises(ValueError):
        decode(data[: cut if cut >= 1 else int(cut * len(data))], 3)


def test_a_broken_scan_is_refused():
    """Zeros, then an early end of image, in the middle of the scan: Pillow gives garbage in silence."""
    data = JPEGS["plain"]
    at = len(data) * 2 // 3
    for patch in (b"\xff\xd9", b"\xff\xd0\xff\xd0"):
        with pytest.raises(ValueError):
            decode(data[:at] + patch + data[at + len(patch) :], 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (7, 100)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_slivers_are_refused(kind, size):
    with pytest.raises(decoding.TooSmall, match="side of fewer than 8"):
        decode(encoded(kind, size=size), 3)


def test_transparency_is_laid_on_white():
    clear = Picture.new("RGBA", (9, 9), (10, 20, 30, 0))
    half = Picture.new("LA", (9, 9), (0, 128))
    palette = Picture.new("P", (9, 9), 3)
    palette.putpalette([200, 0, 0] * 256)
    for picture, value, options in (
        (clear, (255, 255, 255), {}),
        (half, (127, 127, 127), {}),
        (palette, (255, 255, 255), {"transparency": 3}),
        (palette, (200, 0, 0), {}),
    ):
        file = io.BytesIO()
        picture.save(file, "PNG", **options)
        assert decode(file.getvalue(), 3)[:, 4, 4].tolist() == list(value)


def test_sixteen_bits_are_scaled():
    file = io.BytesIO()
    levels = np.arange(0, 65536, 810).astype(np.uint16)
    Picture.fromarray(levels.reshape(9, 9)).save(file, "PNG")
    assert decode(file.getvalue(), 1)[0].flatten().tolist() == [round(v / 257) for v in levels.tolist()]


def test_a_name_means_nothing():
    assert torch.equal(decode(encoded("PNG"), 3), decode(encoded("BMP"), 3))
    for data in (b"", b"\xff\xd8", b"\x89PNG\r\n", b"<html></html>", bytes(100)):
        with pytest.raises(ValueError):
            decode(data, 3)
