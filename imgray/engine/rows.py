"""The rows of a features artifact, read in bounded memory and verified."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import FileEntry, Manifest, read_file
from imgray.features.columns import FeatureInfo, Vectors, choose, columns_of, from_table
from imgray.features.extractor import ExtractorConfig

BLOCK = 16
"""Images encoded at once. Shards are cut at multiples of it, so that an image's code does not
depend on the number of shards, not even by rounding."""
SAMPLE_PARTS = 256


class Part(BaseModel):
    """A Parquet file of the features artifact and the collection's rows that it holds."""

    file: FileEntry
    first: int


class Source:
    """The rows of a features artifact, in the collection's order."""

    def __init__(
        self, folder: Folder, manifest: Manifest, names: list[str], signature: list[str]
    ) -> None:
        self.folder = folder
        have = columns_of(manifest)
        self.grids = ExtractorConfig.model_validate(manifest.about["extractor"]).grids
        self.columns: dict[str, FeatureInfo] = choose(have, names) | choose(have, signature)
        self.parts: list[Part] = []
        self.rows = 0
        for file in manifest.named("part-", ".parquet"):
            self.parts.append(Part(file=file, first=self.rows))
            self.rows += file.rows

    def joined(self, other: Source) -> Source:
        """The same rows, of the columns of both."""
        found = copy(self)
        found.columns = self.columns | other.columns
        return found

    def read(self, first: int, last: int) -> Iterator[tuple[list[str], Vectors]]:
        """Ids and features of the rows first..last-1, in blocks of `BLOCK` from `first` on."""
        ids: list[str] = []
        waiting: Vectors = {}
        for table in self._tables(first, last):
            found = {name: from_table(table, name, info) for name, info in self.columns.items()}
            waiting = {n: np.concatenate([waiting[n], v]) if ids else v for n, v in found.items()}
            ids += table.column("id").to_pylist()
            whole = len(ids) // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                yield _slice(ids, waiting, start, start + BLOCK)
            ids, waiting = _slice(ids, waiting, whole, len(ids))
        if ids:
            yield ids, waiting

    def _tables(self, first: int, last: int) -> Iterator[Any]:
        """Row groups of verified parts, one at a time, cut to the wanted rows."""
        columns = ["id", *self.columns]
        for part in self.parts:
            if part.first >= last or part.first + part.file.rows <= first:
                continue
            parquet = pq.ParquetFile(pa.BufferReader(read_file(self.folder, part.file)))
            row = part.first
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                start, stop = max(first - row, 0), min(last - row, count)
                if start < stop:
                    yield parquet.read_row_group(group, columns).slice(start, stop - start)
                row += count

    def sample(self, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """A random sample of rows in random order, all of them if there are no more than `count`.

        Of a large collection only some parts are drawn from, so that a sample need not read all.
        """
        drawn = random.permutation(len(self.parts))[:SAMPLE_PARTS]
        parts = [self.parts[number] for number in sorted(drawn)]
        sizes = np.array([part.file.rows for part in parts])
        chosen = random.permutation(sizes.sum())[:count]
        which = np.searchsorted(np.cumsum(sizes), chosen, side="right")
        starts = np.cumsum(sizes) - sizes
        firsts = np.array([part.first for part in parts])
        return firsts[which] + chosen - starts[which]

    def pick(self, rows: NDArray[np.int64]) -> tuple[list[str], Vectors]:
        """Ids and features of a few rows, given in rising order."""
        found = []
        for part in self.parts:
            inside = rows[(rows >= part.first) & (rows < part.first + part.file.rows)]
            start = part.first
            if not len(inside):
                continue
            for table in self._tables(part.first, part.first + part.file.rows):
                here = inside[(inside >= start) & (inside < start + len(table))] - start
                if len(here):
                    found.append(table.take(here))
                start += len(table)
        vectors = {
            name: np.concatenate([from_table(table, name, info) for table in found])
            for name, info in self.columns.items()
        }
        return [id for table in found for id in table.column("id").to_pylist()], vectors


def _slice(ids: list[str], vectors: Vectors, start: int, stop: int) -> tuple[list[str], Vectors]:
    return ids[start:stop], {name: value[start:stop] for name, value in vectors.items()}
