"""Figures of the probe and of the codes stage: accuracies, confusions, atoms."""

from typing import Any

import numpy as np
from torch import Tensor

from pipeline import sheets
from pipeline.data.patches import Patches

NUMBERED = 20  # classes at most whose confusion matrix has names and numbers


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and the page it is drawn on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def drawn(page: Any) -> np.ndarray:
    """A finished page -> uint8 [H, W, 3]."""
    page.draw()
    return np.asarray(page.buffer_rgba())[..., :3].copy()


def lettering(names: list[str]) -> tuple[list[str], list[str]]:
    """Families of this machine's fonts that together have the letters of names, and the names with "U+732B" for a
    letter that none of them has."""
    from matplotlib import font_manager, rcParams
    from matplotlib.ft2font import FT2Font

    families = [font_manager.FontProperties(family=rcParams["font.family"]).get_name()]
    usual = FT2Font(font_manager.findfont(families[0])).get_charmap()
    missing = {ord(letter) for letter in "".join(names)} - usual.keys()
    for font in font_manager.fontManager.ttflist if missing else ():
        if not font.name.startswith("Last Resort") and (had := missing & FT2Font(font.fname).get_charmap().keys()):
            families.append(font.name)
            missing -= had
    return ["".join(f"U+{ord(c):04X}" if ord(c) in missing else c for c in name) for name in names], families


def confusion(table: np.ndarray, names: list[str], title: str) -> np.ndarray:
    """How many of each class (down) were taken for which (across), int [C, C]; names and numbers where there is room
    -> uint8 [H, W, 3]."""
    count = len(table)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(12.0, 3 + 0.5 * count)
    figure, page = canvas(side, side)
    plot = figure.add_subplot()
    plot.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if count <= NUMBERED:
        for i, j in np.ndindex(count, count):
            if table[i, j]:
                plot.text(j, i, table[i, j], ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
        shown, families = lettering(names)
        plain = {"parse_math": False, "family": families}  # a name may hold $
        plot.set_xticks(range(count), shown, rotation=45, ha="right", **plain)
        plot.set_yticks(range(count), shown, **plain)
    plot.set(xlabel="predicted", ylabel="true", title=title)
    return drawn(page)


def accuracy_chart(rows: dict[str, dict[str, float]]) -> np.ndarray:
    """Each row's three accuracies in per cent, the best at the top: all labels with the deviation of a finite test set
    (``linear_top1_sd``), few labels with that over draws -> uint8 [H, W, 3]."""
    names = sorted(rows, key=lambda name: rows[name]["linear_few"])
    figure, page = canvas(9, 2 + 0.7 * len(names))
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
    plot.set(xlabel="test accuracy, %  (bars: ± one standard deviation)", ylim=(-0.5, len(names) - 0.4))
    plot.grid(axis="x", alpha=0.3)
    figure.suptitle("Frozen features, the same probe for all")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return drawn(page)


def atoms(d: Tensor, channels: int, side: int) -> np.ndarray:
    """Atoms [p, k] as images, grey where they are 0, each to its own full contrast -> one sheet, uint8."""
    images = d.T.reshape(-1, channels, side, side)
    return sheets.tile(0.5 + 0.5 * images / images.abs().amax((1, 2, 3), keepdim=True), columns=16)


def strongest(patches: Patches, index: np.ndarray, z: Tensor, rows: int = 16, columns: int = 9) -> np.ndarray:
    """A row an atom, the first ``rows`` of codes z [N, k]: the patches or images, at places ``index`` [N] of their
    order, whose codes give it most weight -> one sheet, uint8."""
    top = (-z[:, :rows].abs()).argsort(dim=0, stable=True)[:columns].T
    return sheets.tile(patches.take(index[top.flatten().numpy()]).float() / 255, top.shape[1])
