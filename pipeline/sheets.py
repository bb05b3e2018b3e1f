"""Pictures as arrays: images laid out in a grid, and the views a training sees."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SIDE = 64  # pixels at least, of one image of a sheet: small images are shown enlarged


def tile(images: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """Float images in [0, 1], [N, C, H, W] with C of 1 or 3 -> one sheet, uint8 [height, width, 3].

    Small images are enlarged by a whole factor without smoothing, so that their pixels can be seen.
    """
    images = images.detach().float().cpu().clamp(0, 1)
    zoom = max(1, SIDE // images.shape[-1])
    images = images.expand(-1, 3, -1, -1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, one in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, y : y + height, x : x + width] = one
    return (sheet * 255).round().byte().permute(1, 2, 0).numpy()


def views(batch: Sequence[Tensor], rows: int = 8) -> np.ndarray:
    """A row a sample: its views in [0, 1], [B, C, H, W], side by side; patches or small crops [B, P, C, h, w] in their
    order, put together as one."""
    shown = [view[:rows].float().cpu() for view in batch]
    if shown[-1].ndim == 5:
        patches = shown.pop()
        n, count, channels, side, _ = patches.shape
        edge = math.ceil(count**0.5)
        grid = torch.ones(n, channels, edge * (side + 1) - 1, edge * (side + 1) - 1)
        for i in range(count):
            y, x = (i // edge) * (side + 1), (i % edge) * (side + 1)
            grid[:, :, y : y + side, x : x + side] = patches[:, i]
        shown.append(grid)
    side = max(v.shape[-1] for v in shown)
    shown = [torch.nn.functional.interpolate(v, size=(side, side), mode="nearest") for v in shown]
    return tile(torch.stack(shown, 1).flatten(0, 1), columns=2 * len(shown))


def ellipses(mean: Tensor, deviation: Tensor, labels: np.ndarray) -> np.ndarray:
    """Codes [n, 2] in a latent plane, each an ellipse whose half axes are its deviations [n, 2], coloured by label ->
    uint8 [H, W, 3]."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    centre, axes = mean.numpy(), deviation.numpy()
    figure = Figure(figsize=(9, 9), dpi=100)
    canvas, plot = FigureCanvasAgg(figure), figure.add_subplot()
    colours = colormaps["tab10"](np.maximum(labels, 0) % 10)
    plot.add_collection(
        EllipseCollection(
            2 * axes[:, 0], 2 * axes[:, 1], np.zeros(len(centre)), units="xy", offsets=centre,
            offset_transform=plot.transData, facecolors=colours, edgecolors="none", alpha=0.35,
        )
    )  # fmt: skip
    for label in np.unique(labels[labels >= 0]):
        at = np.median(centre[labels == label], 0)
        plot.text(at[0], at[1], str(label), fontsize=16, weight="bold", ha="center", va="center")
    plot.add_artist(Circle((0, 0), 2, fill=False, ls=":"))
    plot.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xlabel="z1", ylabel="z2")
    plot.set_title("Codes of test images: a ball at E(z), as wide as √V(z); dotted: two deviations of the prior")
    figure.tight_layout()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
