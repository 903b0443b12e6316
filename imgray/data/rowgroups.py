"""A Parquet or CSV file, on disk or in S3, as row groups: only what is wanted of it is read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import types

from imgray.artifacts.folder import Folder
from imgray.errors import UserError

SUFFIXES = (".parquet", ".csv")
CSV_BLOCK = 16 * 2**20
"""Bytes of CSV parsed at once, and so of its longest row."""
TAIL = 8
"""Bytes at the end of a Parquet file that give the length of its footer."""
OPENED = 16
"""Files of a table that are opened at once."""
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "BYTE_ARRAY": 4}
WIDTHS |= {"INT64": 8, "DOUBLE": 8, "INT96": 8}
"""Bytes in memory of one value of Parquet, of texts and bytes the place of the value."""
SHARED = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
"""Encodings from which equal texts can be read so that they are held once."""


class RowGroups(ABC):
    """A file of rows.

    Attributes:
        place: its URI.
        schema: its columns with their types.
        counts: rows of each group (G,).
        typed: whether its columns have types; otherwise all cells are texts.
    """

    typed: bool
    schema: pa.Schema
    counts: NDArray[np.int64]

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.name = folder, name
        self.place = f"{folder.uri.rstrip('/')}/{name}"

    def check_columns(self, wanted: Sequence[str]) -> None:
        """Raises `UserError` for a column that is not there, or is there twice."""
        have = Counter(self.schema.names)
        for column in wanted:
            if not have[column]:
                raise UserError(f"{self.place}: no column {column!r}; it has {', '.join(have)}")
            if have[column] > 1:
                raise UserError(f"{self.place}: {have[column]} columns are called {column!r}")

    @abstractmethod
    def sizes(self, columns: Sequence[str]) -> NDArray[np.int64]:
        """Bytes in memory of these columns of each group, about (G,)."""

    @abstractmethod
    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a group; any thread may call it. Raises `UserError`."""

    @abstractmethod
    def nulls(self, column: str) -> NDArray[np.bool_]:
        """Which groups are known to lack values of a column, in all its parts (G,)."""

    @cached_property
    @abstractmethod
    def digest(self) -> str:
        """Hexadecimal SHA-256 of what tells this file from another version of it."""

    @contextlib.contextmanager
    def _reading(self, kind: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.place}: not {kind}, damaged, truncated or out of reach: {reason}"
            ) from error


class ParquetGroups(RowGroups):
    """A Parquet file. Of equal texts or bytes in a row group one is held, as in the file.

    Its digest is of its footer, which lies at its end and says where all is, and of the version
    that its store knows (`Folder.version`): a copy elsewhere has another one, whatever it holds.
    """

    typed = True

    def __init__(self, folder: Folder, name: str) -> None:
        super().__init__(folder, name)
        self.lock = threading.Lock()
        self.raw = folder.open(name)
        with self._reading("a Parquet file"):
            metadata = pq.read_metadata(self.raw)
            shared = list(_shared(metadata))
            self.file = pq.ParquetFile(self.raw, metadata=metadata, read_dictionary=shared)
            self.schema = self.file.schema_arrow
            groups = [self.file.metadata.row_group(g) for g in range(self.file.num_row_groups)]
        self.counts = np.array([group.num_rows for group in groups], np.int64)

    def sizes(self, columns: Sequence[str]) -> NDArray[np.int64]:
        lengths = {part.path: part.length for part in self.file.schema}
        rows = self._chunks(columns)
        found = [sum(_size(c, lengths[c.path_in_schema]) for c in row) for row in rows]
        return np.array(found, np.int64)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        with self._reading("a Parquet file"), self.lock:
            return self.file.read_row_group(group, list(columns))

    def nulls(self, column: str) -> NDArray[np.bool_]:
        rows = ([chunk.statistics for chunk in row] for row in self._chunks([column]))
        return np.array([all(s and s.null_count for s in row) for row in rows], bool)

    @cached_property
    def digest(self) -> str:
        with self._reading("a Parquet file"), self.lock:
            end = self.raw.seek(0, 2)
            self.raw.seek(end - TAIL)
            footer = int.from_bytes(self.raw.read(4), "little") + TAIL
            self.raw.seek(end - footer)
            found = hashlib.sha256(self.raw.read(footer))
        found.update(self.folder.version(self.name).encode())
        return found.hexdigest()

    def _chunks(self, columns: Sequence[str]) -> Iterator[list[pq.ColumnChunkMetaData]]:
        """By group what its footer says of the columns, of nested ones of all their parts."""
        parts = [part.path.partition(".")[0] for part in self.file.schema]
        wanted = [number for number, name in enumerate(parts) if name in columns]
        for number in range(len(self.counts)):
            group = self.file.metadata.row_group(number)
            yield [group.column(place) for place in wanted]


def _shared(metadata: pq.FileMetaData) -> Iterator[str]:
    """The columns of texts or bytes of which equal values can be held once."""
    for place, part in enumerate(metadata.schema):
        if part.physical_type == "BYTE_ARRAY" and part.logical_type.type in ("NONE", "STRING"):
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            if all(SHARED.issuperset(group.column(place).encodings) for group in groups):
                yield part.path


def _size(chunk: pq.ColumnChunkMetaData, length: int) -> int:
    """Bytes in memory of a column of a row group; `length` is of values that all have the same."""
    width = WIDTHS.get(chunk.physical_type, length)
    return max(chunk.total_uncompressed_size, chunk.num_values * width)


class CsvGroups(RowGroups):
    """A CSV file in UTF-8, whose first line names the columns: one group, held in memory.

    Every cell is a text, `0001` too; an empty one is null, as is a blank line where there is one
    column. Its digest is of all its bytes.
    """

    typed = False

    def __init__(self, folder: Folder, name: str) -> None:
        super().__init__(folder, name)
        self.lock = threading.Lock()
        self.held: dict[str, pa.ChunkedArray] = {}
        with self._reading("CSV"), folder.open(name) as file:
            parse = pa.csv.ParseOptions(newlines_in_values=True)
            names = pa.csv.open_csv(file, self._read, parse).schema.names
        self.parse = pa.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=len(names) > 1)
        self.schema = pa.schema([(column, pa.string()) for column in names])

    @cached_property
    def counts(self) -> NDArray[np.int64]:  # type: ignore[override]
        return np.array([len(self.read(0, self.schema.names[:1]))], np.int64)

    def sizes(self, columns: Sequence[str]) -> NDArray[np.int64]:
        return np.array([self.read(0, columns).nbytes], np.int64)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        with self.lock:
            lacking = [column for column in columns if column not in self.held]
            if lacking:
                self.held |= self._load(lacking)
            return pa.table({column: self.held[column] for column in columns})

    def nulls(self, column: str) -> NDArray[np.bool_]:
        return np.array([bool(self.read(0, [column]).column(0).null_count)])

    @cached_property
    def digest(self) -> str:
        return self.folder.sha256(self.name)

    _read = pa.csv.ReadOptions(block_size=CSV_BLOCK)

    def _load(self, columns: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        convert = pa.csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        with self._reading("CSV"), self.folder.open(self.name) as file:
            table = pa.csv.read_csv(file, self._read, self.parse, convert)
        return dict(zip(columns, table.combine_chunks().columns, strict=True))


class ShardGroups(RowGroups):
    """A table in several Parquet files, whose row groups follow each other.

    Its digest is of theirs.

    Args:
        folder: where they lie.
        name: of the table.
        parts: of the files, in their order.
    """

    typed = True

    def __init__(self, folder: Folder, name: str, parts: Sequence[str]) -> None:
        super().__init__(folder, name)
        with ThreadPoolExecutor(OPENED) as threads:
            self.files = list(threads.map(partial(ParquetGroups, folder), parts))
        self.schema = self._common()
        self.counts = np.concatenate([file.counts for file in self.files])
        self.places = [(file, g) for file in self.files for g in range(len(file.counts))]

    def sizes(self, columns: Sequence[str]) -> NDArray[np.int64]:
        return np.concatenate([file.sizes(columns) for file in self.files])

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        file, own = self.places[group]
        found = file.read(own, columns)
        return found.cast(pa.schema([self.schema.field(column) for column in columns]))

    def nulls(self, column: str) -> NDArray[np.bool_]:
        return np.concatenate([file.nulls(column) for file in self.files])

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256("".join(file.digest for file in self.files).encode()).hexdigest()

    def _common(self) -> pa.Schema:
        """The columns that all have; texts are shared only where they are in every file."""
        shared = self.files[0].schema
        plain = _unshared(shared)
        for file in self.files:
            if _unshared(file.schema) != plain:
                raise UserError(f"{file.place}: other columns than {self.files[0].place}")
        return shared if all(file.schema == shared for file in self.files) else plain


def _unshared(schema: pa.Schema) -> pa.Schema:
    """A schema whose texts are each its own."""
    kinds = [f.type.value_type if types.is_dictionary(f.type) else f.type for f in schema]
    return pa.schema([pa.field(f.name, kind) for f, kind in zip(schema, kinds, strict=True)])


def shards_of(folder: Folder, name: str) -> list[str]:
    """The files in which a table lies, in their order; empty where there are none.

    `NAME.parquet` may lie in `NAME-00000-of-00008.parquet` and so on, as Hugging Face writes it.

    Raises:
        UserError: one of several is missing.
    """
    stem, suffix = os.path.splitext(name)
    if folder.exists(name):
        return [name]
    if suffix.lower() != ".parquet":
        return []
    found = [re.fullmatch(rf"{re.escape(stem)}-(\d+)-of-(\d+)\.parquet", n) for n in folder.files()]
    parts = {match[0]: (int(match[1]), int(match[2])) for match in found if match}
    ordered = sorted(parts, key=parts.__getitem__)
    wanted = [(number, len(parts)) for number in range(len(parts))]
    if [parts[part] for part in ordered] != wanted:
        place = f"{folder.uri.rstrip('/')}/{stem}-*-of-*.parquet"
        raise UserError(f"{place}: {len(parts)} files, which are not all of one table's")
    return ordered


def open_groups(folder: Folder, name: str) -> RowGroups:
    """Open a table by the suffix of its name. Raises `UserError`."""
    parts = shards_of(folder, name)
    found: RowGroups
    if parts in ([], [name]):
        found = (CsvGroups if name.lower().endswith(".csv") else ParquetGroups)(folder, name)
    else:
        found = ShardGroups(folder, name, parts)
    if not found.counts.sum():
        raise UserError(f"{found.place}: a table without rows")
    return found
