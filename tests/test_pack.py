"""Packing: the same bytes every time, tars that others read, tars of others read; splits, lists of what is unreadable,
and nothing left behind."""

import errno
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline import progress
from pipeline.data import write
from pipeline.data.reader import read
from pipeline.data.shards import Shards
from pipeline.data.sources import Item, Listing, open_source
from pipeline.data.splits import halves
from pipeline.errors import DataError, Stopped
from pipeline.settings.stages import Pack
from pipeline.stages import pack
from pipeline.views.decode import decode


def picture(seed: int, height: int = 12, width: int = 16, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def tree(root: Path, names: list[str]) -> Path:
    """Image files of these names, each another picture."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed, kind="PNG" if name.endswith("png") else "JPEG"))
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return tree(tmp_path_factory.mktemp("photos"), [f"{c}/{i}.jpg" for c in ("cat", "dog", "owl") for i in range(20)])


def run(source, out: Path, world, **changes):
    out.mkdir(exist_ok=True, parents=True)
    settings = Pack(source=source if isinstance(source, str) else f"folder:{source}", **changes)
    return pack.run(settings, 0, {}, out, world)


def content(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.iterdir() if p.name != progress.NAME)
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_bytes_again_and_for_any_threads(photos, tmp_path, world):
    kept = {"shard_images": 17}
    first = run(photos, tmp_path / "a", world, **kept)
    (photos / "cat/0.jpg").touch()
    again = run(photos, tmp_path / "b", world, threads=2, **kept)
    assert content(tmp_path / "a") == content(tmp_path / "b") and first == again
    assert sorted(content(tmp_path / "a")) == sorted(
        ["bad.jsonl", "manifest.json", "train.npy", "test.npy"]
        + [f"train-{i:06d}.{e}" for i in range(3) for e in ("tar", "idx")]
        + ["test-000000.tar", "test-000000.idx", "train.names", "test.names"]
    )


def test_the_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), open_source(Pack()).listing().items
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(item.load()))) for item in ours])
    assert (pixels == np.round(theirs.images * (255 / 16))).all()
    assert [item.label for item in ours] == theirs.target.tolist()


def test_plain_ustar_of_nobody_at_no_time(photos, tmp_path, world):
    run(photos, tmp_path, world)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, len(m.pax_headers)) for m in members} == {
        (0, 0, 0, "", "", 0o644, 0)
    }
    assert (tmp_path / "train-000000.tar").read_bytes()[257:265] == b"ustar\x0000"
    assert [m.name for m in members[:4]] == ["000000000.jpg", "000000000.cls", "000000001.jpg", "000000001.cls"]


def test_shuffled_over_all_shards(photos, tmp_path, world):
    run(photos, tmp_path, world, shard_images=10)
    shards = Shards.open(tmp_path)
    for k in range(len(shards.shards)):
        assert len(set(shards.table(k)["label"].tolist())) > 1
    assert shards.labels.tolist() != sorted(shards.labels.tolist())


def test_webdataset_reads_what_is_packed(photos, tmp_path, world):
    run(photos, tmp_path, world, shard_images=17)
    pattern = str(tmp_path / "train-{000000..000002}.tar")
    shards = Shards.open(tmp_path)
    seen = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [s["__key__"] for s in seen] == [shards.key(i) for i in range(shards.n)]
    assert [s["jpg"] for s in seen] == [read(shards, i) for i in range(shards.n)]
    assert [int(s["cls"]) for s in seen] == shards.labels.tolist()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Shards as webdataset's own writers make them: PAX headers, labels, a field of no interest."""
    folder = tmp_path_factory.mktemp("wds")
    with webdataset.ShardWriter(str(folder / "x-%03d.tar"), maxcount=7, verbose=0) as sink:
        for i in range(20):
            sink.write({"__key__": f"deep/er/{i:04d}", "jpg": picture(i), "cls": str(i % 3), "json": {"n": i}})
    return folder


def test_tars_of_webdataset_are_packed(written, tmp_path, world):
    run(f"wds:{written}/x-{{000..002}}.tar", tmp_path / "a", world, test=0.0)
    run(f"wds:{written}/x-*.tar", tmp_path / "b", world, test=0.0)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    shards = Shards.open(tmp_path / "a")
    found = {hashlib.sha256(read(shards, i)).hexdigest(): int(shards.labels[i]) for i in range(shards.n)}
    assert found == {hashlib.sha256(picture(i)).hexdigest(): i % 3 for i in range(20)}
    assert shards.classes == ["0", "1", "2"]


def test_a_shard_that_the_braces_name_is_missing(written, tmp_path, world):
    with pytest.raises(DataError, match=r"1 of the files that .* names are missing, the first .*x-003\.tar"):
        run(f"wds:{written}/x-{{000..003}}.tar", tmp_path, world)


def names(source, seed: int = 0, share: float = 0.2):
    return {split: [i.name for i in items] for split, items in halves(source, share, seed).items()}


def test_class_folders_are_split(photos):
    source = open_source(Pack(source=f"folder:{photos}")).listing()
    assert source.classes == ["cat", "dog", "owl"]
    split = names(source)
    assert 0.1 < len(split["test"]) / 60 < 0.3
    assert sorted(split["train"] + split["test"]) == sorted(i.name for i in source.items)
    assert split == names(source) and split != names(source, seed=1)
    assert names(source, share=0.0)["test"] == []


def items(*classes: tuple[str, int]) -> list[Item]:
    """So many images of each class."""
    return [Item(f"{name}/{i}.jpg", None, label, bytes) for label, (name, n) in enumerate(classes) for i in range(n)]


def halves_of(found: list[Item], share: float = 0.2, seed: int = 0) -> dict[str, str]:
    parts = halves(Listing(found, None), share, seed)
    return {item.name: split for split, some in parts.items() for item in some}


@pytest.mark.parametrize("seed", range(3))
def test_images_that_come_or_go_leave_the_others_in_their_split(seed):
    before = halves_of(items(("a", 1000), ("b", 1000)), seed=seed)
    after = halves_of(items(("a", 1300), ("aa", 200), ("b", 1000)), seed=seed)
    fewer = halves_of(items(("a", 400), ("b", 1000)), seed=seed)
    assert {name: after[name] for name in before} == before and len(after) == 2500
    assert {name: before[name] for name in fewer} == fewer
    for split in (before, after):  # within four deviations of the share
        share = sum(part == "test" for part in split.values()) / len(split)
        assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(split)) ** 0.5
    assert before != halves_of(items(("a", 1000), ("b", 1000)), seed=seed + 1)


def test_every_class_is_trained_on():
    found = halves_of(items(*((f"c{k}", 1) for k in range(40)), *((f"d{k}", 2) for k in range(200))))
    assert {name.split("/")[0] for name, part in found.items() if part == "train"} == {
        *(f"c{k}" for k in range(40)), *(f"d{k}" for k in range(200))
    }  # fmt: skip
    assert sum(part == "test" for part in found.values()) > 40
    assert set(halves_of(items(("a", 9)), share=0.0).values()) == {"train"}
    assert set(halves_of(items(("a", 9)), share=1.0).values()) == {"test"}


def test_the_digits_are_split_exactly():
    """No digit will ever come or go: of each class a fifth."""
    source = open_source(Pack()).listing()
    parts = halves(source, 0.2, 0)
    assert (len(parts["train"]), len(parts["test"])) == (1438, 359)
    for label in range(10):
        train, test = (sum(i.label == label for i in parts[split]) for split in ("train", "test"))
        assert test == round(0.2 * (train + test))


def test_what_came_went_and_moved_is_said_and_equal_bytes_are_kept_once(photos, tmp_path, world):
    place = tmp_path / "photos"
    shutil.copytree(photos, place)
    first = run(place, tmp_path / "runs/shards-1", world, shard_images=7)
    assert not [line for line in first["said"] if line.startswith("since")]
    shutil.rmtree(place)
    shutil.copytree(photos, place, copy_function=shutil.copyfile)  # other times, the same bytes
    (place / ".DS_Store").write_bytes(b"seen")
    (place / "cat/broken.jpg").write_bytes(b"no image")
    (place / "notes.txt").write_text("of no interest")
    again = run(place, tmp_path / "runs/shards-2", world, shard_images=7)
    assert again["bad"] == 1 and again["fingerprint"] == first["fingerprint"]
    assert again["said"][-1] == f"since {tmp_path}/runs/shards-1: 0 images new, 0 gone, 0 moved to another split"
    for tar in (tmp_path / "runs/shards-2").glob("*.tar"):
        assert tar.samefile(tmp_path / "runs/shards-1" / tar.name)
    (place / "dog/3.jpg").unlink()
    for i in range(5):
        (place / f"owl/new {i}.jpg").write_bytes(picture(100 + i))
    (tmp_path / "runs/shards-x-1").mkdir()  # of another stage
    third = run(place, tmp_path / "runs/shards-3", world, shard_images=7)
    assert third["said"][-1] == f"since {tmp_path}/runs/shards-2: 5 images new, 1 gone, 0 moved to another split"
    assert third["fingerprint"] != first["fingerprint"]
    moved = run(place, tmp_path / "runs/shards-4", world, test=0.5)
    assert moved["said"][-1].startswith(f"since {tmp_path}/runs/shards-3: 0 images new, 0 gone, ")
    assert " 0 moved" not in moved["said"][-1]
    assert len(run(tree(tmp_path / "other", ["a/x.jpg", "a/y.jpg"]), tmp_path / "runs/shards-5", world)["said"]) == 1


def test_a_line_says_what_was_packed_and_what_was_not(tmp_path, world):
    folders = [f"{half}/{c}" for half in ("train", "val") for c in ("cat", "dog")]
    tree(tmp_path / "in", [f"{folder}/{i}.jpg" for folder in folders for i in range(6)])
    tree(tmp_path / "in", [f"test/{i}.jpg" for i in range(3)] + ["train/cat/x.heic", "train/cat/notes.txt"])
    for path in (tmp_path / "in").glob("*/dog/*.jpg"):
        path.write_bytes(b"lost")
    metrics = run(tmp_path / "in", tmp_path / "out", world)
    assert metrics["said"] == [
        "12 images of 2 classes (cat, dog): 6 to train on, 6 to test (train from train/ and test from val/)",
        "left out: .txt files: 1 (train/cat/notes.txt); .heic files: 1 (train/cat/x.heic); in test/: val/ is the test "
        "split: 3 (test/0.jpg, test/1.jpg, test/2.jpg); unreadable images, listed in bad.jsonl: 12 "
        + "({}, …)".format(", ".join(f"{b['image']}: {b['reason']}" for b in bad_rows(tmp_path / "out")[:3])),
        "1 class lost whole, none of its images can be read: dog",
    ]
    assert metrics["left_out"] == {".heic files": 1, ".txt files": 1, "in test/: val/ is the test split": 3}
    assert metrics["bad"] == 12


def bad_rows(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]


def test_a_flat_folder_has_no_classes(tmp_path):
    source = open_source(Pack(source=f"folder:{tree(tmp_path, ['b.jpg', 'a.png', 'c.JPEG'])}")).listing()
    assert source.classes is None and [i.label for i in source.items] == [-1, -1, -1]
    assert [i.name for i in source.items] == ["a.png", "b.jpg", "c.JPEG"]


@pytest.mark.parametrize("folders", [("train", "test"), ("Training", "validation"), ("train", "val")])
def test_given_splits_are_kept(tmp_path, folders):
    train, test = folders
    tree(tmp_path, [f"{train}/x/0.jpg", f"{train}/y/1.jpg", f"{test}/y/2.jpg", f"{test}/z/3.jpg"])
    source = open_source(Pack(source=f"folder:{tmp_path}")).listing()
    assert source.classes == ["x", "y", "z"]
    assert names(source) == {"train": [f"{train}/x/0.jpg", f"{train}/y/1.jpg"],
                             "test": [f"{test}/y/2.jpg", f"{test}/z/3.jpg"]}  # fmt: skip
    assert [i.label for i in source.items] == [0, 1, 1, 2]


def test_hidden_files_are_passed_over(tmp_path):
    tree(tmp_path, ["a/0.jpg", "a/._0.jpg", ".git/x.jpg", "__MACOSX/a/0.jpg", "a/.DS_Store.jpg", ".hidden.jpg"])
    (tmp_path / "a/notes.txt").write_text("no image")
    (tmp_path / "a/Thumbs.db").write_text("no image")
    source = open_source(Pack(source=f"folder:{tmp_path}")).listing()
    assert [i.name for i in source.items] == ["a/0.jpg"] and source.classes == ["a"]


def test_every_unreadable_image_is_listed(tmp_path, world):
    tree(tmp_path / "in", [f"c/{i:02d}.jpg" for i in range(12)])
    whole = picture(0)
    (tmp_path / "in/c/03.jpg").write_bytes(b"")
    (tmp_path / "in/c/05.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/c/07.jpg").write_text("<html>not found</html>")
    metrics = run(tmp_path / "in", tmp_path / "out", world, test=0.0)
    assert metrics["bad"] == 3 and metrics["train_images"] == 9
    rows = [json.loads(line) for line in (tmp_path / "out/bad.jsonl").read_text().splitlines()]
    assert sorted(r["image"] for r in rows) == ["c/03.jpg", "c/05.jpg", "c/07.jpg"]
    assert all(r["reason"] and r["split"] == "train" for r in rows)
    with pytest.raises(DataError, match="more than 2 unreadable images, the first: c/0"):
        run(tmp_path / "in", tmp_path / "out", world, max_bad=2)
    assert content(tmp_path / "out") == {}


def test_large_images_are_shrunk_to_the_short_side(tmp_path, world):
    (tmp_path / "in").mkdir()
    for i, (h, w) in enumerate([(40, 60), (60, 40), (20, 90), (16, 16), (30, 30)]):
        (tmp_path / f"in/{i}.jpg").write_bytes(picture(i, h, w))
    run(tmp_path / "in", tmp_path / "out", world, short_side=20, test=0.0)
    shards = Shards.open(tmp_path / "out")
    shapes = [tuple(decode(read(shards, i), 3).shape[1:]) for i in range(shards.n)]
    assert sorted(shapes) == sorted([(20, 30), (30, 20), (20, 90), (16, 16), (20, 20)])
    untouched = {read(shards, i) for i, s in enumerate(shapes) if s in ((20, 90), (16, 16))}
    assert untouched == {picture(2, 20, 90), picture(3, 16, 16)}


def test_statistics_are_those_of_the_training_pixels(photos, tmp_path, world):
    run(photos, tmp_path, world, shard_images=11)
    shards = Shards.open(tmp_path)
    pixels = np.concatenate([decode(read(shards, i), 3).numpy().reshape(3, -1) for i in range(shards.n)], 1) / 255
    assert np.allclose(shards.manifest["mean"], pixels.mean(1), atol=1e-12)
    assert np.allclose(shards.manifest["std"], pixels.std(1), atol=1e-9)
    assert (shards.manifest["height"], shards.manifest["width"], shards.manifest["channels"]) == (12, 16, 3)


def test_says_how_far_it_is(photos, tmp_path, world, monkeypatch):
    said = []
    monkeypatch.setattr(write, "CHUNK", 20)
    monkeypatch.setattr(progress, "report", lambda out, *report: said.append(report))
    run(photos, tmp_path, world)
    shards = {split: Shards.open(tmp_path, split) for split in ("train", "test")}
    train, test = shards["train"].n, shards["test"].n
    assert 40 < train < 60 and said == [
        *((min(at, train), train, "images", "packing train") for at in range(20, train + 20, 20)),
        *((min(at, test), test, "images", "packing test") for at in range(20, test + 20, 20)),
    ]


@pytest.mark.parametrize("moment", ["disk full", "interrupt", "stop"])
def test_what_stops_it_leaves_nothing(photos, tmp_path, world, monkeypatch, moment):
    error = {"disk full": OSError(errno.ENOSPC, "No space left on device"), "interrupt": KeyboardInterrupt()}
    calls = []

    def add(self, key, image, label):
        calls.append(key)
        if len(calls) == 30:
            raise error[moment]
        return real(self, key, image, label)

    real = write.ShardWriter.add
    monkeypatch.setattr(write, "CHUNK", 20)
    if moment == "stop":
        answers = iter([False, False, True])
        monkeypatch.setattr(world, "stopping", lambda: next(answers))
    else:
        monkeypatch.setattr(write.ShardWriter, "add", add)
    with pytest.raises((OSError, KeyboardInterrupt, Stopped)):
        run(photos, tmp_path / "out", world, shard_images=8)
    assert content(tmp_path / "out") == {}
    monkeypatch.undo()
    run(photos, tmp_path / "out", world, shard_images=8)
    run(photos, tmp_path / "whole", world, shard_images=8)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_a_kill_left_is_swept(photos, tmp_path, world):
    run(photos, tmp_path / "out", world, shard_images=8)
    shutil.copy(tmp_path / "out/train-000000.tar", tmp_path / "out/train-000099.tar")
    (tmp_path / "out/train-000003.tar.part").write_bytes(b"half")
    (tmp_path / "out/manifest.json").unlink()
    run(photos, tmp_path / "out", world, shard_images=8)
    run(photos, tmp_path / "whole", world, shard_images=8)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_packed_shards_are_used_where_they_lie(photos, tmp_path, world):
    run(photos, tmp_path / "a", world, shard_images=20)
    metrics = run(f"shards:{tmp_path / 'a'}", tmp_path / "b", world)
    one, other = (Shards.open(tmp_path / name) for name in "ab")
    assert not list((tmp_path / "b").glob("*.tar")) and metrics["train_images"] == one.n
    assert one.fingerprint == other.fingerprint
    assert [read(one, i) for i in range(one.n)] == [read(other, i) for i in range(one.n)]
    assert one.names == other.names


def test_names_are_those_of_the_files(photos, tmp_path, world):
    run(photos, tmp_path, world, shard_images=7)
    found = []
    for split in ("train", "test"):
        shards = Shards.open(tmp_path, split)
        for i, name in enumerate(shards.names):
            assert read(shards, i) == (photos / name).read_bytes()
            assert shards.classes and shards.classes[shards.labels[i]] == name.split("/")[0]
        found += shards.names
    assert sorted(found) == sorted(f"{c}/{i}.jpg" for c in ("cat", "dog", "owl") for i in range(20))
    shards = Shards.open(tmp_path)
    before, gone = shards.names, [shards.key(3), shards.key(8)]
    (tmp_path / "quarantine.json").write_text(json.dumps({"train-000000.tar": gone[:1], "train-000001.tar": gone[1:]}))
    assert Shards.open(tmp_path).names == [n for i, n in enumerate(before) if i not in (3, 8)]
    (tmp_path / "train.names").unlink()
    (tmp_path / "quarantine.json").unlink()
    assert Shards.open(tmp_path).names[:2] == ["000000000", "000000001"]
