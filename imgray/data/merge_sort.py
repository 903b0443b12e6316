"""External merge sort: more rows than memory holds, by the bytes of their first column."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from imgray.errors import no_room

RUN = 64 * 2**20
"""Bytes of rows that are sorted in memory, and then written as a run."""
BLOCK = 1024
"""Rows of a run that are held while it is merged."""
WAYS = 200
"""Runs that are merged at once, each an open file."""
Row = tuple[Any, ...]


class MergeSort:
    """Takes rows in batches, gives them in order.

    Args:
        folder: for the runs, on a local disk; compressed, they take about a third of the rows.
        schema: of the rows, which hold no nulls; the first column is of type `binary`.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self._held: list[pa.RecordBatch] = []
        self._runs: list[Path] = []
        self._bytes = self._number = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Raises `NoRoom`."""
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= RUN:
            self._spill()

    def rows(self) -> Iterator[Row]:
        """All that were added. Raises `NoRoom`."""
        self._spill()
        return heapq.merge(*map(_rows, self._runs))

    def _spill(self) -> None:
        """Write a run of what is held, and merge the runs before there are too many."""
        table = pa.Table.from_batches(self._held, self.schema).combine_chunks()
        self._held, self._bytes = [], 0
        self._write(table.sort_by(self.schema.names[0]).to_batches(BLOCK))
        if len(self._runs) == WAYS:
            merged, self._runs = self._runs, []
            self._write(self._blocks(heapq.merge(*map(_rows, merged))))
            for path in merged:
                path.unlink()

    def _blocks(self, rows: Iterator[Row]) -> Iterator[pa.RecordBatch]:
        while some := list(itertools.islice(rows, BLOCK)):
            columns = [list(column) for column in zip(*some, strict=True)]
            yield pa.record_batch(columns, schema=self.schema)

    def _write(self, batches: Iterable[pa.RecordBatch]) -> None:
        path = self.folder / f"run-{self._number}"
        self._number += 1
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        try:
            with pa.ipc.new_stream(str(path), self.schema, options=options) as run:
                for batch in batches:
                    run.write_batch(batch)
        except OSError as error:
            raise no_room(error) from error
        self._runs.append(path)


def _rows(run: Path) -> Iterator[Row]:
    with pa.OSFile(str(run)) as file:
        for batch in pa.ipc.open_stream(file):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
