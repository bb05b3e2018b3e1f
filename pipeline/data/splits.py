"""Which images are held out, and in which order all are packed: by their names, so that those which come, go or cannot
be read leave the others where they were."""

import hashlib

import numpy as np

from pipeline import keyed
from pipeline.data.sources import Item, Listing


def halves(listing: Listing, share: float, seed: int) -> dict[str, list[Item]]:
    """The source's own splits; or of each class of a fixed set exactly ``share``; or each image by itself, so that
    others which come or go do not move it."""
    if any(item.split for item in listing.items):
        return {name: [i for i in listing.items if i.split == name] for name in ("train", "test")}
    held = exactly(listing.items, share, seed) if listing.fixed else by_name(listing.items, share, seed)
    by_split = {True: [], False: []}
    for item, test in zip(listing.items, held.tolist(), strict=True):
        by_split[test].append(item)
    return {"train": by_split[False], "test": by_split[True]}


def shuffled(listing: Listing, items: list[Item], seed: int, split: str) -> list[Item]:
    """The images of a split in the order of packing: by hash of their names, so that one which cannot be read, or is
    not there, leaves the others in their order; of a fixed set by a keyed permutation."""
    if listing.fixed:
        order = keyed.permute(np.arange(len(items)), len(items), seed, "pack", split)
    else:
        order = np.argsort(named(items, seed, "pack"), kind="stable")
    return [items[i] for i in order]


def named(items: list[Item], *parts: str | int) -> np.ndarray:
    """A number in [0, 1) for each image, by its name and the key parts -> float64 [n]."""
    hashes = [hashlib.blake2b(i.name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for i in items]
    return keyed.uniform(1, *parts, np.frombuffer(b"".join(hashes), "<u8"))[:, 0]


def exactly(items: list[Item], share: float, seed: int) -> np.ndarray:
    """Of each class, the first ``share`` in a keyed order is test -> bool [n]."""
    labels = np.array([item.label for item in items])
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = keyed.permute(np.arange(len(members)), len(members), seed, "split", int(label))
        held[members[order[: round(share * len(members))]]] = True
    return held


def by_name(items: list[Item], share: float, seed: int) -> np.ndarray:
    """An image is test where the hash of its name falls below ``share`` -> bool [n]. By name, not by content: it is
    known before anything is read, and an image that is edited stays where it was. Of a class that would be all test,
    the image with the largest hash is trained on: the only one that may move when others come or go."""
    draws = named(items, seed, "split")
    held = draws < share
    labels = np.array([item.label for item in items])
    for label in np.unique(labels) if share < 1 else ():
        members = np.flatnonzero(labels == label)
        if held[members].all():
            held[members[np.argmax(draws[members])]] = False
    return held
