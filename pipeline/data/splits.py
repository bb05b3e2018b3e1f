"""Decides the test split and the order of packing by the hash of an image's name: an image keeps its split, and its
order among the others, when images are added, removed or unreadable."""

import hashlib

import numpy as np

from pipeline import keyed
from pipeline.data.sources import Item, Listing


def halves(listing: Listing, share: float, seed: int) -> dict[str, list[Item]]:
    """The images of each split. A source with splits keeps them. Of a set that never changes (`Listing.fixed`),
    exactly ``share`` of each class is test; of any other, each image's own name decides (`by_name`)."""
    if any(item.split for item in listing.items):
        return {name: [i for i in listing.items if i.split == name] for name in ("train", "test")}
    held = exactly(listing.items, share, seed) if listing.fixed else by_name(listing.items, share, seed)
    by_split = {True: [], False: []}
    for item, test in zip(listing.items, held.tolist(), strict=True):
        by_split[test].append(item)
    return {"train": by_split[False], "test": by_split[True]}


def shuffled(listing: Listing, items: list[Item], seed: int, split: str) -> list[Item]:
    """The images of a split in the order of packing: sorted by the hash of their names, so that a missing image does
    not change the order of the others; for a set that never changes, a keyed permutation."""
    if listing.fixed:
        order = keyed.permute(np.arange(len(items)), len(items), seed, "pack", split)
    else:
        order = np.argsort(named(items, seed, "pack"), kind="stable")
    return [items[i] for i in order]


def named(items: list[Item], *parts: str | int) -> np.ndarray:
    """A uniform number in [0, 1) for each image, a function of its name and the key parts -> float64 [n]."""
    hashes = [hashlib.blake2b(i.name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for i in items]
    return keyed.uniform(1, *parts, np.frombuffer(b"".join(hashes), "<u8"))[:, 0]


def exactly(items: list[Item], share: float, seed: int) -> np.ndarray:
    """Which images are test: of each class the first ``share`` in a keyed order -> bool [n]."""
    labels = np.array([item.label for item in items])
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = keyed.permute(np.arange(len(members)), len(members), seed, "split", int(label))
        held[members[order[: round(share * len(members))]]] = True
    return held


def by_name(items: list[Item], share: float, seed: int) -> np.ndarray:
    """Which images are test: those whose name's hash, as a number in [0, 1), is below ``share`` -> bool [n]. The name
    is known before anything is read, and stays when the image is edited. Of a class that would be all test, the image
    with the largest hash is trained on; no other image can change its split when images are added or removed."""
    draws = named(items, seed, "split")
    held = draws < share
    labels = np.array([item.label for item in items])
    for label in np.unique(labels) if share < 1 else ():
        members = np.flatnonzero(labels == label)
        if held[members].all():
            held[members[np.argmax(draws[members])]] = False
    return held
