"""The sources of images: one class for each prefix that a pack's ``source`` may have.

A class finds mistakes before anything is packed, gives the fingerprint of the data for the artifact's key, and lists
the images to pack. Nothing here imports numpy before it is needed, since these classes check configs.
"""

from pathlib import Path

from pipeline.data.sources.base import Item, Listing, Source
from pipeline.data.sources.digits import Digits
from pipeline.data.sources.folder import ImageFolder
from pipeline.data.sources.shards import PackedShards
from pipeline.data.sources.torchvision import Torchvision
from pipeline.data.sources.webdataset import WebDataset
from pipeline.errors import DataError
from pipeline.settings.stages import Pack

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "folder:": ImageFolder,
    "torchvision:": Torchvision,
    "wds:": WebDataset,
    "shards:": PackedShards,
}
"""The class of each prefix; one that ends with a colon is followed by a location or a name."""
__all__ = ["SOURCES", "Item", "Listing", "Source", "find", "open_source"]


def find(settings: Pack, root: Path | None = None) -> Source | None:
    """The source that ``settings.source`` names, or None where there is no such source. ``root``: the folder of runs,
    whose images are not packed."""
    scheme, colon, where = settings.source.partition(":")
    make = SOURCES.get(scheme + colon)
    return make(where, settings, root) if make else None


def open_source(settings: Pack, root: Path | None = None) -> Source:
    """The source that ``settings.source`` names (see `find`). Raises DataError where there is no such source."""
    source = find(settings, root)
    if source is None:
        raise DataError(f"source {settings.source!r}: expected one of {', '.join(SOURCES)}")
    return source
