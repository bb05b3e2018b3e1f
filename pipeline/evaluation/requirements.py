"""What a probe requires of the shards it will read, known as soon as they are there: before anything is trained."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.layout import plural, some
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.settings.stages import Probe


def check(settings: Probe, folder: Path) -> list[str]:
    """What will lower the probe's numbers, in words. Raises DataError where it could not work at all: an empty split,
    images without a label, fewer images of a class than labels are drawn, no class in both splits."""
    train, test = Shards.open(folder, "train", check=False), Shards.open(folder, "test", check=False)
    y, y_test = labels(settings, folder, train, test)
    names = train.classes or [str(c) for c in range(int(max(y.max(), y_test.max())) + 1)]
    counts = np.bincount(y, minlength=len(names))
    enough(settings, folder, counts, names)
    absent = np.flatnonzero(np.bincount(y_test, minlength=len(names)).astype(bool) & (counts == 0))
    if np.isin(y_test, absent).all():
        raise DataError(
            f"{folder}: no class of the test split ({some(names[c] for c in absent)}) is in the training split; "
            f"splits and classes of the stage that packs say how a folder is read"
        )
    return list(doubts(settings, counts, y_test, absent, names))


def labels(settings: Probe, folder: Path, train: Shards, test: Shards) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the training images that a probe uses, and of the test images. Raises DataError where a split is
    empty, or an image has none."""
    both = train.labels[: settings.train_examples], test.labels
    for split, each in zip(("training", "test"), both, strict=True):
        if not len(each):
            raise DataError(
                f"{folder}: the {split} split is empty; a probe needs labelled images in it, at least two of a class"
            )
        if (each < 0).any():
            raise DataError(
                f"{folder}: {(each < 0).sum():,} of {len(each):,} images of the {split} split have no label; a "
                f"probe needs one for each: pack folders named by class, or leave the probe out (--only, with the "
                f"names of the other stages)"
            )
    return both


def enough(settings: Probe, folder: Path, counts: np.ndarray, names: list[str]) -> None:
    """Raises DataError where ``counts``, training images by class, leave nothing to validate on, or fewer of a class
    than ``per_class`` draws."""
    validation = np.round(settings.validation * counts).astype(int)
    fit = counts - validation
    if not validation.any():
        raise DataError(
            f"{folder}: no class has enough images to hold out {settings.validation:g} of them to choose by, the "
            f"largest has {counts.max()}; pack more"
        )
    few = np.flatnonzero((counts > 0) & (fit < settings.per_class))
    if len(few):
        least = int(few[np.argmin(fit[few])])
        raise DataError(
            f"{folder}: {plural(len(few), 'class')} of {len(names)} have fewer than the {settings.per_class} images "
            f"that per_class draws: {names[least]} has {counts[least]}, of which {fit[least]} are not held out to "
            f"validate; lower per_class to {fit[least]}, or pack more" if fit[least] else
            f"{folder}: {names[least]} has no image that is not held out to validate; pack more, or leave it out"
        )  # fmt: skip


def doubts(
    settings: Probe, counts: np.ndarray, y_test: np.ndarray, absent: np.ndarray, names: list[str]
) -> Iterator[str]:
    """What makes a probe of these images say less than it seems to. ``absent``: classes of the test split alone."""
    classes, images = np.flatnonzero(counts), int(counts.sum())
    if len(classes) == 1:
        yield f"one class alone ({names[classes[0]]}): whatever an encoder does, every answer is right"
    if settings.neighbours > images:
        yield (
            f"neighbours {settings.neighbours} of {images:,} training images: all of them vote; at most {images} is "
            f"meant"
        )
    if unseen := int(np.isin(y_test, absent).sum()):
        yield (
            f"{unseen:,} of {len(y_test):,} test images are of classes never trained on "
            f"({some(names[c] for c in absent)}): all wrong"
        )
    if len(lone := np.setdiff1d(classes, y_test)):
        yield f"{plural(len(lone), 'class')} without a test image: {some([names[c] for c in lone])}"
