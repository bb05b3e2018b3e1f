"""pipeline index TARS --out FOLDER: indexes the tars of an existing WebDataset, so that stages can read them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands import Parser, parse, path, positive
from pipeline.errors import ConfigError

ABOUT = """Checks tars of KEY.jpg and KEY.cls members, and writes beside them, or into a folder, where the images lie.
A config names that folder as source: shards:FOLDER."""


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline index", allow_abbrev=False, description=ABOUT)
    parser.add_argument("train", metavar="TARS", help='to train on: a pattern such as "x-{000..012}.tar" or "x-*.tar"')
    parser.add_argument("--test", metavar="TARS", help="held out")
    parser.add_argument("--out", type=path, metavar="FOLDER", help="default: the folder of the first tar")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--max-bad", type=int, default=100, help="unreadable images listed before it gives up")
    turned = "turn images as their EXIF orientation says (the default)"
    parser.add_argument("--exif-orientation", action=argparse.BooleanOptionalAction, default=True, help=turned)
    options = parse(parser, words)
    from pipeline.data import patterns

    splits: dict[str, list[Path]] = {}
    for split, pattern in (("train", options.train), ("test", options.test)):
        splits[split] = patterns.tars(pattern) if pattern else []
        absent = patterns.missing(pattern) if pattern else []
        if pattern and (absent or not splits[split]):
            raise ConfigError(f"no file {absent[0]}" if absent else patterns.unmatched(pattern))
    from pipeline.data import index

    out = options.out or splits["train"][0].parent
    manifest = index.index(
        splits, out, options.threads, options.max_bad, options.exif_orientation, lambda text: print(text, flush=True)
    )
    images = {split: entry["images"] for split, entry in manifest["splits"].items()}
    left_out = f", {manifest['bad']} left out (bad.jsonl)" if manifest["bad"] else ""
    print(f"{out}: {images['train']} training and {images['test']} test images{left_out}; source: shards:{out}")
    return 0
