"""Tells which files are images: by their extension before they are opened, by their first bytes afterwards."""

IMAGES = frozenset((
    *("apng", "avif", "avifs", "blp", "bmp", "bw", "cur", "dcx", "dds", "dib", "fit", "fits", "flc", "fli", "ftc"),
    *("ftu", "gbr", "gif", "icb", "icns", "ico", "im", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf"),
    *("jpg", "jpx", "mpo", "msp", "pbm", "pcd", "pcx", "pfm", "pgm", "png", "pnm", "ppm", "psd", "pxr", "qoi"),
    *("ras", "rgb", "rgba", "sgi", "tga", "tif", "tiff", "vda", "vst", "webp", "xbm", "xpm"),
))
"""Extensions of the formats that Pillow decodes itself: all that it opens, except those which need another program
(EPS, WMF), of which it reads no pixels (BUFR, GRIB, HDF5, MPEG), or which are no images (IPTC). They are listed here
so that what a folder holds does not depend on how Pillow was built."""

HEADS = (
    (b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"),
    (b"II*\0", "tif"), (b"MM\0*", "tif"), (b"\0\0\0\x0cjP  ", "jp2"), (b"\xff\x4f\xff\x51", "j2k"), (b"qoif", "qoi"),
    (b"8BPS", "psd"), (b"DDS ", "dds"), (b"icns", "icns"), (b"\0\0\1\0", "ico"), (b"\0\0\2\0", "cur"),
)  # fmt: skip


def kind(data: bytes, name: str = "") -> str:
    """The extension of a file's format by its first bytes, at most four letters; where these are not known, that of
    its name."""
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "avif"
    if data[:1] == b"P" and data[1:2] in b"1234567fF" and data[2:3].isspace():
        return {b"1": "pbm", b"4": "pbm", b"2": "pgm", b"5": "pgm", b"f": "pfm", b"F": "pfm"}.get(data[1:2], "ppm")
    for head, ext in HEADS:
        if data.startswith(head):
            return ext
    ext = extension(name)
    return ext if ext in IMAGES and len(ext) <= 4 else "tif"


def extension(name: str) -> str:
    """The part of a file's name after its last dot, in lower case; empty without a dot."""
    stem, dot, ext = name.rpartition(".")
    return ext.lower() if dot and stem else ""


def is_image(name: str) -> bool:
    return extension(name) in IMAGES
