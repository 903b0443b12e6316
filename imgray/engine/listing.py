"""The listing of a collection, `listing.parquet`, and the shards that it is cut into.

A shard is a range of its rows. The first `GROWN` have the size that is asked for, the next as many
twice that, and so on: at the default size a billion images are fewer than 100,000 shards.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import FileEntry
from imgray.artifacts.walk import Entry
from imgray.errors import no_room

LISTING = "listing.parquet"
GROWN = 10_000
"""Shards of one size."""
GROUP = 2**16
"""Entries of a row group, which is read whole."""
ENTRY = pa.schema(
    [("id", pa.string()), ("size", pa.int64()), ("version", pa.string()), ("where", pa.string())]
)
"""The columns of an `Entry`."""
Row = TypeVar("Row")


class Listing(BaseModel):
    """What was listed when an output was begun.

    Attributes:
        images: how many records there are.
        file: the listing itself.
        digest: what tells the collection from another version of it.
        vanished: those of an earlier extraction that are not there any more, if there was one.
    """

    images: int
    file: FileEntry
    digest: str | None = None
    vanished: FileEntry | None = None

    @property
    def files(self) -> list[FileEntry]:
        """All of the artifact."""
        return [self.file] + ([self.vanished] if self.vanished else [])


def write(entries: Iterator[Entry], path: Path) -> int:
    """Write entries to a file, a row group at a time: how many there are."""
    return write_tables(map(table_of, in_groups(entries)), path)


def in_groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows, as many together as a row group has."""
    return iter(lambda: list(itertools.islice(rows, GROUP)), [])


def write_tables(tables: Iterable[pa.Table], path: Path, schema: pa.Schema = ENTRY) -> int:
    """Write tables of a schema to a file, each a row group: how many rows there are."""
    total = 0
    with writing_parquet(path, schema) as add:
        for table in tables:
            add(table, GROUP)
            total += len(table)
    return total


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """Entries as rows of a listing."""
    columns = [[getattr(entry, name) for entry in entries] for name in ENTRY.names]
    return pa.table(columns, schema=ENTRY)


@contextlib.contextmanager
def writing_parquet(
    path: Path, schema: pa.Schema, **options: Any
) -> Iterator[Callable[[pa.Table, int], None]]:
    """Gives what adds a table to a local file, in row groups of some rows at most.

    Raises `NoRoom` where it cannot be written; what the block raises is its own.
    """
    try:
        writer = pq.ParquetWriter(path, schema, compression="zstd", **options)
    except OSError as error:
        raise no_room(error) from error

    def add(table: pa.Table, rows: int) -> None:
        try:
            writer.write_table(table, row_group_size=rows)
        except OSError as error:
            raise no_room(error) from error

    try:
        yield add
    finally:
        try:
            writer.close()
        except OSError as error:
            raise no_room(error) from error


def span(shard: int, size: int) -> tuple[int, int]:
    """The first row of a shard and how many it has, if there are so many; `size` is of the first.

    A shard's place does not depend on how many there are.
    """
    doubled, place = divmod(shard, GROWN)
    own = size << doubled
    return GROWN * (own - size) + place * own, own


def shards(images: int, size: int) -> int:
    """Into how many shards a listing is cut."""
    doubled = 0
    while span((doubled + 1) * GROWN, size)[0] < images:
        doubled += 1
    first, own = span(doubled * GROWN, size)
    return doubled * GROWN - (first - images) // own


def whole_shards(images: int, size: int) -> int:
    """How many shards are full, of which more entries that follow change none."""
    count = shards(images, size)
    return count - (count > 0 and sum(span(count - 1, size)) > images)


class ShardRows:
    """The rows of a listing by shard; one row group is held, as shards follow each other.

    Args:
        output: that has the listing.
        size: rows of the first shards.
    """

    def __init__(self, output: Folder, size: int) -> None:
        self.file, self.size = pq.ParquetFile(output.open(LISTING)), size
        groups = (self.file.metadata.row_group(n) for n in range(self.file.num_row_groups))
        self.firsts = np.cumsum([0, *(group.num_rows for group in groups)])
        self._held: tuple[int, pa.Table] = (-1, None)

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self.firsts) - 1 if self._early else shards(int(self.firsts[-1]), self.size)

    def entries(self, shard: int) -> list[tuple[int, Entry]]:
        """The entries of a shard, with the numbers of their rows."""
        first, end = self._span(shard)
        found = []
        while first < end:
            group = int(np.searchsorted(self.firsts, first, side="right")) - 1
            start, stop = int(self.firsts[group]), min(end, int(self.firsts[group + 1]))
            rows = self._group(group).slice(first - start, stop - first).to_pylist()
            found += [(first + place, Entry(**row)) for place, row in enumerate(rows)]
            first = stop
        return found

    @property
    def _early(self) -> bool:
        """Whether an earlier version made it, whose shards were the row groups."""
        return "where" not in self.file.schema_arrow.names

    def _span(self, shard: int) -> tuple[int, int]:
        if self._early:
            return int(self.firsts[shard]), int(self.firsts[shard + 1])
        first, count = span(shard, self.size)
        return first, min(first + count, int(self.firsts[-1]))

    def _group(self, number: int) -> pa.Table:
        if self._held[0] != number:
            self._held = number, self.file.read_row_group(number)
        return self._held[1]
