"""digits: the images that come with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path

from pipeline.data.sources.base import Item, Listing, Source, png


class Digits(Source):
    """The 1,797 handwritten digits in scikit-learn, 8x8 pixels, whose grey levels 0 to 16 are scaled to 0 to 255."""

    def listing(self) -> Listing:
        import numpy as np

        home = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr]  # importing it takes seconds
        rows = np.loadtxt(Path(home[0], "datasets/data/digits.csv.gz"), delimiter=",")  # type: ignore[index]
        pixels = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        items = [
            Item(f"digit {i}", None, int(label), lambda image=image: png(image))
            for i, (image, label) in enumerate(zip(pixels, rows[:, -1], strict=True))
        ]
        return Listing(items, [str(i) for i in range(10)], fixed=True)
