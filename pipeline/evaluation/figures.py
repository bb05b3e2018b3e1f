"""The probe's pictures: who is how good, and what is taken for what."""

import numpy as np


def canvas(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def drawn(page) -> np.ndarray:
    """A finished canvas -> uint8 [H, W, 3]."""
    page.draw()
    return np.asarray(page.buffer_rgba())[..., :3].copy()


def confusion(truth: np.ndarray, predicted: np.ndarray, names: list[str], title: str) -> np.ndarray:
    """How many of each class (down) were taken for which (across); numbers where there is room -> uint8 [H, W, 3]."""
    count = len(names)
    table = np.zeros((count, count), int)
    np.add.at(table, (truth, predicted), 1)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(12.0, 3 + 0.5 * count)
    figure, page = canvas(side, side)
    plot = figure.add_subplot()
    plot.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if count <= 20:
        for i, j in np.ndindex(count, count):
            if table[i, j]:
                plot.text(j, i, table[i, j], ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
        plot.set_xticks(range(count), names, rotation=45, ha="right")
        plot.set_yticks(range(count), names)
    plot.set(xlabel="predicted", ylabel="true", title=title)
    return drawn(page)


def ladder(rows: dict[str, dict[str, float]], few: str) -> np.ndarray:
    """Each row's three accuracies in per cent, few-label ones with the deviation over draws -> uint8 [H, W, 3]."""
    names = sorted(rows, key=lambda name: rows[name][few])
    figure, page = canvas(9, 1.5 + 0.75 * len(names))
    plot = figure.add_subplot()
    marks = {"linear_top1": ("linear, all labels", "o"), few: ("linear, few labels", "s"), "knn_top1": ("kNN", "D")}
    for offset, (key, (label, marker)) in zip((0.22, 0, -0.22), marks.items(), strict=True):
        values = [100 * rows[name][key] for name in names]
        errors = [100 * rows[name].get(f"{key}_sd", 0.0) for name in names]
        heights = np.arange(len(names)) + offset
        plot.errorbar(values, heights, xerr=errors, fmt=marker, capsize=3, label=label)
        for value, height in zip(values, heights, strict=True):
            plot.annotate(f"{value:.1f}", (value, height), textcoords="offset points", xytext=(0, 6), ha="center", size=8)
    plot.set_yticks(range(len(names)), names)
    plot.set(xlabel="test accuracy, %", title="Frozen features, judged by the same probe", ylim=(-0.6, len(names) - 0.3))
    plot.grid(axis="x", alpha=0.3)
    plot.legend(loc="upper left", fontsize=8)
    return drawn(page)
