"""How a folder of images is read: links, splits, tables of classes, strays, empty and unreadable folders, runs inside;
what can be read in two ways; and what a line says of it."""

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pipeline import cli
from pipeline.data import layout
from pipeline.data.formats import IMAGES, kind
from pipeline.data.layout import Ambiguous
from pipeline.errors import DataError
from pipeline.settings.data import Splits
from tests.fuzz_layouts import formats, run


def tree(root: Path, *names: str) -> Path:
    """Files of these names, that are not opened; "a/{3}.jpg" are three of them."""
    for name in names:
        before, brace, rest = name.partition("{")
        count, _, after = rest.partition("}")
        for i in range(int(count)) if brace else (None,):
            path = root / (f"{before}{i}{after}" if brace else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"an image")
    return root


def summary(found: layout.Layout) -> dict[tuple[str | None, str | None], int]:
    """Images by split and class."""
    return dict(Counter((e.split, found.classes[e.label] if found.classes and e.label >= 0 else None)
                        for e in found.entries))  # fmt: skip


def read(*args, **settings):
    found = layout.read(*args, **settings)
    assert found.classes is None or found.classes == sorted(found.classes)
    return summary(found), {reason: len(names) for reason, names in found.left_out.items()}


# --------------------------------------------------------------------------------------------------------------- links
def test_links_to_class_folders_are_followed(tmp_path):
    tree(tmp_path, "real/cat/{3}.jpg", "in/dog/{2}.jpg")
    (tmp_path / "in/cat").symlink_to(tmp_path / "real/cat")
    assert read(tmp_path / "in") == ({(None, "cat"): 3, (None, "dog"): 2}, {})


def test_a_folder_that_is_a_link_and_links_inside_links(tmp_path):
    tree(tmp_path, "disk/pets/cat/{3}.jpg", "disk/more/owl/{1}.jpg", "in/dog/{2}.jpg")
    (tmp_path / "disk/pets/owl").symlink_to("../more/owl")
    (tmp_path / "data").symlink_to("disk/pets")
    assert read(tmp_path / "data")[0] == {(None, "cat"): 3, (None, "owl"): 1}


def test_links_in_a_circle_end(tmp_path):
    tree(tmp_path, "a/{2}.jpg", "b/{1}.jpg")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "b/self").symlink_to("self")
    (tmp_path / "a/b").symlink_to("../b")
    (tmp_path / "b/a").symlink_to("../a")
    counts, left = read(tmp_path)
    # each real folder once on a path: a, a/b, b, b/a
    assert counts == {(None, "a"): 3, (None, "b"): 3}
    assert left == {"links back to a folder above": 4, "broken links": 2}


# -------------------------------------------------------------------------------------------------------------- splits
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("bus/{3}.jpg", "car/{2}.jpg", "train/{4}.jpg"), {(None, "bus"): 3, (None, "car"): 2, (None, "train"): 4}),
        (("bus/{3}.jpg", "test/{2}.jpg"), {(None, "bus"): 3, (None, "test"): 2}),
        (("train/a/{3}.jpg", "train/b/{2}.jpg"), {(None, "a"): 3, (None, "b"): 2}),
        (("train/a/{3}.jpg", "val/a/{2}.jpg", "test/{5}.jpg"), {("train", "a"): 3, ("test", "a"): 2}),
        (("train/a/{3}.jpg", "val/a/{2}.jpg", "test/a/{5}.jpg"), {("train", "a"): 3, ("test", "a"): 5}),
        (("train/a/{3}.jpg", "test/{5}.jpg"), {(None, "a"): 3}),
        (("train/{3}.jpg", "val/{2}.jpg"), {("train", None): 3, ("test", None): 2}),
        (("train/a/{3}.jpg", "val/images/{2}.jpg"), {(None, "a"): 3}),
        (("Train/a/{3}.jpg", "Validation/a/{2}.jpg"), {("train", "a"): 3, ("test", "a"): 2}),
    ],
)
def test_splits_are_known_by_what_stands_beside_them(tmp_path, names, expected):
    assert read(tree(tmp_path, *names))[0] == expected


def test_a_split_that_is_not_taken_is_said(tmp_path):
    found = layout.read(tree(tmp_path, "train/a/{3}.jpg", "val/a/{2}.jpg", "test/{5}.jpg"))
    assert found.parts == {"train": "train/", "test": "val/"}
    assert layout.sentence(found.left_out) == (
        "left out: in test/: val/ is the test split: 5 (test/0.jpg, test/1.jpg, test/2.jpg, …)"
    )
    found = layout.read(tree(tmp_path / "x", "train/a/{3}.jpg", "test/b/{5}.jpg"))
    assert list(found.left_out) == ["in test/: no training class, by folder or table"]


def test_test_classes_that_training_has_not_are_said(tmp_path):
    found = layout.read(tree(tmp_path, "train/a/{3}.jpg", "test/a/{2}.jpg", "test/z/{4}.jpg"))
    assert summary(found) == {("train", "a"): 3, ("test", "a"): 2, ("test", "z"): 4}
    assert found.notes == ["4 of 6 images of test/ are of 1 class not in train/: z"]


TWO_WAYS = {
    "a split among classes": (("train/a/{2}.jpg", "bus/{2}.jpg"), ("splits: none", "{train: train}")),
    "splits and another folder": (("train/a/{2}.jpg", "val/a/{2}.jpg", "extra/{9}.jpg"),
                                  ("{train: train, test: val}",)),
    "images beside splits": (("train/a/{2}.jpg", "val/a/{2}.jpg", "{5}.jpg"), ("splits: none", "test: val}")),
    "held out of nothing": (("val/a/{2}.jpg", "test/a/{2}.jpg"), ("splits: none",)),
    "two training splits": (("train/a/{2}.jpg", "training/a/{2}.jpg"), ("splits: none",)),
    "splits inside classes": (("cat/train/{2}.jpg", "cat/test/{2}.jpg", "dog/train/{2}.jpg", "dog/test/{2}.jpg"),
                              ("classes: folders", "classes: none")),
    "one folder around all": (("images/cat/{2}.jpg", "images/dog/{2}.jpg"),
                              ("classes: folders", "or name the folder")),
    "as many beside as in folders": (("{5}.jpg", "old/{5}.jpg"), ("classes: folders", "classes: none")),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO_WAYS)
def test_what_can_be_read_in_two_ways_is_refused_with_the_setting_that_decides(tmp_path, name):
    names, settings = TWO_WAYS[name]
    tree(tmp_path, *names)
    with pytest.raises(Ambiguous, match="can be read in two ways") as told:
        layout.read(tmp_path)
    assert all(setting in str(told.value) for setting in settings) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("a split among classes", {"splits": "none"}, {(None, "bus"): 2, (None, "train"): 2}),
        ("a split among classes", {"splits": Splits(train="train")}, {(None, "a"): 2}),
        ("splits and another folder", {"splits": Splits(train="train", test="val")},
         {("train", "a"): 2, ("test", "a"): 2}),
        ("held out of nothing", {"splits": Splits(train="val", test="test")}, {("train", "a"): 2, ("test", "a"): 2}),
        ("splits inside classes", {"classes": "folders"}, {(None, "cat"): 4, (None, "dog"): 4}),
        ("one folder around all", {"classes": "none"}, {(None, None): 4}),
        ("one folder around all", {"splits": Splits(train="images")}, {(None, "cat"): 2, (None, "dog"): 2}),
        ("as many beside as in folders", {"classes": "none"}, {(None, None): 10}),
        ("as many beside as in folders", {"classes": "folders"}, {(None, "old"): 5}),
    ],
)  # fmt: skip
def test_settings_decide(tmp_path, name, settings, expected):
    assert read(tree(tmp_path, *TWO_WAYS[name][0]), **settings)[0] == expected


def test_settings_that_name_no_split_say_what_there_is(tmp_path):
    tree(tmp_path, "one/a/{2}.jpg", "two/a/{2}.jpg")
    with pytest.raises(DataError, match=r"splits.test: no images in three/; expected one of one, two"):
        layout.read(tmp_path, splits=Splits(train="one", test="three"))
    with pytest.raises(DataError, match="hold the same images"):
        layout.read(tmp_path, splits=Splits(train="one", test="one/a"))


# -------------------------------------------------------------------------------------------------- classes by a table
TABLES = {
    "Tiny-ImageNet": ("val/val_annotations.txt", "{}.jpg\t{}\t0\t32\t44\t62", "val/images"),
    "Caffe, by number": ("val.txt", "{}.jpg {}", "val"),
    "Kaggle": ("LOC_val_solution.csv", "{},{} 85 1 499 272", "val"),
    "names with spaces": ("val/labels.txt", "{}.jpg {}", "val"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_beside_a_flat_split_names_its_classes(tmp_path, name):
    path, line, folder = TABLES[name]
    tree(tmp_path, "train/n01/images/{2}.jpg", "train/n02/images/{2}.jpg", "test/images/{3}.jpg")
    images = [f"a picture {i}" if "spaces" in name else f"val_{i}" for i in range(4)]
    tree(tmp_path, *(f"{folder}/{image}.jpg" for image in images))
    names = ("0", "1") if "number" in name else ("n01", "n02")
    header = "ImageId,PredictionString\n" if name == "Kaggle" else ""
    rows = [line.format(image, names[i % 2]) for i, image in enumerate(images)]
    (tmp_path / path).write_text(header + "\n".join(rows) + "\n")
    found = layout.read(tmp_path)
    assert found.parts == {"train": "train/", "test": f"val/ with the classes of {path}"}
    assert summary(found) == {("train", "n01"): 2, ("train", "n02"): 2, ("test", "n01"): 2, ("test", "n02"): 2}
    assert {e.file.parts[-1]: e.label for e in found.entries if e.split == "test"} == {
        f"{image}.jpg": i % 2 for i, image in enumerate(images)
    }
    assert not any("txt" in reason or "csv" in reason for reason in found.left_out)
    (tmp_path / path).write_text("\n".join(rows[:3]) + "\n")
    with pytest.raises(DataError, match="for 3 of 4 images"):
        layout.read(tmp_path)


def test_numbers_that_begin_with_one_name_no_class(tmp_path):
    """As in ILSVRC2012_validation_ground_truth.txt, whose order is not that of the folders."""
    tree(tmp_path, "train/n01/{2}.jpg", "train/n02/{2}.jpg", "val/{4}.jpg")
    (tmp_path / "val.txt").write_text("\n".join(f"{i}.jpg {1 + i % 2}" for i in range(4)))
    assert read(tmp_path)[0] == {(None, "n01"): 2, (None, "n02"): 2}
    tree(tmp_path, "train/n03/{2}.jpg")  # of which no image is in the table: 1 and 2 could be the last two
    assert read(tmp_path)[0] == {(None, "n01"): 2, (None, "n02"): 2, (None, "n03"): 2}


# ------------------------------------------------------------------------------------------------------------ left out
def test_strays_beside_class_folders_are_left_out_and_named(tmp_path):
    found = layout.read(tree(tmp_path, "a/{10}.jpg", "b/{10}.jpg", "cover.jpg"))
    assert summary(found) == {(None, "a"): 10, (None, "b"): 10}
    assert found.left_out == {"beside the class folders of the folder": ["cover.jpg"]}
    tree(tmp_path / "x", "train/a/{20}.jpg", "val/a/{20}.jpg", "train/x.jpg", "val/y.jpg", "z.jpg")
    found = layout.read(tmp_path / "x")
    assert {n for names in found.left_out.values() for n in names} == {"train/x.jpg", "val/y.jpg", "z.jpg"}


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_an_empty_folder_moves_no_label(tmp_path, name):
    tree(tmp_path, "b/{2}.jpg", "c/{2}.jpg")
    before = [(e.file.name, e.label) for e in layout.read(tmp_path).entries]
    (tmp_path / name / "deeper").mkdir(parents=True)
    found = layout.read(tmp_path)
    assert [(e.file.name, e.label) for e in found.entries] == before and found.classes == ["b", "c"]
    assert found.left_out == {"folders without images": [name]}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
@pytest.mark.parametrize("name", ["secret", "lost+found", "a/inner"])
def test_folders_that_may_not_be_read_are_passed_over_and_said(tmp_path, name):
    tree(tmp_path, "a/{2}.jpg", "b/{2}.jpg", f"{name}/x.jpg")
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path != Path("/") and path.name.startswith(("pytest", "popen")):
            path.chmod(0o755)
    tmp_path.chmod(0o755)
    (tmp_path / name).chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            list((tmp_path / name).iterdir())
        found = layout.read(tmp_path)
    finally:
        os.seteuid(0)
    assert summary(found) == {(None, "a"): 2, (None, "b"): 2}
    reason = "hidden or a system's own" if name == "lost+found" else "folders that cannot be read"
    assert found.left_out[reason] == [name]


@pytest.mark.parametrize("record", ["artifact.json", "begun.json"])
def test_runs_inside_the_source_are_passed_over(tmp_path, record):
    tree(tmp_path, "a/{2}.jpg", "b/{2}.jpg", "runs/x.png", "old/moco-1/x.png", f"old/moco-1/{record}")
    found = layout.read(tmp_path, tmp_path / "runs")
    assert summary(found) == {(None, "a"): 2, (None, "b"): 2}
    assert found.left_out == {"run folders": ["old/moco-1", "runs"], "folders without images": ["old"]}


def test_runs_beside_the_images_are_no_class(tmp_path):
    """The root and the source are one folder."""
    tree(tmp_path, "a/{2}.jpg", "b/{2}.jpg", "shards-1/begun.json", "shards-1/x.png")
    assert read(tmp_path, tmp_path)[0] == {(None, "a"): 2, (None, "b"): 2}


def test_what_is_no_image_is_counted_by_kind(tmp_path):
    tree(tmp_path, "a/{2}.jpg", "a/{3}.heic", "a/README", "a/.hidden", "a/x.HEIC", "Thumbs.db")
    (tmp_path / "a/gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    counts, left = read(tmp_path)
    assert counts == {(None, "a"): 2}
    assert left == {".heic files": 4, "files without extension": 1, "hidden or a system's own": 2, "broken links": 1,
                    "no regular files": 1}  # fmt: skip


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    tree(tmp_path, "a/{2}.heic", "b/{2}.mp4")
    with pytest.raises(DataError, match=r"no images in it; left out: .heic files: 2 .*; .mp4 files: 2"):
        layout.read(tmp_path)


def test_names_of_any_bytes_are_said_on_one_line(tmp_path):
    name = os.fsdecode(b"caf\xe9\n\x1b[31m")
    tree(tmp_path, "a/{2}.jpg", f"a/{name}.txt")
    told = layout.sentence(layout.read(tmp_path).left_out)
    assert told.isprintable() and r"caf\\xe9\n\x1b[31m" in told


# ------------------------------------------------------------------------------------------------------------- formats
def test_images_are_what_pillow_decodes_by_itself():
    Image.init()
    known = {ext.removeprefix("."): name for ext, name in Image.registered_extensions().items()}
    opened = {ext for ext, name in known.items() if name in Image.OPEN or name == "MPO"}
    without = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
    assert {ext for ext in opened if known[ext] not in without} == IMAGES


def test_every_format_is_packed_under_an_extension_that_readers_know():
    for ext, data in formats().items():
        found = kind(data, f"x.{ext}")
        assert found in IMAGES and len(found) <= 4, ext
    assert {kind(formats()[e], "x") for e in ("jfif", "jpe", "jpg")} == {"jpg"}
    assert [kind(formats()[e], "x.png") for e in ("avif", "jp2", "webp", "gif", "bmp", "tiff")] == [
        "avif", "jp2", "webp", "gif", "bmp", "tif"
    ]  # fmt: skip


def test_check_reads_a_folder_as_packing_does(tmp_path, capsys):
    tree(tmp_path, "a/broken.jpg", "a/notes.txt")
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(formats()["png"])
    assert cli.main(["check", str(tmp_path)]) == 65
    told = capsys.readouterr()
    left, broken = told.out.splitlines()
    assert left == "left out: .txt files: 1 (a/notes.txt)" and broken == "a/broken.jpg: undecodable: not an image"
    assert told.err == f"{tmp_path}: 1 problems\n"
    (tmp_path / "a/broken.jpg").unlink()
    assert cli.main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}: every image can be read"
    tree(tmp_path, "train/a/1.png")
    assert cli.main(["check", str(tmp_path)]) == 65 and "in two ways" in capsys.readouterr().err


def test_random_folders_are_read_as_a_slow_reading_has_them():
    """`python -m tests.fuzz_layouts --n 500` is more of it."""
    told = run(24, 0)
    assert sum(told.values()) == 24 and len(told) > 5 and told["refused"]
