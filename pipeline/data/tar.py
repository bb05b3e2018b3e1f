"""Reads tars strictly: every header is checked, and damage is an error.

Python's tarfile takes a broken header for the end of the archive and accepts an archive without an end, so that a
truncated shard reads as a smaller one; here both raise BrokenTar. Supported: ustar with its prefix, GNU long names,
PAX headers, sizes in base 256. Refused: compression, sparse members, links, devices.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.data.formats import IMAGES

BLOCK = 512
ZERO = bytes(BLOCK)
REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
           b"S": "a sparse member", b"M": "a member continued from another volume"}  # fmt: skip
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
FILES, FOLDER = (b"0", b"\0", b"7"), b"5"
LARGEST_HEADER = 1 << 20
"""Bytes that a long name or PAX records may have; a larger size is taken for damage."""
AHEAD = 1 << 16
"""Bytes of one read of headers that are close to each other."""

Read = Callable[[int, int], bytes]
"""(offset, size) -> the bytes at that offset."""


class Member(NamedTuple):
    """A file in a tar: its name, and the offset and number of its bytes."""

    name: str
    offset: int
    size: int


class BrokenTar(Exception):
    """The file is no tar that can be read by offset. ``kind``: "cut", "header", "end", "compressed" or "refused"."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def members(read: Read, total: int) -> Iterator[Member]:
    """The files of a tar of ``total`` bytes in their order. Raises BrokenTar at the first damaged or unsupported
    header; the members before it can still be read."""
    read = ahead(read)
    at, extra, common = 0, dict[str, str](), dict[str, str]()
    start = read(0, 6)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise BrokenTar("compressed", f"compressed with {name}: unpack it first, its members have no fixed place")
    while True:
        block = read(at, BLOCK)
        if len(block) < BLOCK:
            where = "inside a header" if block else "before the two zero blocks that end a tar"
            raise BrokenTar("cut", f"ends at byte {total}, {where}: it was cut")
        if block == ZERO:
            return finished(read, at, total)
        kind, size = parsed(block, at)
        extra = common | extra
        if "size" in extra and kind in FILES:
            size = int(extra["size"])
        data = at + BLOCK
        at = data + -(-size // BLOCK) * BLOCK
        if data + size > total:
            raise BrokenTar("cut", f"ends at byte {total}, inside a member of {size} bytes at {data}: it was cut")
        if kind in (b"L", b"K", b"x", b"g"):
            body = header_body(read, data, size)
            if kind == b"L":
                extra["path"] = text(body)
            elif kind != b"K":
                records = pax(body, data)
                common, extra = (common | records, extra) if kind == b"g" else (common, extra | records)
            continue
        name = extra.get("path") or ustar_name(block)
        sparse = any(key.startswith("GNU.sparse") for key in extra)
        if kind in REFUSED or sparse:
            what = "a sparse member" if sparse else REFUSED[kind]
            raise BrokenTar("refused", f"{name} at byte {data} is {what}: pack plain files")
        if kind in FILES and not name.endswith("/"):
            yield Member(name, data, size)
        elif kind != FOLDER and kind not in FILES:
            raise BrokenTar("refused", f"{name} at byte {data} is of the unknown type {kind!r}")
        extra = {}


def ahead(read: Read) -> Read:
    """The same reader with a buffer, for small reads that are close to each other."""
    start, held = 0, b""

    def buffered(offset: int, size: int) -> bytes:
        nonlocal start, held
        if not start <= offset <= offset + size <= start + len(held):
            start, held = offset, read(offset, max(size, AHEAD))
        return held[offset - start : offset - start + size]

    return buffered


def parsed(block: bytes, at: int) -> tuple[bytes, int]:
    """The type and size in a header. Raises BrokenTar where its checksum is wrong."""
    try:
        checksum = number(block[148:156])
        size = number(block[124:136])
    except ValueError:
        checksum = size = -1
    plain = block[:148] + b" " * 8 + block[156:]
    signed = sum(b - 256 if b > 127 else b for b in plain)  # some old writers summed signed bytes
    if checksum not in (sum(plain), signed) or size < 0:
        raise BrokenTar("header", f"no valid header at byte {at}: overwritten, or not a tar")
    return block[156:157], size


def number(field: bytes) -> int:
    """The number in a header's field: octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def ustar_name(block: bytes) -> str:
    name, prefix = text(block[:100]), text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def header_body(read: Read, data: int, size: int) -> bytes:
    if size > LARGEST_HEADER:
        raise BrokenTar("header", f"a name or header of {size} bytes at byte {data}: overwritten, or not a tar")
    return read(data, size)


def pax(body: bytes, at: int) -> dict[str, str]:
    """The key and value of each PAX record "length key=value\\n". Raises BrokenTar where they are damaged."""
    records = {}
    while body.rstrip(b"\0"):
        try:
            length = int(body.split(b" ", 1)[0])
            key, value = body[:length].split(b" ", 1)[1].split(b"=", 1)
            if length > len(body) or not value.endswith(b"\n"):
                raise ValueError
            if key == b"size":
                int(value)
        except (ValueError, IndexError):
            raise BrokenTar("header", f"damaged PAX records at byte {at}") from None
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        body = body[length:]
    return records


def finished(read: Read, at: int, total: int) -> None:
    """Raises BrokenTar unless the rest of the tar from ``at`` on is zeros, at least two blocks of them."""
    if total - at < 2 * BLOCK:
        raise BrokenTar("cut", f"ends at byte {total}, inside the two zero blocks that end a tar: it was cut")
    while at < total:
        part = read(at, min(AHEAD, total - at))
        if part.strip(b"\0"):
            raise BrokenTar(
                "end", f"data after the zero blocks at byte {at}: two tars in one, or zeros written over a part of it"
            )
        at += len(part) or total


class Sample(NamedTuple):
    """An image of a tar, with the member that holds its class (None: unlabelled)."""

    key: str
    ext: str
    image: Member
    label: Member | None


def split_name(name: str) -> tuple[str, str]:
    """The key and the field of a member, as in webdataset: its path up to the first dot of the file's name, and the
    rest in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, _, field = file.partition(".")
    return f"{folder}{slash}{stem}", field.lower()


def hidden(name: str) -> bool:
    """Whether a member belongs to no sample: dot files, and webdataset's members about the shard (``__*``)."""
    file = name.rpartition("/")[2]
    return file.startswith((".", "__"))


def samples(members: list[Member]) -> tuple[list[Sample], list[str], dict[str, int]]:
    """Groups a tar's members into samples. Returns a sample for each image, a line for each fault, and by field the
    number of further images that are ignored. The members of a sample are consecutive and share a key; its image is
    the first whose field is an image extension (`jpg`, not `seg.jpg`). Fields that are neither an image nor `cls` are
    ignored."""
    made: list[Sample] = []
    wrong: list[str] = []
    extra: dict[str, int] = {}
    seen: set[str] = set()
    group: dict[str, Member] = {}
    last = None
    for member in [*(m for m in members if not hidden(m.name)), None]:
        key, field = split_name(member.name) if member else (None, "")
        if key != last:
            if last is not None:
                take(last, group, made, wrong, extra)
                seen.add(last)
            if key in seen:
                wrong.append(f"{member.name}: its key comes twice, with others between" if member else "")
            group, last = {}, key
        if member is None:
            break
        if field in group:
            wrong.append(f"{member.name}: a second member of this name")
        elif "\n" in member.name:
            wrong.append(f"{member.name!r}: a line break in its name")
        else:
            group[field] = member
    return made, wrong, extra


def take(key: str, group: dict[str, Member], made: list[Sample], wrong: list[str], extra: dict[str, int]) -> None:
    images = [field for field in group if field in IMAGES]
    further = [field for field in group if field.rpartition(".")[2] in IMAGES and field not in images[:1]]
    if images:
        made.append(Sample(key, images[0], group[images[0]], group.get("cls")))
        for field in further:
            extra[field] = extra.get(field, 0) + 1
    elif further:
        field, member = further[0], group[further[0]]
        wrong.append(
            f"{member.name}: a dot in its key, by which every reader takes {key} for the key and {field} for a field: "
            f"rename it"
        )
    elif "cls" in group:
        wrong.append(f"{key}: a class without an image")
