"""Pictures of a latent-variable energy: what codes complete an image to, atoms, and energies along the penalty."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline import sheets
from pipeline.sheets import Picture

ATOMS, ACROSS = 100, 10
"""Atoms on a sheet, and in a line of it."""


def completions(
    images: Tensor, hidden: Tensor, mean: Tensor, completed: Tensor, share: float, ratio: float, count: int
) -> Picture:
    """Images [n, C, H, W] with their hidden part [n or 1, 1, H, W] as the mean of many codes has it, and as each of a
    few codes has it, [K, n, C, H, W]; ``share``: of ``count`` images, those to which one of the few is nearer;
    ``ratio``: of the squared distance of that one to that of the mean."""
    given = torch.where(hidden, 0.5, images)
    columns = [sheets.images(x) for x in (given, mean, *completed, images)]
    lines = [list(line) for line in zip(*columns, strict=True)]
    heads = ["given", "mean", *(f"z {i + 1}" for i in range(len(completed))), "image"]
    caption = (
        "Completions: the part of an image that is given (grey: what is not), the mean of its completions, then those "
        f"by {len(completed)} codes of training images, the same in a column, and the image itself. For "
        f"{100 * share:.1f} % of {count:,} images the nearest of the {len(completed)} is nearer than the mean is; its "
        f"squared distance is {ratio:.2f} of the mean's."
    )
    return Picture(sheets.sheet(lines, heads=heads), caption)


def atoms(weight: Tensor) -> Picture:
    """Atoms of a dictionary [n, C, h, w]."""
    some = weight[:ATOMS]
    scaled = 0.5 + 0.5 * some / some.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    caption = f"Atoms: {len(some)} of {len(weight):,} that the decoder adds, each over its largest entry; grey is 0."
    return Picture(sheets.tile(scaled, ACROSS), caption)


def along_penalty(
    penalties: Sequence[float],
    means: Mapping[str, Sequence[float]],
    auroc: Mapping[str, Sequence[float]],
    trained: float,
) -> Picture:
    """Mean free energies of sets of images by the penalty that codes are inferred with, and how well these tell the
    test images from each of the other sets."""
    figure, page = sheets.canvas(8, 6)
    above, below = figure.subplots(2, sharex=True)
    for name, values in means.items():
        above.plot(penalties, values, marker="o", label=name)
    for name, values in auroc.items():
        below.plot(penalties, values, marker="o", label=f"test images below {name}")
    for plot in (above, below):
        plot.axvline(trained, color="grey", linestyle=":")
        plot.set_xscale("symlog", linthresh=penalties[1])
        plot.set_xlim(0, 1.2 * penalties[-1])
        plot.legend()
    above.set_ylabel("free energy, mean")
    below.set(xlabel="penalty of inference", ylabel="AUROC", ylim=(0, 1.02))
    caption = (
        "Energies along the penalty, of the same decoder: with none a code that is large enough makes all images "
        f"equally good, with much of it all codes are zero. Dotted: the penalty of the training, {trained:g}."
    )
    return Picture(sheets.drawn(page), caption)
