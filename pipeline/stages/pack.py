"""Packing: a source of images -> shards that every later stage reads."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.data import earlier
from pipeline.data.layout import plural, sentence, shown, some
from pipeline.data.shards import MANIFEST, NAMES, QUARANTINE, Shards, index_name
from pipeline.data.sources import Listing, open_source
from pipeline.data.sources.shards import PackedShards
from pipeline.data.splits import halves, shuffled
from pipeline.data.store import open_store
from pipeline.data.write import Statistics, describe, write
from pipeline.errors import DataError
from pipeline.settings.stages import Pack
from pipeline.world import World


def run(settings: Pack, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, Any]:
    """Packs the source into ``out``: shards, their indices, and last the manifest that makes them a set. Returns
    counts. Raises DataError past ``max_bad`` unreadable images, or where none is left to train on; then, and when it
    is interrupted, nothing of what it wrote stays."""
    sweep(out)  # what a killed start left
    try:
        source = open_source(settings, out.parent)
        if isinstance(source, PackedShards):
            return describe_in_place(source.where, out)
        return pack_images(source.listing(), settings, seed, out, world)
    except BaseException:
        sweep(out)
        raise


def sweep(out: Path) -> None:
    """Removes shards, whole or begun, and all that describes them."""
    for pattern in ("*.tar", "*.idx", "*.npy", "*.part", f"*{NAMES}", "bad.jsonl", MANIFEST):
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)


def pack_images(listing: Listing, settings: Pack, seed: int, out: Path, world: World) -> dict[str, Any]:
    """Splits and shuffles what the source lists, and writes it. Returns and raises as `run` does."""
    with ThreadPoolExecutor(settings.threads) as pool:
        bad: list[dict[str, str]] = []
        splits = {}
        stats = {}
        for name, items in halves(listing, settings.test, seed).items():
            order = shuffled(listing, items, seed, name)
            splits[name], stats[name] = write(name, order, settings, out, pool, bad, world)
    if not stats["train"].n:
        raise DataError(f"{settings.source}: no readable image to train on ({len(bad)} unreadable)")
    files.write_json_lines(out / "bad.jsonl", bad)
    manifest = describe(listing.classes, splits, stats, len(bad), settings.exif_orientation)
    files.write_json(out / MANIFEST, manifest)
    counts = {f"{name}_images": stats[name].n for name in splits}
    lines = summary(listing, settings, stats, bad)
    if before := earlier.earlier(out):
        lines += filter(None, [earlier.changes(before, out)])
        earlier.share(before, out)
    return {
        **counts,
        "bad": len(bad),
        "classes": len(listing.classes or []),
        "fingerprint": manifest["fingerprint"],
        "left_out": {reason: len(names) for reason, names in listing.left_out.items()},
        "said": lines,
    }


def summary(listing: Listing, settings: Pack, stats: dict[str, Statistics], bad: list[dict[str, str]]) -> list[str]:
    """What was packed, in a line, and in others what was left out of it and what else is to be known."""
    left_out = dict(listing.left_out)
    if bad:
        left_out["unreadable images, listed in bad.jsonl"] = [f"{b['image']}: {b['reason']}" for b in bad]
    lines = [counts_line(listing, settings, stats), sentence(left_out), lost_classes(listing, stats)]
    return [line for line in lines if line] + [shown(note) for note in listing.notes]


def counts_line(listing: Listing, settings: Pack, stats: dict[str, Statistics]) -> str:
    """How many images of which classes are in each split, and where the splits come from."""
    train, test = stats["train"].n, stats["test"].n
    origin = [" and ".join(f"{name} from {where}" for name, where in listing.parts.items()) or listing.unsplit]
    if "test" not in listing.parts and settings.test and test:
        origin.append(f"a share of {settings.test:g} held out to test")
    brackets = ", ".join(filter(None, origin))
    line = f"{plural(train + test, 'image')} {classes_text(listing.classes)}: {train:,} to train on, {test:,} to test"
    return f"{line} ({brackets})" if brackets else line


def classes_text(classes: list[str] | None) -> str:
    return f"of {plural(len(classes), 'class')} ({some(classes)})" if classes else "unlabelled"


def lost_classes(listing: Listing, stats: dict[str, Statistics]) -> str:
    """Names the classes of which no image can be read; empty where there are none."""
    labels = sum((s.labels for s in stats.values()), Counter())
    lost = [name for k, name in enumerate(listing.classes or []) if not labels[k]]
    return f"{plural(len(lost), 'class')} lost whole, none of its images can be read: {some(lost)}" if lost else ""


def describe_in_place(location: str, out: Path) -> dict[str, Any]:
    """Uses shards where they lie: copies what describes them, checks that all are there."""
    source = open_store(location)
    manifest = Shards.open(location).manifest
    base = manifest["base"] or location
    manifest["base"] = base if "://" in base else str((Path(location).expanduser() / base).resolve())
    counts = {}
    for split, entry in manifest["splits"].items():
        shards = Shards.open(location, split)
        counts[f"{split}_images"] = shards.n
        for name in [entry["table"], *(index_name(shards.name(k)) for k in range(len(shards.shards)))]:
            files.write(out / name, source.read_file(name))
    for name in (QUARANTINE, *(f"{split}{NAMES}" for split in manifest["splits"])):
        with suppress(FileNotFoundError):
            files.write(out / name, source.read_file(name))
    files.write_json(out / MANIFEST, manifest)
    images, classes = plural(sum(counts.values()), "image"), manifest["classes"]
    text = f"{images} {classes_text(classes)}, used where they lie: {manifest['base']}"
    facts = {"bad": manifest["bad"], "classes": len(classes or []), "fingerprint": manifest["fingerprint"]}
    return {**counts, **facts, "said": [text]}
