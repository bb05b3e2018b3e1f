"""What a probe requires of the shards it will read, known as soon as they are there: before anything is trained."""

from pathlib import Path

import numpy as np

from pipeline.data.index import Shards
from pipeline.data.layout import plural, some
from pipeline.errors import DataError
from pipeline.settings.stages import Probe


def check(settings: Probe, folder: Path) -> list[str]:
    """What will lower the probe's numbers, in words. Raises DataError where it could not work at all: an empty split,
    images without a label, fewer images of a class than labels are drawn, no class in both splits."""
    train, test = Shards.open(folder, "train", check=False), Shards.open(folder, "test", check=False)
    labels, tested = train.labels[: settings.train_examples], test.labels
    for split, found in (("training", labels), ("test", tested)):
        if not len(found):
            raise DataError(
                f"{folder}: the {split} split is empty; a probe needs labelled images in it, at least two of a class"
            )
        if (found < 0).any():
            raise DataError(
                f"{folder}: {(found < 0).sum():,} of {len(found):,} images of the {split} split have no label; a "
                f"probe needs one for each: pack folders named by class, or leave the probe out"
            )
    names = train.classes or [str(c) for c in range(int(max(labels.max(), tested.max())) + 1)]
    counts = np.bincount(labels, minlength=len(names))
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
    absent = np.flatnonzero(np.bincount(tested, minlength=len(names)).astype(bool) & (counts == 0))
    unseen = int(np.isin(tested, absent).sum())
    if unseen == len(tested):
        raise DataError(
            f"{folder}: no class of the test split ({some(names[c] for c in absent)}) is in the training split; "
            f"splits and classes of the stage that packs say how a folder is read"
        )
    said = []
    if len(seen := np.flatnonzero(counts)) == 1:
        said.append(f"one class alone ({names[seen[0]]}): whatever an encoder does, every answer is right")
    if settings.neighbours > len(labels):
        count = f"{len(labels):,} training images"
        said.append(f"neighbours {settings.neighbours} of {count}: all of them vote; at most {len(labels)} is meant")
    if unseen:
        told = some(names[c] for c in absent)
        said.append(f"{unseen:,} of {len(tested):,} test images are of classes never trained on ({told}): all wrong")
    lone = [names[c] for c in np.setdiff1d(np.flatnonzero(counts), tested)]
    if lone:
        said.append(f"{plural(len(lone), 'class')} without a test image: {some(lone)}")
    return said
