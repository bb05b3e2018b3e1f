"""Sheets of what chains of continuous images draw from noise."""

from collections.abc import Sequence

from torch import Tensor

from pipeline import sheets
from pipeline.sheets import Picture

SAMPLES, FILMS = 64, 8
"""Samples drawn, and those whose way from noise is shown."""
PLACES = 14
"""Places on that way that are shown, at most."""


def pictures(
    states: Tensor, shape: Sequence[int], energies: Tensor, of_data: Tensor, how: str, heads: Sequence[str], way: str
) -> dict[str, Picture]:
    """Sheets of chains' ends by their energies [n], and of their way: states [places, n, D], with ``heads`` above the
    places. ``of_data``: energies of test images; ``how`` and ``way``: what the captions say of the chains."""
    told = (
        f"Samples: {how}; the number: energy, of samples {spread(energies)}, of {len(of_data):,} test images "
        f"{spread(of_data)}."
    )
    cells, words = sheets.images(states[-1].unflatten(1, shape)), [f"{energy:.4g}" for energy in energies.tolist()]
    every = -(-len(states) // PLACES)
    shown = sorted({*range(0, len(states), every), len(states) - 1})
    films = states[shown][:, :FILMS].transpose(0, 1).flatten(0, 1).unflatten(1, shape)
    lines = sheets.lines(sheets.images(films), len(shown))
    return {
        "samples": Picture(sheets.sheet(sheets.lines(cells, 8), sheets.lines(words, 8)), told),
        "chains": Picture(sheets.sheet(lines, heads=[heads[place] for place in shown]), way),
    }


def spread(values: Tensor) -> str:
    """Mean and standard deviation, in words."""
    return f"{values.mean():.4g} ± {values.std():.3g}"
