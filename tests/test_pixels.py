"""What a file means is what is decoded: orientation, wide numbers, transparency, 0 as white, damage of any kind."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from PIL import ImageOps, TiffImagePlugin

from pipeline.data.images import images
from pipeline.data.shards import Shards
from pipeline.settings.stages import Pack
from pipeline.stages import pack
from pipeline.views import decode as decoding
from pipeline.views.decode import decode

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
COLOURS = np.stack([RAMP, RAMP[:, ::-1], RAMP // 3], -1)


def saved(picture: Picture.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def seen(data: bytes, channels: int = 3, **options) -> np.ndarray:
    return decode(data, channels, **options).permute(1, 2, 0).numpy()


# ---- orientation

FORMATS = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF, packed": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_one_rule_of_orientation_for_all_formats(kind, turn, monkeypatch):
    exif = Picture.Exif()
    exif[0x0112] = turn
    options, name = FORMATS[kind] | {"exif": exif}, kind.partition(",")[0]
    data, plain = saved(Picture.fromarray(COLOURS), name, **options), Picture.fromarray(COLOURS)
    plain.getexif()[0x0112] = turn
    upright = np.asarray(ImageOps.exif_transpose(plain))
    most = {"JPEG": 24, "AVIF": 24}.get(name, 0)
    for _ in range(2):
        assert np.abs(seen(data).astype(int) - upright).max() <= most
        assert np.abs(seen(data, exif_orientation=False).astype(int) - COLOURS).max() <= most
        assert decode(data, 3).stride() == (1, 3 * upright.shape[1], 3)  # as all decoders give it: [H, W, channels]
        monkeypatch.setattr(decoding, "simplejpeg", None)


@pytest.mark.parametrize("mode, channels", [("L", 1), ("L", 3), ("RGB", 1), ("CMYK", 3)])
def test_grey_and_four_colours_are_turned_too(mode, channels):
    exif = Picture.Exif()
    exif[0x0112] = 6
    data = saved(Picture.fromarray(COLOURS).convert(mode), "JPEG", exif=exif)
    assert np.array_equal(seen(data, channels), np.rot90(seen(data, channels, exif_orientation=False), -1))


def test_orientation_in_xmp_counts_and_damaged_exif_says_nothing():
    plain = saved(Picture.fromarray(COLOURS), "JPEG")
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    assert np.array_equal(seen(saved(Picture.fromarray(COLOURS), "JPEG", xmp=xmp)), seen(plain)[::-1, ::-1])
    for body in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"):
        broken = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
        assert np.array_equal(seen(broken), seen(plain))


@pytest.mark.parametrize("upright", [True, False])
def test_what_is_packed_is_what_is_trained_on(upright, tmp_path, world):
    """The setting of the pack is that of every later reading; the file's own bytes are packed."""
    exif = Picture.Exif()
    exif[0x0112] = 6
    for i in range(10):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{i}.jpg").write_bytes(saved(Picture.fromarray(COLOURS), "JPEG", exif=exif))
    (tmp_path / "out").mkdir()
    pack.run(Pack(source=f"folder:{tmp_path / 'in'}", exif_orientation=upright), 0, {}, tmp_path / "out", world)
    shards = Shards.open(tmp_path / "out")
    assert (shards.manifest["height"], shards.manifest["width"]) == ((64, 48) if upright else (48, 64))
    assert shards.image(32).exif_orientation is upright
    (found,) = images(shards, np.arange(1), 32)
    brighter = found.float().mean(0)
    down, across = (brighter.mean(1 - i)[-1] - brighter.mean(1 - i)[0] for i in (0, 1))
    assert abs(down) > 4 * abs(across) if upright else abs(across) > 4 * abs(down)  # the ramp runs along a side
    from pipeline.data.reader import read

    assert read(shards, 0) == (tmp_path / "in/0.jpg").read_bytes()


# ---- numbers of more than eight bits


def tiff(values: np.ndarray, bits: int, form: int, photometric: int = 1) -> bytes:
    """An uncompressed TIFF of one strip, little-endian; ``form``: 1 unsigned, 2 signed, 3 float."""
    data = values.tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
            (279, len(data)), (339, form)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


WIDE = {
    "floats of 0 to 1": (RAMP.astype("<f4") / 255, 3, 1),
    "floats about 0": (RAMP.astype("<f4") / 100 - 1.2, 3, 1),
    "floats of 12 bits": (RAMP.astype("<f4") * 16, 3, 1),
    "floats, 0 is white": (-RAMP.astype("<f4"), 3, 0),
    "floats, some of them none": (np.where(RAMP == 0, np.nan, RAMP).astype("<f4"), 3, 1),
    "floats, some without end": (np.where(RAMP == 255, np.inf, RAMP).astype("<f4"), 3, 1),
    "signed": (RAMP.astype("<i4") - 1000, 2, 1),
    "unsigned": (RAMP.astype("<u4") * 16843009, 1, 1),
    "unsigned of few bits": (RAMP.astype("<u4") * 3, 1, 1),
}


@pytest.mark.parametrize("name", WIDE)
def test_numbers_of_32_bits_run_from_their_least_to_their_greatest(name):
    values, form, photometric = WIDE[name]
    found = seen(tiff(values, 32, form, photometric), 1)[..., 0].astype(int)
    assert np.abs(found - RAMP).max() <= (5 if "some" in name else 1) and found.min() == 0 and found.max() == 255


def test_numbers_without_a_range_are_refused_by_name():
    for value, words in ((0.5, "all of them 0.5"), (np.nan, "none of them a finite number")):
        with pytest.raises(ValueError, match=words):
            decode(tiff(np.full((9, 9), value, "<f4"), 32, 3), 3)


def test_zero_is_white_where_the_file_says_so():
    for values, bits in ((255 - RAMP, 8), (65535 - RAMP.astype("<u2") * 257, 16)):
        assert np.array_equal(seen(tiff(values.astype(f"<u{bits // 8}"), bits, 1, 0), 1)[..., 0], RAMP)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    packed = saved(Picture.fromarray(RAMP), "TIFF", compression="tiff_lzw", tiffinfo=tags)
    assert Picture.open(io.BytesIO(packed)).tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.array_equal(seen(packed, 1)[..., 0], RAMP)


def png(depth: int, colour: int, rows: list[bytes], clear: bytes, width: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", head), (b"tRNS", clear), (b"IDAT", body), (b"IEND", b""))
    )


def test_a_transparent_value_is_white_at_every_depth():
    """Of greys of 1, 2, 4, 8 and 16 bits and of colours of 8 and 16: the left half has the value that tRNS names."""
    for depth, colour in ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)):
        count, low, high = (3 if colour == 2 else 1), 1, (1 << depth) - 1
        low = {1: 0}.get(depth, 300 if depth == 16 else low)
        bits = "".join(f"{v:0{depth}b}" * count for v in [low] * 8 + [high - 1 if depth > 1 else high] * 8)
        row = int(bits, 2).to_bytes(len(bits) // 8, "big")
        found = seen(png(depth, colour, [row] * 16, struct.pack(">H", low) * count, 16))
        assert (found[:, :8] == 255).all(), (depth, colour)
        right = found[0, 12, 0]
        assert right == round((high - 1 if depth > 1 else high) / high * 255), (depth, colour)


# ---- damage


@pytest.mark.parametrize("error", [
    RuntimeError("Failed to decode image: Missing or empty image item\nmore"), SyntaxError("x"), struct.error("x"),
    KeyError("x"), zlib.error("x"), MemoryError(), RecursionError("x"), TypeError("x"), ZeroDivisionError("x"),
])  # fmt: skip
def test_whatever_a_decoder_raises_the_image_is_unreadable(error, monkeypatch):
    def fails(*_):
        raise error

    data = saved(Picture.fromarray(COLOURS), "PNG")
    for name in ("load", "convert"):
        with monkeypatch.context() as change:
            change.setattr("PIL.PngImagePlugin.PngImageFile." + name, fails)
            with pytest.raises(ValueError) as caught:
                decode(data, 1)
            assert str(caught.value).count("\n") == 0 and str(caught.value)


def test_damaged_files_of_every_format_are_refused_or_read(tmp_path, world):
    """Flipped bytes: pixels or a ValueError, never another error; and a set with such files is packed."""
    rng, count = np.random.default_rng(0), 0
    for kind in ("AVIF", "WEBP", "GIF", "TIFF", "BMP", "PNG", "JPEG", "JPEG2000", "PPM", "ICO", "TGA", "PCX"):
        whole = saved(Picture.fromarray(COLOURS), kind)
        for _ in range(15):
            data = bytearray(whole)
            for at in rng.integers(0, min(len(data), 400), 3).tolist():
                data[at] = int(rng.integers(256))
            try:
                assert decode(bytes(data), 3).dtype == torch.uint8
            except ValueError:
                count += 1
    assert count > 20
    folder, broken = tmp_path / "in", avif_that_raises_runtime_error()
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.png").write_bytes(saved(Picture.fromarray(COLOURS + i), "PNG"))
    (folder / "damaged.jpg").write_bytes(broken)
    (tmp_path / "out").mkdir()
    pack.run(Pack(source=f"folder:{folder}", test=0.0), 0, {}, tmp_path / "out", world)
    (line,) = (tmp_path / "out/bad.jsonl").read_text().splitlines()
    assert Path(json.loads(line)["image"]).name == "damaged.jpg"


def avif_that_raises_runtime_error() -> bytes:
    """The first change of a byte that Pillow answers with an error other than OSError and ValueError."""
    whole = saved(Picture.fromarray(COLOURS), "AVIF")
    for at in range(60, len(whole)):
        data = whole[:at] + b"\xff" + whole[at + 1 :]
        try:
            Picture.open(io.BytesIO(data)).load()
        except RuntimeError:
            return data
        except Exception:
            continue
    raise AssertionError("none")


# ---- a channel that never varies


@pytest.mark.parametrize("values", [(0, 0, 0), (200, 30, 30), (255, 255, 255)])
def test_a_channel_that_never_varies_divides_by_one(values, tmp_path, world):
    from pipeline.evaluation import encoders
    from pipeline.nets import trunks
    from pipeline.settings.data import MoCoV2
    from pipeline.settings.nets import CNN
    from pipeline.settings.objectives import Inputs
    from pipeline.views import transforms

    (tmp_path / "in").mkdir()
    for i in range(10):
        Picture.new("RGB", (16, 16), values).save(tmp_path / f"in/{i}.png")
    (tmp_path / "out").mkdir()
    pack.run(Pack(source=f"folder:{tmp_path / 'in'}"), 0, {}, tmp_path / "out", world)
    shards = Shards.open(tmp_path / "out")
    image = shards.image(None)
    assert image.std == (1.0,) * image.channels
    pixels = images(shards, np.arange(2), 16)
    assert encoders.Encoder(trunks.build(CNN(width=8), image), image, True).eval()(pixels).isfinite().all()
    transform = transforms.build(Inputs(), (MoCoV2(),), image, 0)
    crops = tuple(torch.empty(2, *shape, dtype=torch.uint8) for shape in transform.crop_shapes)
    for i in range(2):
        transform.crop(pixels[i], transform.params(0, np.arange(2)), i, tuple(c[i] for c in crops))
    assert all(view.isfinite().all() for view in transform.views(crops, 0, np.arange(2)))
