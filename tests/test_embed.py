"""Features of any images as Parquet: every row with its name, split and class; the unreadable left out and said."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from pyarrow import parquet

from pipeline import cli
from pipeline.data.images import images
from pipeline.data.shards import Shards
from pipeline.data.sources.base import png
from pipeline.evaluation import embed, encoders
from pipeline.image import Image
from pipeline.settings.nets import CNN
from tests.test_exports import trained

READS = """
import sys, numpy, pyarrow.parquet
table = pyarrow.parquet.read_table(sys.argv[1])
numpy.save(sys.argv[2], numpy.stack(table["features"].to_numpy(zero_copy_only=False)))
print(table.num_rows, table.column_names, table["label"][3].as_py(), sorted(table.schema.metadata))
assert "torch" not in sys.modules
"""


def test_embedded_shards_are_the_encoders_features(digits, tmp_path):
    encoder = trained(tmp_path / "run", CNN(width=8), Image(1, 8, (0.5,), (0.2,)))
    out = tmp_path / "f.parquet"
    assert cli.main(["embed", str(tmp_path / "run"), str(digits), str(out)]) == 0
    done = subprocess.run([sys.executable, "-I", "-c", READS, str(out), str(tmp_path / "f.npy")], capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards = Shards.open(digits, "train")
    said = f"1797 ['name', 'split', 'label', 'class', 'features'] {shards.labels[3]} [b'encoder', b'key', b'spec']"
    assert done.stdout.strip() == said
    rows = torch.from_numpy(np.load(tmp_path / "f.npy"))
    torch.testing.assert_close(rows[:300], encoder(images(shards, np.arange(300), 8)), rtol=0, atol=1e-5)


@pytest.fixture
def encoder(tmp_path) -> encoders.Encoder:
    return trained(tmp_path / "run", CNN(width=8), Image(3, 16, (0.5,) * 3, (0.2,) * 3))


def photos(folder: Path, *names: str) -> list[torch.Tensor]:
    """Small PNGs of given names -> their pixels."""
    made = []
    for i, name in enumerate(names):
        one = torch.from_numpy(np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(one.numpy()))
        made.append(one)
    return made


def written(tmp_path: Path, *words: str) -> dict[str, list]:
    """The columns that the command writes for tmp_path/photos, but for the features."""
    out = tmp_path / "f.parquet"
    assert cli.main(["embed", str(tmp_path / "run"), str(tmp_path / "photos"), str(out), *words]) == 0
    return parquet.read_table(out).drop(["features"]).to_pydict()


def test_names_and_classes_of_a_folder(encoder, tmp_path):
    photos(tmp_path / "photos", "a/x.png", "b c/y #1.png", "b c/deep/z.png")
    assert written(tmp_path) == {
        "name": ["a/x.png", "b c/deep/z.png", "b c/y #1.png"], "split": [""] * 3, "label": [0, 1, 1],
        "class": ["a", "b c", "b c"],
    }  # fmt: skip
    photos(tmp_path / "flat", "x.png")
    out = tmp_path / "g.parquet"
    assert cli.main(["embed", str(tmp_path / "run"), str(tmp_path / "flat"), str(out)]) == 0
    assert parquet.read_table(out).drop(["features"]).to_pylist() == [
        {"name": "x.png", "split": "", "label": -1, "class": None}
    ]


@pytest.mark.parametrize("rows", [1, 3, 4, 256])
def test_every_row_has_its_split_wherever_a_chunk_ends(encoder, tmp_path, rows, monkeypatch):
    photos(tmp_path / "photos", *(f"train/a/{i}.png" for i in range(5)), *(f"test/a/{i}.png" for i in range(4)))
    monkeypatch.setattr(embed, "ROWS", rows)
    found = written(tmp_path)
    assert sorted(zip(found["name"], found["split"], strict=True)) == [
        *((f"test/a/{i}.png", "test") for i in range(4)), *((f"train/a/{i}.png", "train") for i in range(5))
    ]  # fmt: skip
    table = parquet.read_table(tmp_path / "f.parquet")
    features = torch.tensor(table["features"].to_pylist())
    shutil.rmtree(tmp_path / "photos/test")  # alone, each has the features that it has among others
    (tmp_path / "photos/train/a/4.png").rename(tmp_path / "photos/4.png")
    shutil.rmtree(tmp_path / "photos/train")
    alone = written(tmp_path)
    assert alone["name"] == ["4.png"]
    again = torch.tensor(parquet.read_table(tmp_path / "f.parquet")["features"].to_pylist())
    torch.testing.assert_close(again[0], features[found["name"].index("train/a/4.png")], rtol=0, atol=1e-5)


def test_unreadable_images_are_left_out_and_listed(encoder, tmp_path, capsys):
    photos(tmp_path / "photos", *(f"a/{i}.png" for i in range(4)))
    for name in ("a/1.png", "b/none.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"none")
    assert written(tmp_path)["name"] == ["a/0.png", "a/2.png", "a/3.png"]
    said, bad_samples = capsys.readouterr().out, tmp_path / "f.bad.jsonl"
    assert f"left out, and listed in {bad_samples}: 2 unreadable images, the first a/1.png" in said
    assert "features of 3 images" in said
    listed = [json.loads(line) for line in bad_samples.read_text().splitlines()]
    assert listed == [{"image": name, "reason": "not an image"} for name in ("a/1.png", "b/none.jpg")]
    (tmp_path / "f.parquet").unlink()
    words = ["embed", str(tmp_path / "run"), str(tmp_path / "photos"), str(tmp_path / "f.parquet")]
    assert cli.main([*words, "--max-bad", "1"]) == 65
    assert "more than 1 unreadable image," in capsys.readouterr().err and not list(tmp_path.glob("*f.parquet*"))
    shutil.rmtree(tmp_path / "photos/b")
    photos(tmp_path / "photos", "a/1.png")
    written(tmp_path)
    assert not bad_samples.exists()
    for path in (tmp_path / "photos/a").iterdir():
        path.write_bytes(b"")
    assert cli.main(words) == 65 and "none of 4 images can be read" in capsys.readouterr().err


def test_a_class_that_cannot_be_read_is_named_and_the_others_keep_their_labels(encoder, tmp_path, capsys):
    """By the line that packing says, from the folder and with the same labels as its other images have."""
    photos(tmp_path / "photos", *(f"{group}/{i}.png" for group in "abc" for i in range(2)))
    for path in (tmp_path / "photos/b").iterdir():
        path.write_bytes(b"none")
    found = written(tmp_path)
    assert [(found["class"][i], found["label"][i]) for i in range(4)] == [("a", 0), ("a", 0), ("c", 2), ("c", 2)]
    assert "1 class lost whole, none of its images can be read: b" in capsys.readouterr().out
    (tmp_path / "photos/b/1.png").unlink()
    photos(tmp_path / "photos", "b/1.png")
    assert written(tmp_path)["class"] == ["a", "a", "b", "c", "c"]
    said = capsys.readouterr().out
    assert "1 unreadable image, the first b/0.png" in said and "lost whole" not in said


def test_a_damaged_shard_loses_its_image_alone(tmp_path, encoder, world, capsys):
    from pipeline.settings.stages import Pack
    from pipeline.stages import pack

    photos(tmp_path / "in", *(f"a/{i}.png" for i in range(5)))
    (tmp_path / "photos").mkdir()
    pack.run(Pack(source=f"folder:{tmp_path / 'in'}", test=0.0), 0, {}, tmp_path / "photos", world)
    path = tmp_path / "photos/train-000000.tar"
    data = bytearray(path.read_bytes())
    data[int(Shards.open(tmp_path / "photos").row(2)[1]["offset"]) + 50] ^= 255
    path.write_bytes(data)
    found = written(tmp_path)
    assert len(found["name"]) == 4 and found["class"] == ["a"] * 4 and found["split"] == ["train"] * 4
    assert ": 1 unreadable image, the first" in capsys.readouterr().out


def test_colour_shards_for_a_grey_encoder(tmp_path, world):
    from pipeline.settings.stages import Pack
    from pipeline.stages import pack

    trained(tmp_path / "run", CNN(width=8), Image(1, 16, (0.5,), (0.2,)))
    photos(tmp_path / "in", "a/0.png", "a/1.png")
    (tmp_path / "photos").mkdir()
    pack.run(Pack(source=f"folder:{tmp_path / 'in'}", test=0.0), 0, {}, tmp_path / "photos", world)
    assert len(written(tmp_path)["name"]) == 2


def test_names_that_are_not_utf_8(encoder, tmp_path):
    photos(tmp_path / "photos", "a/x.png", "b/y.png")
    root = os.fsencode(tmp_path / "photos")
    os.rename(root + b"/a/x.png", root + b"/a/caf\xe9.png")
    os.rename(root + b"/b", root + b"/\xff")
    found = written(tmp_path)
    assert found["name"] == ["a/caf\\xe9.png", "\\xff/y.png"] and found["class"] == ["a", "\\xff"]


def test_a_name_that_promises_another_format_is_refused(encoder, tmp_path, capsys):
    photos(tmp_path / "photos", "a/x.png")
    for name in ("f.csv", "f.npy", "f"):
        words = ["embed", str(tmp_path / "run"), str(tmp_path / "photos"), str(tmp_path / name)]
        assert cli.main(words) == 2 and "ends in .parquet" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_the_encoder_decides_whether_exif_turns_an_image(tmp_path):
    exif = Picture.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "photos/x.png", exif=exif)
    for upright in (True, False):
        encoder = trained(tmp_path / "run", CNN(width=8), Image(3, 16, (0.5,) * 3, (0.2,) * 3, upright))
        written(tmp_path)
        features = torch.tensor(parquet.read_table(tmp_path / "f.parquet")["features"].to_pylist())
        seen = np.ascontiguousarray(np.rot90(pixels, -1) if upright else pixels)
        expected = encoder(torch.from_numpy(seen).permute(2, 0, 1)[None])
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_folders_may_be_strings(encoder, tmp_path):
    again = encoders.load(str(tmp_path / "run"))
    photos(tmp_path / "photos", "x.png")
    assert embed.embed(again, str(tmp_path / "photos"), str(tmp_path / "f.parquet"), torch.device("cpu"), {}) == 1


def test_shards_give_the_names_that_their_images_had(encoder, tmp_path, world):
    from pipeline.settings.stages import Pack
    from pipeline.stages import pack

    names = [f"{group}/{i} ü.png" for group in "ab" for i in range(4)]
    photos(tmp_path / "in", *names)
    (tmp_path / "photos").mkdir()
    pack.run(Pack(source=f"folder:{tmp_path / 'in'}"), 0, {}, tmp_path / "photos", world)
    found = written(tmp_path)
    assert sorted(found["name"]) == names and set(found["split"]) <= {"train", "test"}
    assert [name[0] for name in found["name"]] == found["class"]


def test_a_folder_of_two_readings_is_embedded_without_classes(encoder, tmp_path, capsys):
    names = ["test/b/1.png", "train/a/2.png", "x/3.png"]
    photos(tmp_path / "photos", *names)
    found = written(tmp_path)
    assert found["name"] == names and found["split"] == [""] * 3 and found["class"] == [None] * 3
    assert "can be read in two ways" in capsys.readouterr().out


def test_what_a_folder_leaves_out_is_said(encoder, tmp_path, capsys, monkeypatch):
    photos(tmp_path / "photos", "a/1.png", "b/2.png")
    (tmp_path / "photos/notes.md").write_text("x")
    found = os.scandir

    def scandir(path):  # as for a user who may not read it: root may read all
        if os.fspath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return found(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert written(tmp_path)["name"] == ["a/1.png"]
    said = capsys.readouterr().out
    assert "notes.md" in said and "(b" in said
