"""Figures of the probe and of the codes stage: accuracies, confusions, atoms."""

import numpy as np
import torch
from torch import Tensor

from pipeline import sheets
from pipeline.data.images import SquareImages
from pipeline.data.patches import Patches
from pipeline.evaluation import knn
from pipeline.sheets import MARKED, RIGHT, WRONG, Frame, Picture, canvas, drawn, lettering

NUMBERED = 20  # classes at most whose confusion matrix has names and numbers
NAMED = 120  # pixels, about, that such a name has
ATOMS, LISTED = 12, 288  # in a line of the dictionary, and at most of it
STRONGEST, LIKED = 12, 8  # atoms shown beside patches, and how many of those
QUERIES, NEIGHBOURS = 8, 6  # lines and columns of the neighbours' sheet
CLOSE = 96  # pixels, about, of an image there
JUDGED = 1000  # queries at most whose neighbours are counted


def confusion(table: np.ndarray, names: list[str], encoder: str) -> Picture:
    """How many of each class (down) a probe of ``encoder`` took for which (across), int [C, C]; names and counts where
    there is room, else the numbers of the classes."""
    from matplotlib.colors import PowerNorm

    count, side = len(table), min(9.0, 3 + 0.5 * len(table))
    part = table / np.maximum(table.sum(1, keepdims=True), 1)
    figure, page = canvas(side, side if count <= NUMBERED else 0.85 * side)
    plot = figure.add_subplot()
    if count <= NUMBERED:
        plot.imshow(part, cmap="Blues", vmin=0, vmax=1)
        for i, j in zip(*table.nonzero(), strict=True):
            plot.text(j, i, table[i, j], ha="center", va="center", color="white" if part[i, j] > 0.5 else "black")
        shown, families = lettering([sheets.shorten(name, NAMED) for name in names])
        plain = {"parse_math": False, "family": families}  # a name may hold $
        plot.set_xticks(range(count), shown, rotation=45, ha="right", **plain)
        plot.set_yticks(range(count), shown, **plain)
    else:  # few of many classes are confused with one: small shares are to be seen
        drawing = plot.imshow(part, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        figure.colorbar(drawing, shrink=0.7, label="share of a true class")
    plot.set(xlabel="predicted class", ylabel="true class")
    right = 100 * table.trace() / max(1, table.sum())
    caption = (
        f"What a linear probe of {encoder}, all labels, takes {table.sum():,} test images for: {right:.1f} % are "
        f"right. {confused(table, names)}"
    )
    return Picture(drawn(page), caption)


def confused(table: np.ndarray, names: list[str]) -> str:
    """The pairs of classes that are taken for one another most, in a sentence."""
    wrong = table * (1 - np.eye(len(table), dtype=int))
    most = [divmod(int(i), len(table)) for i in (-wrong.ravel()).argsort(kind="stable")[:3]]
    pairs = [f"{names[i]} for {names[j]} ({wrong[i, j]} of {table[i].sum()})" for i, j in most if wrong[i, j]]
    return f"Most often mistaken: {', '.join(pairs)}." if pairs else "None is mistaken."


def accuracy_chart(rows: dict[str, dict[str, float]]) -> Picture:
    """Each row's three accuracies in per cent, the best at the top: all labels with the deviation of a finite test set
    (``linear_top1_sd``), few labels with that over draws."""
    names = sorted(rows, key=lambda name: rows[name]["linear_few"])
    figure, page = canvas(7, 1.5 + 0.7 * len(names))
    plot = figure.add_subplot()
    marks = {"linear_top1": ("linear, all labels", "o"), "linear_few": ("linear, few labels", "s")}
    marks["knn_top1"] = ("kNN", "D")
    for offset, (key, (label, marker)) in zip((0.25, 0, -0.25), marks.items(), strict=True):
        values = [100 * rows[name][key] for name in names]
        errors = [100 * rows[name].get(f"{key}_sd", 0.0) for name in names]
        heights = np.arange(len(names)) + offset
        plot.errorbar(values, heights, xerr=errors, fmt=marker, capsize=3, label=label)
        for value, height in zip(values, heights, strict=True):
            at = {"textcoords": "offset points", "xytext": (0, 5), "ha": "center", "size": 8}
            plot.annotate(f"{value:.1f}", (value, height), **at)
    plot.set_yticks(range(len(names)), names)
    plot.set(xlabel="test accuracy, %", ylim=(-0.5, len(names) - 0.4))
    plot.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    caption = (
        "Test accuracy of frozen features, the same probe for all. Bars: ± one standard deviation, with all labels "
        "of a finite test set, with few over label draws."
    )
    return Picture(drawn(page), caption)


def neighbours(test: Tensor, labels: np.ndarray, pictures: SquareImages, names: list[str], encoder: str) -> Picture:
    """A test image at the left of each line, and beside it the test images whose features are nearest to its own, with
    whether they are of its class. ``test``: features [m, D] of the images ``pictures``."""
    share, chance = same_class(test, labels)
    queries = torch.linspace(0, len(test) - 1, min(QUERIES, len(test))).long()
    ids = nearest(test, queries)
    cells = sheets.lines(sheets.images(pictures.take(ids.flatten()).float() / 255, CLOSE), ids.shape[1])
    frames = [
        Frame(
            (r, c),
            (r, c),
            *((MARKED, "?") if c == 0 else (RIGHT, "✓") if labels[i] == labels[line[0]] else (WRONG, "✗")),
        )
        for r, line in enumerate(ids)
        for c, i in enumerate(line)
    ]
    caption = (
        f"Nearest neighbours by the features of {encoder}: a test image (?) and the {ids.shape[1] - 1} others nearest "
        f"to it, ✓ of its class, ✗ of another. Of {min(JUDGED, len(test)):,} test images, {100 * share:.1f} % of "
        f"these neighbours are of their class (by chance {100 * chance:.1f} %)."
    )
    words = [[names[labels[i]] for i in line] for line in ids]
    heads = ["test image", *(str(rank) for rank in range(1, ids.shape[1]))]
    return Picture(sheets.sheet(cells, words, heads, frames=frames), caption)


def nearest(rows: Tensor, queries: Tensor) -> np.ndarray:
    """Each query and the NEIGHBOURS rows nearest to it, int64 [n, <= 1 + NEIGHBOURS]; rows [m, D]."""
    _, ids = knn.neighbours(rows, rows[queries], NEIGHBOURS + 1)
    # Of equal rows another may come before the query itself.
    others = [
        [i for i in line if i != q][: ids.shape[1] - 1] for q, line in zip(queries.tolist(), ids.tolist(), strict=True)
    ]
    return np.column_stack([queries.numpy(), np.array(others, int).reshape(len(queries), -1)])


def same_class(rows: Tensor, labels: np.ndarray) -> tuple[float, float]:
    """Share of the NEIGHBOURS of at most JUDGED rows that are of their class, and the share of other rows that are."""
    queries = torch.linspace(0, len(rows) - 1, min(JUDGED, len(rows))).long()
    ids = nearest(rows, queries)
    counts = np.unique(labels, return_counts=True)[1]
    chance = (counts * (counts - 1)).sum() / max(1, len(labels) * (len(labels) - 1))
    return float((labels[ids[:, 1:]] == labels[ids[:, :1]]).mean()) if ids.shape[1] > 1 else 0.0, float(chance)


def atoms(d: Tensor, channels: int, side: int) -> list[np.ndarray]:
    """Atoms [p, k] as k images, grey where they are 0, each to its own full contrast."""
    images = d.T.reshape(-1, channels, side, side)
    return sheets.images(0.5 + 0.5 * images / images.abs().amax((1, 2, 3), keepdim=True))


def dictionary(atoms: list[np.ndarray], order: list[int], usage: Tensor) -> Picture:
    """All atoms, those that most signals use (``usage`` [k], shares) first as ``order`` says."""
    shown = order[:LISTED]
    names = [f"{i}: {share(usage[i])}" for i in shown]
    cells, lines = (sheets.lines(x, ATOMS) for x in ([atoms[i] for i in shown], names))
    caption = (
        f"The dictionary: {len(shown)} of {len(order)} atoms, of whitened patches, grey where they are 0, each with "
        "its number and the share of held-out patches whose code uses it; the most used first."
    )
    return Picture(sheets.sheet(cells, lines), caption)


def strongest(
    patches: Patches, index: np.ndarray, z: Tensor, order: Tensor, usage: Tensor, atoms: list[np.ndarray] | None
) -> Picture:
    """A line an atom, the first STRONGEST of ``order``: the atom, where atoms are of pixels, and beside it the patches
    or images, at places ``index`` [N] of their order, to which codes z [N, k] give it most weight."""
    chosen = order[:STRONGEST]
    weights, top = z[:, chosen].abs().sort(dim=0, descending=True, stable=True)
    columns = slice(0, LIKED)
    pixels = patches.take(index[top[columns].T.flatten().numpy()]).float() / 255
    cells = sheets.lines(sheets.images(pixels), min(LIKED, len(index)))
    names = [[f"{weight:.2f}" for weight in line] for line in weights[columns].T.tolist()]
    rows = [f"atom {i}: {share(usage[i])}" for i in chosen.tolist()]
    what, frames = "images", []
    if atoms is not None:
        cells = [[atoms[i], *line] for i, line in zip(chosen.tolist(), cells, strict=True)]
        names = [["", *line] for line in names]
        what, frames = "patches", [Frame((row, 0), (row, 0), MARKED) for row in range(len(cells))]
    caption = (
        f"The {len(rows)} most used atoms, with the share of held-out {what} whose code uses each; beside it the "
        f"{what} that give it most weight (under each: the weight without its sign)."
    )
    return Picture(sheets.sheet(cells, names, rows=rows, frames=frames), caption)


def share(fraction: Tensor) -> str:
    """A share in whole per cent."""
    return "< 1%" if 0 < fraction < 0.01 else f"{100 * float(fraction):.0f}%"
