"""Tars that others wrote: the forms there are, read as Python's tarfile reads them; and what is broken or odd, each
met with a word where tarfile and webdataset pass over it in silence."""

import gzip
import io
import json
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import cli
from pipeline.data import check, tar
from pipeline.data.reader import read
from pipeline.data.shards import Shards
from pipeline.data.sources import open_source
from pipeline.settings.stages import Pack
from tests.test_pack import picture

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def archive(members, form: str = "ustar", mtime: float = 0) -> bytes:
    """(name, bytes) pairs, or whole TarInfos, as a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[form]) as file:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                file.addfile(one)
                continue
            info = tarfile.TarInfo(one[0])
            info.size, info.mtime = len(one[1]), mtime
            file.addfile(info, io.BytesIO(one[1]))
    return out.getvalue()


def found(data: bytes) -> list[tar.Member]:
    return list(tar.members(lambda offset, size: data[offset : offset + size], len(data)))


def pairs(count: int = 6) -> list[tuple[str, bytes]]:
    return [(f"{i:04d}.{ext}", body) for i in range(count)
            for ext, body in (("jpg", picture(i)), ("cls", str(i % 3).encode()))]  # fmt: skip


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


LONG = "/".join(["some folder of a long name"] * 6) + "/image.jpg"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mtime", [0, 1.5])
def test_members_are_those_of_tarfile(form, mtime):
    members = [*pairs(), ("prefix" * 16 + "/" + "n" * 90 + ".jpg", b"x" * 513), ("empty.jpg", b"")]
    members += [special("folder", tarfile.DIRTYPE)]
    if form != "ustar":
        members += [(LONG, b"abc"), ("名前.jpg", b"de"), (LONG + "2", b"fgh")]
    data = archive(members, form, mtime)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file if m.isfile()]
    assert [tuple(m) for m in found(data)] == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(codec="ascii", exclude_characters="/\0"), min_size=1, max_size=180),
                          st.binary(max_size=1100)), max_size=8), st.sampled_from(["gnu", "pax"]))  # fmt: skip
def test_any_names_and_sizes(members, form):
    data = archive(members, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file if m.isfile()]
    assert [(m.name.rstrip("/"), m.offset, m.size) for m in found(data)] == expected


def test_base_256_sizes():
    data = bytearray(archive([("a.jpg", b"x" * 700)]))
    data[124:136] = b"\x80" + (700).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert found(bytes(data)) == [("a.jpg", 512, 700)]
    assert tar.number(b"\x80" + (10 << 32).to_bytes(11, "big")) == 10 << 32  # ten times what octal digits hold


def damaged(change) -> bytes:
    data = bytearray(archive(pairs()))
    change(data)
    return bytes(data)


def header_of(data: bytes, name: str) -> int:
    return data.index(name.encode())


def overwrite(data: bytearray, at: int, body: bytes) -> None:
    data[at : at + len(body)] = body


WHOLE = archive(pairs())
MIDDLE = header_of(WHOLE, "0003.jpg")
BROKEN = {
    "empty file": (b"", "cut", "before the two zero blocks"),
    "not a tar": (picture(0, 40, 40), "header", "no valid header at byte 0"),
    "text": (b"hello " * 500, "header", "no valid header at byte 0"),
    "cut at a member boundary": (WHOLE[:MIDDLE], "cut", "before the two zero blocks"),
    "cut inside a member": (WHOLE[: MIDDLE + 600], "cut", "inside a member"),
    "cut inside a header": (WHOLE[: MIDDLE + 100], "cut", "inside a header"),
    "cut after its last byte": (WHOLE.rstrip(b"\0"), "cut", "before the two zero blocks|inside a header"),
    "cut between the zero blocks": (archive([("a.jpg", b"x" * 512)])[:1536], "cut", "inside the two zero blocks"),
    "zero block over a header": (damaged(lambda d: overwrite(d, MIDDLE, bytes(512))), "end", "zeros written over"),
    "zeros over a part": (damaged(lambda d: overwrite(d, MIDDLE, bytes(1024))), "end", "zeros written over"),
    "random bytes over a header": (
        damaged(lambda d: overwrite(d, MIDDLE, random.Random(0).randbytes(512))), "header", f"at byte {MIDDLE}"),
    "a flipped bit in a header": (damaged(lambda d: overwrite(d, MIDDLE + 2, b"4")), "header", f"byte {MIDDLE}"),
    "a wrong size in a header": (damaged(lambda d: overwrite(d, MIDDLE + 124, b"77")), "header", f"byte {MIDDLE}"),
    "a wrong checksum": (damaged(lambda d: overwrite(d, MIDDLE + 148, b"000000")), "header", f"byte {MIDDLE}"),
    "two tars in one": (WHOLE + WHOLE, "end", "two tars in one"),
    "data after the end": (WHOLE + b"\0" * 4096 + b"x", "end", "two tars in one"),
    "gzip": (gzip.compress(WHOLE), "compressed", "gzip"),
    "bzip2": (b"BZh91AY" + WHOLE, "compressed", "bzip2"),
    "xz": (b"\xfd7zXZ\0" + WHOLE, "compressed", "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + WHOLE, "compressed", "zstd"),
    "a symbolic link": (archive([*pairs(2), special("l.jpg", b"2", "0000.jpg")]), "refused", "l.jpg .* symbolic link"),
    "a hard link": (archive([*pairs(2), special("l.jpg", b"1", "0000.jpg")]), "refused", "l.jpg .* hard link"),
    "a pipe": (archive([special("p", b"6")]), "refused", "a pipe"),
    "a device": (archive([special("d", b"3")]), "refused", "a device"),
    "a sparse member": (archive([special("s.jpg", b"S")]), "refused", "a sparse member"),
    "an unknown type": (archive([special("u.jpg", b"Z")]), "refused", "unknown type"),
    "a huge name": (
        archive([("././@LongLink", b"")]).replace(b"00000000000", b"77777777777", 1), "header", "no valid header"),
}  # fmt: skip


def pax_member(records: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + archive([("a.jpg", b"abc")])


BROKEN |= {
    "a sparse member by PAX": (pax_member(b"22 GNU.sparse.major=1\n"), "refused", "a sparse member"),
    "PAX records without a length": (pax_member(b"path=a\n"), "header", "damaged PAX records"),
    "PAX records of a wrong length": (pax_member(b"99 path=a\n"), "header", "damaged PAX records"),
    "a PAX size that is none": (pax_member(b"13 size=abc\n"), "header", "damaged PAX records"),
    "a PAX size past the end": (pax_member(b"14 size=99999\n"), "cut", "inside a member"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused_with_a_word(name, tmp_path, capsys):
    """By the reader, by `pipeline index` and by `pipeline check`, with the same words and exit code 65."""
    data, kind, words = BROKEN[name]
    with pytest.raises(tar.BrokenTar, match=words) as caught:
        found(data)
    assert caught.value.kind == kind
    (tmp_path / "x.tar").write_bytes(data)
    for command in (["index", str(tmp_path / "x.tar")], ["check", str(tmp_path / "x.tar")]):
        assert cli.main(command) == 65
        told = capsys.readouterr()
        assert f"x.tar: {caught.value}" in told.out and "Traceback" not in told.err
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


A, B = picture(1), picture(2)
ODD = {
    "a dotted key": ([("img.001.jpg", A), ("img.002.jpg", B)], "img.001.jpg: a dot in its key"),
    "a duplicate, adjacent": ([("a.jpg", A), ("a.jpg", B)], "a.jpg: a second member of this name"),
    "a key that comes again": ([("a.jpg", A), ("b.jpg", B), ("a.cls", b"1")], "a.cls: its key comes twice"),
    "members interleaved": (
        [("a.jpg", A), ("b.jpg", B), ("a.cls", b"0"), ("b.cls", b"1")], "b.cls: its key comes twice"),
    "no field that is an image": ([("a.left.jpg", A), ("a.right.jpg", B)], "a.left.jpg: a dot in its key"),
    "a class past all numbers": ([("a.jpg", A), ("a.cls", b"9" * 5000)], "a.cls: b'99999"),
    "a class with two signs": ([("a.jpg", A), ("a.cls", b"--1")], "a.cls: b'--1'"),
    "a class without an image": ([("a.jpg", A), ("a.cls", b"0"), ("b.cls", b"1")], "b: a class without an image"),
    "a class that is no number": ([("a.jpg", A), ("a.cls", b"cat")], "a.cls: b'cat' where the number of a class"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_refused_with_a_word(name, tmp_path, capsys):
    members, words = ODD[name]
    (tmp_path / "x.tar").write_bytes(archive(members))
    for command in (["index", str(tmp_path / "x.tar")], ["check", str(tmp_path / "x.tar")]):
        assert cli.main(command) == 65
        assert f"x.tar: {words}" in capsys.readouterr().out


def test_what_belongs_to_no_sample_is_passed_over(tmp_path, capsys):
    members = [("__meta__.json", b"{}"), ("._a.jpg", b"x"), (".DS_Store", b"x"), ("d/a.jpg", A), ("d/a.json", b"{}"),
               ("d/a.seg.npy", b"x"), ("d/.hidden.jpg", b"x"), ("e/a.JPEG", B)]  # fmt: skip
    (tmp_path / "x.tar").write_bytes(archive([special("d", tarfile.DIRTYPE), *members]))
    assert cli.main(["index", str(tmp_path / "x.tar")]) == 0
    shards = Shards.open(tmp_path)
    assert [shards.key(i) for i in range(shards.n)] == ["d/a", "e/a"]
    assert [read(shards, i) for i in range(shards.n)] == [A, B]
    assert shards.labels.tolist() == [-1, -1] and shards.classes is None


@pytest.mark.parametrize("form", FORMATS)
def test_foreign_tars_are_indexed_where_they_lie(tmp_path, capsys, form):
    (tmp_path / "tars/deep").mkdir(parents=True)
    members = [(f"{'n' * (90 if form == 'ustar' else 150)}/{name}", body) for name, body in pairs(9)]
    for i, path in enumerate(("a.tar", "deep/b.tar", "deep/c.tar")):
        (tmp_path / "tars" / path).write_bytes(archive(members[6 * i : 6 * i + 6], form, 12.5))
    before = {p: p.read_bytes() for p in (tmp_path / "tars").rglob("*.tar")}
    words = ["index", str(tmp_path / "tars/{a,deep/b}.tar"), "--test", str(tmp_path / "tars/deep/c.tar")]
    assert cli.main([*words, "--out", str(tmp_path / "set")]) == 0
    assert "6 training and 3 test images" in capsys.readouterr().out
    shards, test = (Shards.open(tmp_path / "set", split) for split in ("train", "test"))
    assert [read(shards, i) for i in range(6)] == [picture(i) for i in range(6)]
    assert [read(test, i) for i in range(3)] == [picture(i) for i in range(6, 9)]
    assert shards.labels.tolist() == [0, 1, 2, 0, 1, 2] and shards.key(0) == members[0][0].removesuffix(".jpg")
    assert before == {p: p.read_bytes() for p in (tmp_path / "tars").rglob("*.tar")}
    assert cli.main(["check", str(tmp_path / "set")]) == 0
    (tmp_path / "tars").rename(tmp_path / "elsewhere")
    assert cli.main(["check", str(tmp_path / "set")]) == 65


def test_unreadable_images_are_left_out_of_the_index(tmp_path, capsys):
    members = pairs(6)
    members[4] = ("0002.jpg", A[: len(A) // 2])
    (tmp_path / "x.tar").write_bytes(archive(members))
    assert cli.main(["index", str(tmp_path / "x.tar")]) == 0
    assert "5 training and 0 test images, 1 left out (bad.jsonl)" in capsys.readouterr().out
    assert Shards.open(tmp_path).key(2) == "0003"
    assert json.loads((tmp_path / "bad.jsonl").read_text())["image"] == "x.tar:0002.jpg"
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert cli.main(["index", str(tmp_path / "x.tar"), "--max-bad", "0"]) == 65
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before  # what fails leaves nothing, and takes nothing


def test_check_lists_images_of_tars_without_an_index(tmp_path, capsys):
    members = pairs(6)
    members[4] = ("0002.jpg", A[: len(A) // 2])
    (tmp_path / "x.tar").write_bytes(archive(members))
    (tmp_path / "y.tar").write_bytes(WHOLE[:MIDDLE])
    assert cli.main(["check", str(tmp_path / "{x,y,z}.tar")]) == 65
    told = capsys.readouterr()
    assert [line.split(":")[0] for line in told.out.splitlines()] == ["z.tar", "x.tar", "y.tar"]
    assert "x.tar: 0002: undecodable" in told.out and "4 problems" not in told.err and "3 problems" in told.err


def test_nothing_leaves_the_tar(tmp_path, capsys):
    """Names that point out of an archive are names, no places: nothing is ever unpacked."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.tar").write_bytes(archive([("../../evil.jpg", A), ("/etc/evil.jpg", B)]))
    assert cli.main(["index", str(tmp_path / "in/x.tar")]) == 0
    shards = Shards.open(tmp_path / "in")
    assert [shards.key(i) for i in range(2)] == ["../../evil", "/etc/evil"]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(
        ["x.tar", "x.idx", "train.npy", "test.npy", "manifest.json", "bad.jsonl"]
    )


def test_problems_in_words():
    assert str(check.Problem("a.tar", None, "missing")) == "a.tar: missing"
    assert str(check.Problem("a.tar", "k", "altered")) == "a.tar: k: altered"


def test_numbers_of_headers():
    assert tar.number(b"0000644\0") == 0o644 and tar.number(b" 644 \0  ") == 0o644 and tar.number(b"\0" * 8) == 0


SECOND = {
    "a mask": [("{}.jpg", A), ("{}.seg.png", B), ("{}.cls", b"1")],
    "a mask before": [("{}.seg.png", B), ("{}.cls", b"1"), ("{}.jpg", A)],
    "two formats": [("{}.jpg", A), ("{}.png", B), ("{}.cls", b"1")],
    "three more": [("{}.jpg", A), ("{}.depth.tif", b"x"), ("{}.png", B), ("{}.seg.png", B), ("{}.cls", b"1")],
}


@pytest.mark.parametrize("name", SECOND)
def test_the_first_image_of_a_sample_is_its_image(name, tmp_path, capsys):
    """What others write beside it is passed over, and said; `check` finds nothing wrong with it."""
    members = [(form.format(i), body) for i in range(4) for form, body in SECOND[name]]
    (tmp_path / "x.tar").write_bytes(archive(members))
    assert cli.main(["index", str(tmp_path / "x.tar")]) == 0
    said = capsys.readouterr().out
    for form, body in SECOND[name]:
        if body not in (A, b"1"):
            assert f"passed over beside a sample's own: 4 images {form.removeprefix('{}.')}" in said
    shards = Shards.open(tmp_path)
    assert [read(shards, i) for i in range(4)] == [A] * 4 and shards.labels.tolist() == [1] * 4
    assert cli.main(["check", str(tmp_path / "x.tar")]) == 0
    source = open_source(Pack(source=f"wds:{tmp_path}/x.tar")).listing()
    assert [item.load() for item in source.items] == [A] * 4 and "passed over" in source.notes[0]


CLASSES = {
    "as they are": ([0, 1, 2], [0, 1, 2], ["0", "1", "2"], None),
    "one of three is not there": ([0, 2, 2], [0, 2, 2], ["0", "1", "2"], None),
    "far apart": ([1_000_000, 3, 1_000_000], [1, 0, 1], ["3", "1000000"], "3, 1000000 have labels 0 to 1"),
    "past four bytes": ([9_999_999_999, 0, 0], [1, 0, 0], ["0", "9999999999"], "have labels 0 to 1"),
    "below 0": ([-2, -1, 5], [0, 1, 2], ["-2", "-1", "5"], "-2, -1, 5 have labels 0 to 2"),
    "of two signs": ([1, -1, 1], [1, 0, 1], ["-1", "1"], "-1, 1 have labels 0 to 1"),
    "some have none": ([-1, 0, 1], [-1, 0, 1], ["0", "1"], "without a class, which they call -1: 1 image"),
    "none has any": ([-1, -1, -1], [-1, -1, -1], None, "without a class, which they call -1"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_any_numbers(name, tmp_path, capsys):
    """Labels are dense, the same in every split, and the numbers that were said stay the classes' names."""
    numbers, labels, classes, words = CLASSES[name]
    for file, chosen in (("x", range(3)), ("y", (2,))):
        members = [(f"{i}.{ext}", b) for i in chosen for ext, b in (("jpg", picture(i)), ("cls", b"%d" % numbers[i]))]
        (tmp_path / f"{file}.tar").write_bytes(archive(members))
    assert cli.main(["index", str(tmp_path / "x.tar"), "--test", str(tmp_path / "y.tar")]) == 0
    said = capsys.readouterr().out
    assert words in said if words else said.count("\n") == 3
    assert (tmp_path / "manifest.json").stat().st_size < 4000
    train, test = Shards.open(tmp_path), Shards.open(tmp_path, "test")
    assert train.labels.tolist() == labels and test.labels.tolist() == labels[2:] and train.classes == classes
    source = open_source(Pack(source=f"wds:{tmp_path}/x.tar")).listing()
    assert [item.label for item in source.items] == labels and source.classes == classes
    assert words in " ".join(source.notes) if words else not source.notes
