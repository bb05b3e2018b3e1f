"""Pictures of what an autoencoder's latent holds."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pipeline import sheets
from pipeline.sheets import Picture

COLUMNS = 8  # reconstructions in a line
AXIS = 40  # pixels of an image of the latent plane
LEGEND, NAMED = 20, 120  # classes at most that are named; pixels, about, that a name has
SHORT = 30  # pixels of names that stand among the codes, too


def reconstructions(images: Tensor, decoded: Tensor, errors: Tensor) -> Picture:
    """Images [n, C, H, W] in lines, each over its reconstruction; ``errors``: of these and more images, [m]."""
    above, below = (sheets.lines(sheets.images(x), COLUMNS) for x in (images, decoded))
    told = sheets.lines([f"{error:.4f}" for error in errors[: len(images)].tolist()], COLUMNS)
    lines = [line for pair in zip(above, below, strict=True) for line in pair]
    names = [line for told_line in told for line in ([""] * len(told_line), told_line)]
    caption = (
        f"Reconstructions: each image over what the decoder makes of its code, and their mean squared error a pixel "
        f"(black is 0, white is 1); over {len(errors):,} images it is {errors.mean():.4f}."
    )
    return Picture(sheets.sheet(lines, names, rows=["image", "decoded"] * len(above)), caption)


def interpolations(images: Tensor, paths: Tensor, classes: list[str]) -> Picture:
    """Lines from the i-th image to the i-th of the second half of ``images``; ``paths``: what lies on the straight
    ways between their codes, decoded, line by line."""
    count = len(images) // 2
    ends, steps = sheets.images(images), len(paths) // count
    lines = [[ends[i], *line, ends[count + i]] for i, line in enumerate(sheets.lines(sheets.images(paths), steps))]
    names = [[classes[i], *[""] * steps, classes[count + i]] for i in range(count)]
    shares = [f"{share:.2f}" for share in np.linspace(0, 1, steps)]
    shares[0], shares[-1] = "a decoded", "b decoded"
    caption = (
        "Interpolations: at the ends two images, a and b; between them, decoded, the points of the straight way from "
        "the code of a to that of b (the number: share of the way)."
    )
    return Picture(sheets.sheet(lines, names, heads=["image a", *shares, "image b"]), caption)


def plane(decoded: Tensor, quantiles: Tensor) -> Picture:
    """What lies where in a latent plane: [n^2, C, H, W] line by line, at these values [n] of both units, the second's
    largest in the first line."""
    words = [f"{value:.2f}" for value in quantiles.tolist()]
    lines = sheets.lines(sheets.images(decoded, AXIS), len(words))
    rows = [("z2 = " if i == 0 else "") + word for i, word in enumerate(reversed(words))]
    caption = (
        "The latent plane, decoded: z1 to the right, z2 upwards, at equally probable steps of the prior N(0, 1) from "
        "its quantile 2.5 % to 97.5 %."
    )
    return Picture(sheets.sheet(lines, heads=words, rows=rows), caption)


def ellipses(mean: Tensor, deviation: Tensor, classes: list[str]) -> Picture:
    """Codes [n, 2] in a latent plane, each an ellipse whose half axes are its deviations [n, 2], coloured by class."""
    from matplotlib.patches import Patch

    centre = mean.numpy()
    names = sorted(set(classes))
    number = np.array([names.index(name) for name in classes])
    palette, named = sheets.colours(len(names)), names if len(names) <= LEGEND else []
    shown, families = sheets.lettering([sheets.shorten(name or "no class", NAMED) for name in named])
    longest = max([sheets.width_of(name, sheets.CAPTION) for name in shown], default=-80)
    figure, page = sheets.canvas(8 + (longest + 80) / 100, 8)
    plot = figure.add_subplot()
    draw_balls(plot, centre, deviation.numpy(), palette[number])
    for i, name in enumerate(shown if longest < SHORT else []):
        x, y = np.median(centre[number == i], 0)
        letters = {"family": families, "size": 14, "weight": "bold"}
        plot.text(x, y, name, ha="center", va="center", parse_math=False, **letters)
    if shown:
        patches = [Patch(color=colour, label=name) for colour, name in zip(palette, shown, strict=True)]
        figure.legend(handles=patches, loc="outside right upper", prop={"family": families, "size": 11})
    caption = (
        f"Codes of {len(centre):,} images in the latent plane, coloured by class: an ellipse at the mean of q(z|x), "
        "whose half axes are its standard deviations. Dotted: two standard deviations of the prior."
    )
    return Picture(sheets.drawn(page), caption)


def draw_balls(plot: Any, centre: np.ndarray, axes: np.ndarray, colours: np.ndarray) -> None:
    """Ellipses at ``centre`` [n, 2] with half ``axes`` [n, 2] in ``colours`` [n, 3], and two deviations of the prior
    dotted, on matplotlib's axes."""
    from matplotlib.collections import EllipseCollection
    from matplotlib.patches import Circle

    plot.add_collection(
        EllipseCollection(
            2 * axes[:, 0], 2 * axes[:, 1], np.zeros(len(centre)), units="xy", offsets=centre,
            offset_transform=plot.transData, facecolors=colours, edgecolors="none", alpha=0.35,
        )
    )  # fmt: skip
    plot.add_artist(Circle((0, 0), 2, fill=False, ls=":"))
    reach = max(4.0, 1.05 * float(np.abs(centre).max()))
    plot.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="z1", ylabel="z2")


class Panel(NamedTuple):
    """A latent plane of a sheet: means and deviations of q(z|x) [n, 2], and lines of words above it."""

    mean: Tensor
    deviation: Tensor
    title: str


def balls(panels: list[Panel], classes: list[str]) -> Picture:
    """Latent planes beside each other: where the same images lie in them, and how wide their noise is."""
    names = sorted(set(classes))
    palette = sheets.colours(len(names))[[names.index(name) for name in classes]]
    figure, page = sheets.canvas(5.5 * len(panels), 6.3)
    for plot, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_balls(plot, panel.mean.numpy(), panel.deviation.numpy(), palette)
        plot.set_title(panel.title, fontsize=13)
    caption = (
        f"Balls: {len(classes):,} test images in latent planes, coloured by class: an ellipse at the mean of q(z|x), "
        "whose half axes are its standard deviations. Dotted: two standard deviations of the prior."
    )
    return Picture(sheets.drawn(page), caption)
