"""Features artifacts joined to a table by id: each row's vector, whatever the artifact's order."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import FileEntry, opening, read_file, read_manifest
from imgray.data.fields import Vector
from imgray.data.layout import place_of
from imgray.data.names import Names
from imgray.data.pixels import Rejected
from imgray.data.scratch import unnamed_file, write
from imgray.errors import UserError, brief


class Columns:
    """What a flag names of a features artifact: one of its columns, or several side by side.

    Args:
        name: of the input that takes their vectors.
        flag: URI of the artifact, with `#COLUMN,COLUMN` where not all of it is meant.

    Attributes:
        names: of the columns, in their order.
        dim: length of a joined vector.

    Raises:
        UserError: no such artifact or column.
    """

    def __init__(self, name: str, flag: str) -> None:
        wanted = flag.partition("#")[2]
        self.place = f"--features {name}={flag}"
        self.folder = Folder(place_of(flag))
        self.manifest = read_manifest(self.folder, "features")
        self.names = [self._choose(one) for one in wanted.split(",")]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"{self.place}: a column is named twice")
        self.infos = {one: self.manifest.about["features"][one] for one in self.names}
        self.dim = sum(info["regions"] * info["dim"] for info in self.infos.values())

    @property
    def shape(self) -> str:
        """The numbers of a vector, as a person counts them."""
        return " + ".join(f"{info['regions']} x {info['dim']}" for info in self.infos.values())

    def _choose(self, column: str) -> str:
        have = list(self.manifest.about["features"])
        found = [name for name in have if column in ("", name, name.removesuffix(".high"))]
        if len(found) != 1:
            fault = f"no column {column!r}" if column else "several columns"
            hint = f"{self.place.partition('#')[0]}#COLUMN"
            some = ", or some of them, joined by commas" if len(have) > 1 else ""
            raise UserError(f"{self.place}: {fault}; say {hint}, one of {', '.join(have)}{some}")
        return found[0]


def side_by_side(parts: Sequence[NDArray[np.float16]]) -> NDArray[np.float16]:
    """Vectors of several columns, each (n, dim), joined: (n, sum of the dims).

    Each is scaled to unit length, so that columns of many regions do not outweigh others; those of
    a single column stay as they are.
    """
    if len(parts) == 1:
        return parts[0]
    exact = [part.astype(np.float32) for part in parts]
    lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in exact]
    tiny = np.finfo(np.float32).tiny
    scaled = [part / np.maximum(own, tiny) for part, own in zip(exact, lengths, strict=True)]
    return np.concatenate(scaled, axis=1).astype(np.float16)


class Join:
    """The vectors of a feature, or of several side by side, by the row of a table.

    They are read once, by row groups, into a file without a name that holds them as float16 in the
    order of the table's keys; a key that stands in several rows is there once.

    Args:
        field: what takes them.
        columns: of the features artifact.
        keys: gives the id in the artifact that each row of the table asks for.
        hint: what to say where ids have no vector.

    Raises:
        UserError: vectors of another length.
    """

    def __init__(
        self, field: Vector, columns: Columns, keys: Callable[[], Names], hint: str = ""
    ) -> None:
        self.field, self.columns, self.place = field, columns, columns.place
        self.folder, self.manifest = columns.folder, columns.manifest
        self.keys, self.hint = keys, hint
        self.dim = columns.dim
        if self.dim != field.dim:
            raise UserError(
                f"{self.place}: {columns.shape} numbers each, where {field.dim} are expected"
            )
        self._lock = threading.Lock()

    def value(self, row: int) -> NDArray[np.float32] | None:
        """The vector (dim,) of a row, None where an optional one lacks. Raises `Rejected`."""
        with self._lock:
            vectors, places = self._joined
        place = int(places[row])
        if place >= 0:
            return self.field.value(vectors[place])
        if self.field.optional:
            return None
        raise Rejected(f"{self.place}: no vector of {self._key(row)}{self.hint}")

    def check(self, rows: NDArray[np.int64]) -> None:
        """Raises `UserError` where rows have no vector, or one that is not finite."""
        vectors, places = self._joined
        lost = rows[places[rows] < 0]
        if len(lost) and not self.field.optional:
            raise UserError(
                f"{self.place}: {len(lost):,} of {len(rows):,} rows have no vector there, first "
                f"row {lost[0]}, {self._key(lost[0])}{self.hint}"
            )
        for start in range(0, len(vectors), 1024):
            wrong = ~np.isfinite(vectors[start : start + 1024]).all(axis=1)
            if wrong.any():
                row = int(np.flatnonzero(places == start + int(wrong.argmax()))[0])
                raise UserError(
                    f"{self.place}: the vector of {self._key(row)} holds a number that is not "
                    "finite"
                )

    def _key(self, row: int) -> str:
        return f"'{brief(self.keys()[row])}'"

    @cached_property
    def _joined(self) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """The vectors (U, dim) of all keys that are found, and every row's place there, or -1."""
        keys = self.keys().array.dictionary_encode()
        with opening(self.folder):
            rows = self._rows_of(keys.dictionary)
            found = np.flatnonzero(rows >= 0)
            order = found[np.argsort(rows[found], kind="stable")]
            vectors = self._scattered(rows[order], keys.dictionary.take(pa.array(order)))
        places = np.full(len(rows) + 1, -1, np.int64)
        places[order] = np.arange(len(order))
        return vectors, places[np.asarray(pc.fill_null(keys.indices, len(rows)))]

    @property
    def _parts(self) -> list[FileEntry]:
        return self.manifest.named("part-", ".parquet")

    def _rows_of(self, keys: pa.Array) -> NDArray[np.int64]:
        """The artifact's row of every key, or -1."""
        ids = []
        for part in self._parts:
            with self.folder.open(part.name) as file:
                ids += pq.ParquetFile(file).read(["id"]).column(0).chunks
        have = pa.chunked_array(ids, pa.string()).combine_chunks()
        found = pc.index_in(keys, value_set=have)
        return np.asarray(pc.fill_null(found, -1), np.int64)

    def _scattered(self, rows: NDArray[np.int64], keys: pa.Array) -> NDArray[np.float16]:
        """The vectors of rows of the artifact in rising order, whose ids are these keys."""
        if not len(rows):
            return np.empty((0, self.dim), np.float16)
        with unnamed_file() as file:
            for first, ids, vectors in self._groups(rows):
                start, stop = np.searchsorted(rows, [first, first + len(ids)])
                inside = rows[start:stop] - first
                if not ids.take(pa.array(inside)).equals(keys[start:stop]):
                    raise UserError(f"{self.folder.uri}: changed while it was read; run it again")
                write(file, vectors[inside].tobytes())
            return np.memmap(file, np.float16, "r", shape=(len(rows), self.dim))

    def _groups(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, pa.Array, NDArray[np.float16]]]:
        """Verified row groups that hold some of the rows: the first row, ids, vectors (n, dim)."""
        first = 0
        for part in self._parts:
            if np.searchsorted(rows, first) < np.searchsorted(rows, first + part.rows):
                file = pq.ParquetFile(io.BytesIO(read_file(self.folder, part)))
                row = first
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, ["id", *self.columns.names])
                    ids, *columns = (c.combine_chunks() for c in table.columns)
                    yield row, ids, side_by_side([_rows(column) for column in columns])
                    row += len(table)
            first += part.rows


def _rows(column: pa.Array) -> NDArray[np.float16]:
    """The vectors (n, dim) of a column of lists."""
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(column), column.type.list_size), np.float16)
