"""Random folders of images, as people have them: what packing says of one is what a slow reading of it counts.

    python -m tests.fuzz_layouts --n 500 [--seed 0]

Links, odd names, splits, tables of labels, strays, broken files, empty classes, runs inside, every format Pillow
writes. The slow reading walks with pathlib, opens with Pillow alone, and knows which layout was built; it shares no
code with the packer. A folder that can be read in two ways has to be refused.
"""

import argparse
import io
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.formats import IMAGES
from pipeline.data.layout import Ambiguous
from pipeline.data.reader import read
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.settings.stages import Pack
from pipeline.stages import pack
from pipeline.world import World

KINDS = ("folders", "folders", "a class called train", "flat", "train", "train and test", "train val test", "tiny",
         "table", "ambiguous")  # fmt: skip
NAMES = ("cat", "dog", "Owl", "a b", "it's", "$HOME", "-rf", "x.jpg", "ünï", "北京", "b#1", "c,d", "[e]", "é\u0301",
         os.fsdecode(b"caf\xe9"), "tab\there", "line\nbreak", "con", "100%")  # fmt: skip
OTHERS = ("notes.txt", "labels.json", "LICENSE", "photo.heic", "clip.mp4", "page.pdf", "raw.CR2")
HIDDEN = (".DS_Store", "._0.jpg", "Thumbs.db", ".hidden.png")


@cache
def formats() -> dict[str, bytes]:
    """An image file by extension, of every format that Pillow writes and reads again."""
    Image.init()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    found = {}
    for ext, name in Image.registered_extensions().items():
        for mode in ("RGB", "L", "P", "1") if name in Image.SAVE else ():
            out = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(out, name)
            except (OSError, ValueError, KeyError, SystemError):
                continue
            if name != "MPO" and not opens(out.getvalue()):
                continue
            found[ext.removeprefix(".")] = out.getvalue()
            break
    return found


def opens(data: bytes) -> bool:
    """Whether Pillow alone reads all of it, and views can be cut from it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return min(image.size) >= 8
    except Exception:
        return False


@dataclass
class Made:
    """A folder, and what its builder knows of it: files that are no images, hidden names, and so on, by reason."""

    root: Path
    kind: str
    draw: random.Random
    classes: list[str] = field(default_factory=list)
    left: Counter = field(default_factory=Counter)
    count: int = 0

    def image(self, folder: Path, at: str = "") -> None:
        """One image file, now and then a broken one, an image under another's name, or a link to one."""
        folder.mkdir(parents=True, exist_ok=True)
        ext = self.draw.choice([e for e in formats() if e in IMAGES])
        data = formats()[ext]
        odd = self.draw.random()
        if odd < 0.04:
            data = self.draw.choice([b"", data[: len(data) // 3], b"<html>404</html>", bytes(100)])
        elif odd < 0.07:
            ext = self.draw.choice(["jpg", "png"])  # its name lies, its bytes tell
        shown = ext.upper() if self.draw.random() < 0.2 else ext
        name = f"{at or self.count:04}{self.draw.choice(['', ' (1)', '.final', 'ß', '$x'])}.{shown}"
        self.count += 1
        if odd > 0.95:
            target = self.root.parent / "elsewhere" / f"{self.count}.{ext}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
            (folder / name).symlink_to(target)
        else:
            (folder / name).write_bytes(data)

    def images(self, folder: Path, most: int = 6) -> None:
        for _ in range(self.draw.randint(1, most)):
            deep = self.draw.random() < 0.15
            self.image(folder / "more" if deep else folder)

    def class_folders(self, folder: Path, most: int = 6) -> None:
        for name in self.classes:
            where = folder / name
            if self.draw.random() < 0.2:
                real = self.root.parent / "elsewhere" / f"class {self.count}"
                self.images(real, most)
                folder.mkdir(parents=True, exist_ok=True)
                where.symlink_to(real, target_is_directory=True)
            else:
                self.images(where, most)


def build(place: Path, draw: random.Random) -> Made:
    root = place / "in"
    root.mkdir(parents=True)
    made = Made(root, draw.choice(KINDS), draw, draw.sample(NAMES, draw.randint(2, 6)))
    held = draw.choice(["test", "val", "Validation", "TEST"])
    if made.kind == "flat":
        for _ in range(draw.randint(2, 20)):
            made.image(root)
    elif made.kind == "folders":
        made.class_folders(root)
    elif made.kind == "a class called train":
        made.classes.append("train")
        for name in made.classes:
            for _ in range(draw.randint(1, 5)):
                made.image(root / name)
    elif made.kind == "ambiguous":
        made.class_folders(root / "train")
        made.images(root / "extra")
    elif made.kind == "tiny":
        for name in made.classes:
            made.images(root / "train" / name / "images")
        made.images(root / "val/images", 10)
        made.images(root / "test/images")
        table(made, root / "val", root / "val/val_annotations.txt", "\t")
    else:
        made.class_folders(root / draw.choice(["train", "Training"]))
        if made.kind == "train and test":
            made.class_folders(root / held, 3)
        if made.kind == "train val test":
            made.class_folders(root / "val", 3)
            made.images(root / "test")
        if made.kind == "table":
            made.images(root / "val", 10)
            table(made, root / "val", root / draw.choice(["val.txt", "LOC_val_solution.csv"]), ",")
    noise(made)
    return made


def table(made: Made, where: Path, path: Path, between: str) -> None:
    """A class for each image below a folder; no class of a name that a table cannot hold."""
    plain = [n for n in made.classes if not re.search(r"[\s,;]", n)] or made.classes
    lines = []
    for file in sorted(p for p in where.rglob("*") if p.is_file() or p.is_symlink()):
        lines.append(os.fsencode(file.name) + between.encode() + os.fsencode(made.draw.choice(plain)))
    path.write_bytes(b"\n".join(lines) + b"\n")


def noise(made: Made) -> None:
    """What lies about beside the images."""
    draw, root = made.draw, made.root
    inner = [p for p in root.rglob("*") if p.is_dir() and not p.is_symlink()] + [root]
    for _ in range(draw.randint(0, 4)):
        name = draw.choice(OTHERS)
        path = draw.choice(inner) / name
        if not path.exists():
            path.write_bytes(b"of no interest")
            ext = name.rpartition(".")[2].lower() if "." in name else ""
            made.left[f".{ext} files" if ext else "files without extension"] += 1
    for _ in range(draw.randint(0, 3)):
        path = draw.choice(inner) / draw.choice(HIDDEN)
        if not path.exists():
            path.write_bytes(b"seen")
            made.left["hidden or a system's own"] += 1
    if draw.random() < 0.2:
        (draw.choice(inner) / "gone.jpg").symlink_to(root / "nowhere.jpg")
        made.left["broken links"] += 1
    if draw.random() < 0.2:
        (draw.choice(inner) / "round and round").symlink_to(root, target_is_directory=True)
        made.left["links back to a folder above"] += 1
    if draw.random() < 0.2:
        os.mkfifo(draw.choice(inner) / "pipe.png")
        made.left["no regular files"] += 1
    if draw.random() < 0.3:
        run = root / "runs"
        (run / "shards-0123abcd").mkdir(parents=True)
        (run / "shards-0123abcd/artifact.json").write_text("{}")
        (run / "picture.png").write_bytes(formats()["png"])
        made.left["run folders"] += 1
    if draw.random() < 0.3 and made.kind == "folders":
        (root / "0 empty").mkdir()
        made.left["folders without images"] += 1


def walk(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """Every image file below a folder as pathlib finds it, links followed, no circle twice."""
    if path.resolve() in above or (path.name == "runs" and path.parent.name == "in"):
        return []
    found = []
    for child in path.iterdir():
        if child.name.startswith(".") or child.name == "Thumbs.db":
            continue
        if child.is_dir():
            found += walk(child, (*above, path.resolve()))
        elif child.is_file() and child.suffix[1:].lower() in IMAGES:
            found.append(child)
    return found


@dataclass
class Truth:
    """A slow reading: the class and the split of each image that can be read, by its path; and how many cannot."""

    images: dict[Path, tuple[str | None, str | None]]
    bad: int
    classes: list[str] | None
    dropped: int


def slow(made: Made) -> Truth:
    found, bad, dropped, classes = {}, 0, 0, set()
    words = {}
    for table in [*made.root.glob("val/*.txt"), *made.root.glob("val.txt"), *made.root.glob("*.csv")]:
        if made.kind in ("tiny", "table") and table.name != "notes.txt":
            for line in table.read_bytes().splitlines():
                file, _, word = line.partition(b"\t" if b"\t" in line and made.kind == "tiny" else b",")
                words[os.fsdecode(file)] = os.fsdecode(word)
    for file in walk(made.root):
        parts = file.relative_to(made.root).parts
        split: str | None = None
        if made.kind == "flat":
            group = None
        elif made.kind in ("folders", "a class called train"):
            group = parts[0]
        else:
            half = parts[0].lower()
            split = "train" if half in ("train", "training") else "test"
            if half == "test" and made.kind in ("tiny", "train val test"):
                dropped += 1
                continue
            group = words[parts[-1]] if split == "test" and made.kind in ("tiny", "table") else parts[1]
            split = None if made.kind == "train" else split
        if group:
            classes.add(group)
        if opens(file.read_bytes()):
            found[file] = group, split
        else:
            bad += 1
    return Truth(found, bad, sorted(classes) or None, dropped)


def one(place: Path, draw: random.Random, world: World) -> str:
    """Builds a folder, packs it, and compares with the slow reading -> what became of it."""
    made = build(place, draw)
    settings = Pack(source=f"folder:{made.root}", shard_images=draw.choice([3, 4096]), max_bad=1000)
    out = made.root / "runs/shards-89abcdef" if (made.root / "runs").exists() else place / "runs/shards-89abcdef"
    out.mkdir(parents=True, exist_ok=True)
    if made.kind == "ambiguous":
        try:
            pack.run(settings, 0, {}, out, world)
        except Ambiguous as error:
            assert "splits: none" in str(error) and "{train: train}" in str(error), error
            return "refused"
        raise AssertionError("read in one of two ways without a word")
    truth = slow(made)
    try:
        metrics = pack.run(settings, 0, {}, out, world)
    except DataError as error:
        assert not isinstance(error, Ambiguous), error
        assert "no readable image" in str(error) and len(truth.images) < 10, error
        return "nothing to train on"
    said = re.match(r"([\d,]+) images? (?:of (\d+) class(?:es)? \(|unlabelled)", metrics["said"][0])
    assert said and int(said[1]) == len(truth.images), (metrics["said"], len(truth.images))
    assert int(said[2] or 0) == len(truth.classes or []), (metrics["said"], truth.classes)
    assert metrics["bad"] == truth.bad, (metrics["bad"], truth.bad)
    left = {k: v for k, v in metrics["left_out"].items() if not k.startswith("in ")}
    assert left == dict(made.left), (left, made.left)
    assert sum(v for k, v in metrics["left_out"].items() if k.startswith("in ")) == truth.dropped
    lines = "\n".join(metrics["said"])
    assert all(f"{reason}: {count}" in lines for reason, count in metrics["left_out"].items()), lines
    assert not truth.bad or f"unreadable images, listed in bad.jsonl: {truth.bad}" in lines, lines
    assert lines.isprintable() or lines.replace("\n", "").isprintable()
    seen: dict[Path, int] = {}
    for split in ("train", "test"):
        shards = Shards.open(out, split)
        assert shards.classes == truth.classes, (shards.classes, truth.classes)
        for i, name in enumerate(shards.names):
            path = made.root / name
            group, half = truth.images[path]
            assert half in (None, split), (name, half, split)
            label = int(shards.labels[i])
            assert (shards.classes[label] if label >= 0 and shards.classes else None) == group, (name, label, group)
            assert read(shards, i) == path.read_bytes(), name
            seen[path] = i
    assert seen.keys() == truth.images.keys()
    return made.kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(run(options.n, options.seed))


def run(n: int, seed: int) -> Counter:
    """``n`` folders; the first that disagrees is left where it is, and named."""
    told, world = Counter(), World(threads=1)
    for k in range(seed, seed + n):
        place = Path(tempfile.mkdtemp(prefix="layout-"))
        try:
            told[one(place, random.Random(k), world)] += 1
        except Exception as error:
            raise AssertionError(f"layout {k}, in {place}: {type(error).__name__}: {error}") from error
        shutil.rmtree(place)
    return told


if __name__ == "__main__":
    main()
