"""Where images come from: a class for each word that a pack's ``source`` may begin with.

A class says what can be known to be wrong before anything is packed, what of the data belongs to the artifact's key,
and what there is to pack. Nothing here imports numpy before it is needed: configs are checked by these classes.
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
"""By what a source's text begins with; what ends with a colon is followed by a location or a name."""
__all__ = ["SOURCES", "Item", "Listing", "Source", "find", "open_source"]


def find(settings: Pack, root: Path | None = None) -> Source | None:
    """The source that ``settings.source`` names; none where nothing has that name. ``root``: where runs are kept,
    which are no images to pack."""
    scheme, colon, where = settings.source.partition(":")
    make = SOURCES.get(scheme + colon)
    return make(where, settings, root) if make else None


def open_source(settings: Pack, root: Path | None = None) -> Source:
    """As `find`. Raises DataError where nothing has that name."""
    source = find(settings, root)
    if source is None:
        raise DataError(f"source {settings.source!r}: expected one of {', '.join(SOURCES)}")
    return source
