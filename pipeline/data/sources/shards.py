"""shards:LOCATION: shards that are packed or indexed already, used without being copied."""

import hashlib
from contextlib import suppress
from pathlib import Path

from pipeline.data.sources.base import Listing, Source
from pipeline.data.store import open_store
from pipeline.errors import DataError

DESCRIPTION = ("manifest.json", "quarantine.json")


class PackedShards(Source):
    """Shards in a folder or at a URL. They are not packed again."""

    def problem(self) -> str:
        if "://" in self.where or (Path(self.where) / DESCRIPTION[0]).is_file():
            return ""
        return f"{self.where}: no packed shards there; `pipeline index` makes them of tars"

    def fingerprint(self) -> dict[str, str]:
        """A SHA-256 of the shards' manifest and quarantine list."""
        store, sha = open_store(self.where), hashlib.sha256()
        for name in DESCRIPTION:
            with suppress(FileNotFoundError):
                sha.update(store.read_file(name))
        return {"shards": sha.hexdigest()}

    def listing(self) -> Listing:
        raise DataError(f"shards:{self.where}: these are packed already")
