"""Damage to packed shards: refused at the start, replaced by rule and written down, or stopped with a line; and the
same samples whatever ranks, threads and kills there are."""

import errno
import hashlib
import io
import json
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import cli
from pipeline.data import faults, reader
from pipeline.data.faults import FORGIVEN, BadSampleLog, await_batch, fault
from pipeline.data.images import images
from pipeline.data.loader import Loader
from pipeline.data.reader import BadSample, read, read_many
from pipeline.data.shards import Shards, fingerprint
from pipeline.data.sources import Item
from pipeline.data.write import examine
from pipeline.errors import DataError, NoProgressError, Stopped
from pipeline.settings.data import CifarViews
from pipeline.settings.nets import CNN
from pipeline.settings.objectives import Head, Inputs, MoCo
from pipeline.settings.stages import Pretrain
from pipeline.stages import pretrain
from pipeline.views import transforms
from pipeline.world import World
from tests.fuzz_shards import fuzz
from tests.test_pack import picture, run, tree


@pytest.fixture(scope="module")
def packed(tmp_path_factory, world) -> Path:
    """97 JPEGs of two sizes in shards of 25, two classes, no test split."""
    root = tmp_path_factory.mktemp("faults")
    for i in range(97):
        path = root / f"in/{i % 2}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, 20 + i % 2 * 5, 24))
    run(root / "in", root / "set", world, shard_images=25, test=0.0)
    return root / "set"


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    shutil.copytree(packed, tmp_path / "set")
    return tmp_path / "set"


def row(folder: Path, sample: int) -> tuple[Path, int, int]:
    shards = Shards.open(folder, check=False)
    k, found = shards.row(sample)
    return folder / shards.name(k), int(found["offset"]), int(found["size"])


def damage(folder: Path, sample: int, body: bytes = b"\0\1\2\3", at: int = 40) -> None:
    path, offset, _ = row(folder, sample)
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(body)


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


# ------------------------------------------------------------------------------------------------- refused at a start
def remove(name):
    return lambda folder: (folder / name).unlink()


def edit(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def manifest(change):
    def apply(folder):
        body = json.loads((folder / "manifest.json").read_text())
        change(body)
        body["fingerprint"] = fingerprint(body)
        (folder / "manifest.json").write_text(json.dumps(body))

    return apply


AT_START = {
    "a missing shard": (remove("train-000001.tar"), r"train-000001.tar: this shard is missing"),
    "a missing index": (remove("train-000002.idx"), r"train-000002.idx: this index of a shard is missing"),
    "a missing table": (remove("train.npy"), r"train.npy: missing; these are no packed shards"),
    "a missing manifest": (remove("manifest.json"), r"manifest.json: missing; these are no packed shards"),
    "a shard cut at a boundary": (edit("train-000000.tar", lambda b: b[:10240]), r"10240 bytes, \d+ were written"),
    "a shard cut inside": (edit("train-000000.tar", lambda b: b[:-700]), "this shard was altered or cut"),
    "a shard that grew": (edit("train-000000.tar", lambda b: b + bytes(512)), "this shard was altered or cut"),
    "an empty shard": (edit("train-000003.tar", lambda b: b""), "0 bytes, "),
    "an index that was cut": (edit("train-000000.idx", lambda b: b[:-1]), "this index of a shard was altered or cut"),
    "a table that was changed": (edit("train.npy", lambda b: b[:-1] + b"\7"), "not the table that the manifest names"),
    "a manifest that is none": (edit("manifest.json", lambda b: b"{"), "not a manifest of packed shards"),
    "a manifest of nothing": (edit("manifest.json", lambda b: b"[]"), "not a manifest of packed shards"),
    "an older manifest": (manifest(lambda m: m.update(version=1)), "version 1, expected 3: pack again"),
    "an altered manifest": (edit("manifest.json", lambda b: b.replace(b"channels", b"canals")), "altered since"),
    "no such split": (manifest(lambda m: m["splits"].pop("train")), "no split 'train', only test"),
    "a broken quarantine": (lambda f: (f / "quarantine.json").write_text("?"), "not a list of images by shard"),
}


@pytest.mark.parametrize("name", AT_START)
def test_refused_at_the_start(copy, name):
    apply, words = AT_START[name]
    apply(copy)
    with pytest.raises(DataError, match=words):
        Shards.open(copy)


def test_an_index_whose_bytes_changed_is_refused_when_it_is_read(copy):
    edit("train-000001.idx", lambda b: bytes([b[0] ^ 1]) + b[1:])(copy)
    with pytest.raises(DataError, match=r"train-000001.idx: not the index that was written with its shard"):
        read(Shards.open(copy), 30)


# ------------------------------------------------------------------------------------------- found when they are read
def test_what_is_altered_or_short_is_no_sample(copy):
    shards = Shards.open(copy)
    whole = [read(shards, i) for i in range(shards.n)]
    damage(copy, 3)
    damage(copy, 30, whole[30][40:41].swapcase() if whole[30][40:41].isalpha() else bytes([whole[30][40] ^ 128]))
    path, offset, size = row(copy, 96)
    cut(path, offset + size - 5)
    shards = Shards.open(copy, check=False)
    for sample, kind in ((3, "altered"), (30, "altered"), (96, "short")):
        with pytest.raises(BadSample) as caught:
            read(shards, sample)
        assert caught.value.kind == kind
    ids = np.random.default_rng(0).permutation(shards.n)
    for sample, data in zip(ids.tolist(), read_many(shards, ids), strict=True):
        assert data == whole[sample] if sample not in (3, 30, 96) else isinstance(data, BadSample)


class Flaky:
    """A folder whose reads fail so many times before they succeed."""

    def __init__(self, real, failures: int, number: int):
        self.real, self.left, self.number, self.forgotten = real, failures, number, 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def read(self, name, offset, size):
        if self.left:
            self.left -= 1
            raise OSError(self.number, "away")
        return self.real.read(name, offset, size)

    def read_all(self, wanted):
        if self.left:
            raise OSError(self.number, "away")
        return self.real.read_all(wanted)

    def forget(self, name):
        self.forgotten += 1
        self.real.forget(name)


@pytest.fixture
def no_pauses(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(reader.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(reader.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    return clock


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_read_that_heals_gives_the_same_sample(packed, no_pauses, number):
    shards = Shards.open(packed)
    ids = np.array([5, 90, 3])
    whole = [read(shards, i) for i in ids]
    shards.tars = Flaky(shards.tars, 7, number)
    assert read(shards, 5) == whole[0] and shards.tars.forgotten == 7 and 0 < no_pauses[0] < 60
    shards.tars = Flaky(Shards.open(packed).tars, 7, number)
    assert read_many(shards, ids) == whole and shards.tars.forgotten == 7


def test_a_disk_that_stays_gone_stops_within_a_minute(packed, no_pauses):
    shards = Shards.open(packed)
    shards.tars = Flaky(shards.tars, 10**9, errno.EIO)
    with pytest.raises(DataError, match=r"train-000000.tar: away; the same command goes on once it can be read"):
        read(shards, 5)
    assert 59 <= no_pauses[0] <= 61


def test_what_cannot_heal_is_not_waited_for(packed, no_pauses):
    shards = Shards.open(packed)
    shards.tars = Flaky(shards.tars, 10**9, errno.EACCES)
    with pytest.raises(DataError, match="away"):
        read(shards, 5)
    assert no_pauses[0] == 0


# ----------------------------------------------------------------------------------------------------- broken images
def image(kind: str, size=(16, 12), mode="RGB", **options) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


JPEG, PNG = picture(7, 64, 64), image("PNG", (64, 64))
SOF = JPEG.index(b"\xff\xc0")


def png_header(width: int, height: int) -> bytes:
    import zlib

    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return PNG[:8] + (13).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + PNG[33:]


BROKEN_IMAGES = {
    "zero bytes": b"",
    "one byte": b"\xff",
    "only zeros": bytes(2000),
    "random bytes": random.Random(0).randbytes(3000),
    "text": b"404 not found",
    "HTML named jpg": b"<!DOCTYPE html><html>",
    "JSON": b'{"error": 1}',
    "a tar": (b"a.jpg" + bytes(507)) * 3,
    "a ZIP": b"PK\3\4" + bytes(100),
    "a JPEG's first bytes": JPEG[:2],
    "a JPEG cut in its header": JPEG[:300],
    "a JPEG cut in its scan": JPEG[: len(JPEG) // 2],
    "a JPEG cut by a hundred bytes": JPEG[:-100],
    "a JPEG without tables": JPEG[:SOF] + JPEG[SOF + 19 :],
    "a JPEG of no components": JPEG[: SOF + 9] + b"\0" + JPEG[SOF + 10 :],
    "a JPEG of no height": JPEG[: SOF + 5] + b"\0\0\0\0" + JPEG[SOF + 9 :],
    "a PNG cut in its data": PNG[: len(PNG) // 2],
    "a PNG with a wrong checksum": PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
    "a PNG of 65,000 x 65,000": png_header(65000, 65000),
    "a PNG of no width": png_header(0, 64),
    "a GIF cut short": image("GIF")[:40],
    "a BMP cut short": image("BMP")[:100],
    "a WebP cut short": image("WEBP")[:30],
    "a TIFF cut short": image("TIFF")[:20],
}


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_broken_images_are_listed_with_a_word(name):
    found = examine(Item("x", None, -1, lambda: BROKEN_IMAGES[name]), None)
    assert isinstance(found, str) and 0 < len(found) < 200 and "\n" not in found


WHOLE_IMAGES = {
    "PNG named jpg": PNG,
    "grey": image("JPEG", mode="L"),
    "CMYK": image("JPEG", mode="CMYK"),
    "palette": image("PNG", mode="P"),
    "alpha": image("PNG", mode="RGBA"),
    "one bit": image("PNG", mode="1"),
    "thirty-two bits": image("TIFF", mode="I"),
    "progressive": image("JPEG", progressive=True),
    "WebP": image("WEBP"),
    "GIF": image("GIF"),
    "trailing bytes": JPEG + b"trailing",
}


@pytest.mark.parametrize("name", WHOLE_IMAGES)
def test_unusual_images_are_read(name):
    found = examine(Item("x", None, -1, lambda: WHOLE_IMAGES[name]), None)
    assert not isinstance(found, str), found


# ----------------------------------------------------------------------------------------------------------- training
def loader(folder: Path, *, steps: int = 6, size: int = 1, rank: int = 0, **changes) -> Loader:
    changes = {"max_bad_share": 0.2} | changes
    shards = Shards.open(folder, check=False)
    settings = CifarViews(size=16)
    transform = transforms.build(Inputs(), (settings,), shards.image(16), 3)
    return Loader(shards, transform, batch=48, seed=3, total_steps=steps, rank=rank, size=size, **changes)


def samples(ranks: list[Loader], start: int, stop: int) -> list[bytes]:
    """SHA-256 of (position, id, parameters, views) of every sample of steps start to stop, in order of position."""
    streams = [one.steps(start) for one in ranks]
    found = []
    for step in range(start, stop):
        shares = [next(stream) for stream in streams]
        position = step * 48
        for _, epoch, (taken,) in shares:
            params = ranks[0].transform.params(epoch, taken.ids.numpy())
            for i, sample in enumerate(taken.ids.tolist()):
                drawn = [v[i].tobytes() for p in params for v in (p.widths, p.heights, p.corners, p.flips)]
                pixels = [view[i].numpy().tobytes() for view in taken.views]
                body = b"".join([f"{position} {epoch} {sample} ".encode(), *drawn, *pixels])
                found.append(hashlib.sha256(body).digest())
                position += 1
    for one in ranks:
        one.close()
    return found


@pytest.fixture(scope="module")
def damaged(packed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(packed, folder)
    for sample in (3, 41, 90):
        damage(folder, sample)
    return folder


@pytest.fixture(scope="module", params=[None, 2])
def truth(damaged, request) -> tuple[int | None, list[bytes]]:
    """Three epochs by one rank and one thread; with a window of two shards and without."""
    return request.param, samples([loader(damaged, window=request.param)], 0, 6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_the_same_samples_for_any_ranks_and_threads(damaged, truth, size):
    window, expected = truth
    for threads in (0, 1, 4, 7):
        ranks = [loader(damaged, size=size, rank=r, threads=threads, window=window) for r in range(size)]
        assert samples(ranks, 0, 6) == expected


def test_the_same_samples_through_kills_and_other_worlds(damaged, truth):
    """Twenty times abandoned at a random step, going on from a random step at or before it with another world."""
    window, expected = truth
    draw = random.Random(0)
    for _ in range(20):
        start = draw.randrange(6)
        stop, size = draw.randint(start + 1, 6), draw.choice([1, 2, 3, 4, 6, 8])
        ranks = [loader(damaged, size=size, rank=r, threads=draw.choice([1, 3]), window=window) for r in range(size)]
        assert samples(ranks, start, stop) == expected[start * 48 : stop * 48]


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_a_replacement_is_seen_as_itself(held, tmp_path, world):
    """Whether images are decoded anew or held: every view is its own sample's, by its own draws, and none is black."""
    for i in range(60):
        path = tmp_path / f"in/{i % 2}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, 24, 24))
    run(tmp_path / "in", tmp_path / "set", world, shard_images=25, test=0.0)
    shards = Shards.open(tmp_path / "set")
    pixels = images(shards, np.arange(60), 24)
    for sample in (3, 41, 50):
        damage(tmp_path / "set", sample)
    source = loader(tmp_path / "set", bad_samples=tmp_path / "bad.jsonl", memory=held)
    seen = 0
    for _, epoch, (taken,) in source.steps(0):
        for i, sample in enumerate(taken.ids.tolist()):
            params = source.transform.params(epoch, np.array([sample]))
            crops = tuple(torch.empty(1, *shape, dtype=torch.uint8) for shape in source.transform.crop_shapes)
            source.transform.crop(pixels[sample], params, 0, tuple(c[0] for c in crops))
            for view, own in zip(taken.views, source.transform.views(crops, epoch, np.array([sample])), strict=True):
                assert torch.equal(view[i], own[0])
            seen += 1
    source.close()
    assert seen == 6 * 48 and (source.decoded is not None) == bool(held)
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {row["sample"] for row in rows} == {3, 41, 50}


def test_replaced_and_written_down_the_same_after_a_restart(damaged, tmp_path):
    path = tmp_path / "bad-0.jsonl"
    assert len(samples([loader(damaged, bad_samples=path)], 0, 6)) == 6 * 48  # delivered is what was planned, always
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    shards = Shards.open(damaged)
    assert {r["sample"] for r in rows} <= {3, 41, 90} and len(rows) >= 5
    for one in rows:
        assert one["shard"] == shards.name(one["sample"] // 25) and one["key"] == f"{one['sample']:09d}"
        assert one["kind"] == "altered" and one["offset"] == row(damaged, one["sample"])[1]
        assert one["replacement"] not in (3, 41, 90) or any(r["sample"] == one["replacement"] for r in rows)
    whole = path.read_bytes()
    samples([loader(damaged, bad_samples=path)], 4, 6)
    assert path.read_bytes() == whole
    with path.open("a") as file:
        file.write('{"step": 5, "half')  # what a kill left
    samples([loader(damaged, bad_samples=path)], 2, 6)
    assert path.read_bytes() == whole


def test_a_resumed_training_keeps_its_log_and_its_limit(damaged, tmp_path):
    """Through the stage: with the samples of the first start forgotten, eleven in all would be forgiven for ever."""

    def start(name: str, share: float, stop: Callable[[], bool] = lambda: False) -> Path:
        (out := tmp_path / name).mkdir(exist_ok=True)
        settings = Pretrain(
            data="shards", net=CNN(width=4, depth=1), views=(CifarViews(size=16),), snapshots=0, batch=32, steps=24,
            objective=MoCo(queue=32, head=Head(hidden=8, dim=4)), max_bad_share=share, save_steps=1,
        )  # fmt: skip
        pretrain.run(settings, 3, {"shards": damaged}, out, World(threads=1, stop=stop))
        return out / "bad-0.jsonl"

    whole = start("whole", 0.2).read_text()
    at = [json.loads(line)["step"] for line in whole.splitlines()]
    past, half = at[FORGIVEN], at[FORGIVEN // 2] + 1
    assert 0 < half < past  # the eleventh is met after the stop, and fewer than eleven from there on would be forgiven
    asked = iter(range(half + 1))
    with pytest.raises(Stopped):
        start("cut", 0.2, lambda: next(asked) == half)
    assert start("cut", 0.2).read_text() == whole
    asked = iter(range(half + 1))
    with pytest.raises(Stopped):
        start("few", 0.001, lambda: next(asked) == half)
    assert len((tmp_path / "few/bad-0.jsonl").read_text().splitlines()) < FORGIVEN
    with pytest.raises(DataError, match=f"^{FORGIVEN + 1} unreadable samples of {(past + 1) * 32}"):
        start("few", 0.001)


def many(shards: Shards, ids, step: int = 0):
    error = BadSample("altered", "other bytes")
    return [fault(shards, i, error, step=step, epoch=0, position=i, replacement=0) for i in ids]


def test_limits(packed, tmp_path):
    shards = Shards.open(packed)
    bad_samples = BadSampleLog(tmp_path / "bad-0.jsonl", 0, 0.001, shards)
    bad_samples.record(many(shards, [0, 25, 50]), 48, 48)
    with pytest.raises(DataError, match=r"4 unreadable samples in step 1, the last train-000003.tar: 000000075"):
        bad_samples.record(many(shards, [1, 26, 51, 75], 1), 96, 48)
    bad_samples = BadSampleLog(None, 0, 0.001, shards)
    bad_samples.record(many(shards, [0, 1, 2]), 48, 48)
    with pytest.raises(DataError, match=r"4 unreadable samples among the 25 of train-000000.tar"):
        bad_samples.record(many(shards, [3]), 96, 48)
    bad_samples = BadSampleLog(None, 0, 0.001, shards)
    for step in range(FORGIVEN):
        bad_samples.record(many(shards, [0], step), 48, 48)  # one image in ten epochs
    with pytest.raises(DataError, match="11 unreadable samples of 1000"):
        bad_samples.record(many(shards, [0], FORGIVEN), 1000, 48)
    bad_samples = BadSampleLog(None, 0, 0.5, shards)
    bad_samples.record(many(shards, range(12)), 48, 48)


def test_a_batch_that_does_not_come_ends_the_run_with_stacks(capfd, monkeypatch):
    monkeypatch.setattr(faults, "_leave", lambda: None)
    hang = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(hang.wait)
        with pytest.raises(NoProgressError, match="no batch for 0 s: a read hangs"):
            await_batch(stuck, 0.3)
        hang.set()
    assert "Thread 0x" in capfd.readouterr().err


def test_an_error_of_a_thread_is_not_a_hang():
    def fails():
        raise TimeoutError("of the file system")

    with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError, match="of the file system"):
        await_batch(pool.submit(fails), 5)
    with ThreadPoolExecutor(1) as pool:
        assert await_batch(pool.submit(lambda: 7), 5) == 7


# ---------------------------------------------------------------------------------------------------- pipeline check
def test_check_finds_everything_at_once(copy, capsys):
    assert cli.main(["check", str(copy)]) == 0
    damage(copy, 3)
    path, offset, size = row(copy, 60)
    cut(path, offset + size - 5)
    (copy / "train-000001.tar").unlink()
    edit("train-000003.tar", lambda b: b"x" + b[1:])(copy)
    assert cli.main(["check", str(copy)]) == 65
    told = capsys.readouterr()
    lines = told.out.splitlines()[1:]
    assert lines[0] == f"train-000000.tar: {3:09d}: altered: other bytes at byte {row(copy, 3)[1]} than were packed"
    assert lines[1] == "train-000001.tar: missing"
    assert [line.split(": ")[1] for line in lines[2:-1]] == [f"{i:09d}" for i in range(60, 75)]
    assert "no valid header at byte 0" in lines[-1] and "all images whole" in lines[-1]
    assert f"{len(lines)} problems" in told.err


def test_quarantine_leaves_out_and_changes_the_fingerprint(copy, capsys):
    before = Shards.open(copy)
    keep = [read(before, i) for i in range(before.n) if i != 3 and not 25 <= i < 50]
    labels = [int(v) for i, v in enumerate(before.labels) if i != 3 and not 25 <= i < 50]
    damage(copy, 3)
    (copy / "train-000001.tar").unlink()
    assert cli.main(["check", str(copy), "--quarantine"]) == 65
    after = Shards.open(copy)
    assert after.n == 97 - 26 and after.fingerprint != before.fingerprint
    assert [read(after, i) for i in range(after.n)] == keep == read_many(after, np.arange(after.n))
    assert after.labels.tolist() == labels
    assert after.key(3) == f"{4:09d}" and after.key(24) == f"{50:09d}"
    assert cli.main(["check", str(copy)]) == 0
    assert len(samples([loader(copy, steps=1)], 0, 1)) == 48


def test_a_ledger_becomes_a_quarantine(damaged, tmp_path, copy, capsys):
    samples([loader(damaged, bad_samples=tmp_path / "bad-0.jsonl")], 0, 6)
    assert cli.main(["check", str(copy), "--bad-samples", str(tmp_path / "bad-0.jsonl"), "--quarantine"]) == 65
    listed = json.loads((copy / "quarantine.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "bad-0.jsonl").read_text().splitlines()]
    assert sum(len(v) for v in listed.values()) == len({r["key"] for r in rows})


def test_check_wants_shards_or_images(tmp_path, capsys):
    assert cli.main(["check", str(tmp_path / "none")]) == 2
    (tmp_path / "empty").mkdir()
    assert cli.main(["check", str(tmp_path / "empty")]) == 65
    assert "no images in it" in capsys.readouterr().err
    assert cli.main(["check", str(tree(tmp_path / "t", ["a.jpg"]))]) == 0


def test_fifty_shards_damaged_at_random(packed):
    counts = fuzz(packed, 50, 0)
    assert counts["delivered"] > 40 * 97 and counts["replaced"] > 50
