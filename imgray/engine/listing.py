"""The frozen listing of a collection: `listing.parquet`, whose row groups are the shards."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from imgray.artifacts.folder import Folder, Skipped
from imgray.artifacts.manifest import NAME, WORK, FileEntry, entry_of_file, read_manifest, scratch
from imgray.data.collections import CHANGED, Collection
from imgray.engine.progress import say
from imgray.errors import UserError

LISTING = "listing.parquet"
LISTED = f"{WORK}/listing.json"
_SCHEMA = pa.schema([("id", pa.string()), ("size", pa.int64())])


class Listing(BaseModel):
    """What was listed when an output was begun.

    Attributes:
        images: how many records there are.
        shards: how many parts they are cut into.
        file: the listing itself.
        digest: what tells the collection from another version of it.
    """

    images: int
    shards: int
    file: FileEntry
    digest: str | None = None


def freeze(collection: Collection, output: Folder, shard_size: int) -> Listing:
    """The listing of an output: as it was when that was begun, or else as it is now.

    Raises `UserError`: there is nothing, or the collection is known to have changed.
    """
    if output.exists(NAME):
        return _published(output)
    if output.exists(LISTED):
        listing = Listing.model_validate_json(output.read(LISTED))
        if listing.digest != collection.digest:
            raise UserError(f"{collection.uri}: {CHANGED}")
        return listing
    skipped = Skipped()
    entries = collection.entries(skipped)
    total = shards = 0
    with scratch() as folder:
        path = folder / LISTING
        with pq.ParquetWriter(path, _SCHEMA) as writer:
            while chunk := list(itertools.islice(entries, shard_size)):
                columns = [[entry.id for entry in chunk], [entry.size for entry in chunk]]
                writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=shard_size)
                total, shards = total + len(chunk), shards + 1
        if not total:
            found = f", only {skipped}" if skipped.by_suffix else ""
            raise UserError(f"{collection.uri}: no images here{found}; see --suffixes")
        file = entry_of_file(path, total)
        output.upload(path, LISTING)
    if skipped.by_suffix:
        say(f"{collection.uri}: passed over {skipped}")
    listing = Listing(images=total, shards=shards, file=file, digest=collection.digest)
    output.write(LISTED, listing.model_dump_json().encode())
    return listing


def _published(output: Folder) -> Listing:
    file = read_manifest(output).file(LISTING)
    shards = pq.ParquetFile(output.open(LISTING)).num_row_groups
    return Listing(images=file.rows, shards=shards, file=file)
