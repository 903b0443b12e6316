"""A worker's way through a shard: read, prepare, run, write; a Ray Data actor."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imgray.artifacts.folder import Entry, Folder
from imgray.data.collections import Collection
from imgray.data.fields import Values
from imgray.data.pixels import Rejected
from imgray.engine.cluster import Pool
from imgray.engine.listing import LISTING
from imgray.engine.receipts import REJECTED, Receipt, file_of, keep, name_of
from imgray.errors import UserError
from imgray.features.memory import keep_freed

_REJECTED = pa.schema([("id", pa.string()), ("stage", pa.string()), ("reason", pa.string())])

Rejections = list[tuple[str, str, str]]
"""Id, stage (`read`, `decode` or the step's own) and reason of every record set aside."""


class Step(Protocol):
    """What a job does with records on one worker."""

    schema: pa.Schema

    def prepare(self, values: Values) -> Any:
        """Decode the inputs of one record; runs in a thread. Raises `Rejected`."""

    def run(self, batch: Sequence[Any]) -> Any:
        """What the networks make of a batch of prepared records."""

    def rows(
        self, ids: Sequence[str], batch: Sequence[Any], found: Any
    ) -> tuple[pa.Table, Rejections]:
        """The rows of a batch, and the records that are set aside; beside the next one's `run`."""


class Worker:
    """A Ray Data actor: takes shard numbers, gives receipts, or why there is none."""

    def __init__(
        self,
        collection: Collection,
        output: Folder,
        make_step: Callable[[], Step],
        batch: int,
        shard_size: int,
        pool: Pool,
    ) -> None:
        import torch

        torch.set_num_threads(pool.cpus)
        self.collection, self.output = collection, output
        self.batch, self.shard_size = batch, shard_size
        keep_freed()
        self.step = make_step()
        self.listing = pq.ParquetFile(output.open(LISTING))
        self.threads = ThreadPoolExecutor(4 * pool.cpus)

    def __call__(self, shards: dict[str, np.ndarray]) -> Iterator[dict[str, list[str]]]:
        for shard in shards["shard"]:
            try:
                yield {"receipt": [self._do(int(shard)).model_dump_json()], "error": [""]}
            except UserError as error:  # Ray would add lines of its own, and log a traceback
                yield {"receipt": [""], "error": [str(error)]}

    def _do(self, shard: int) -> Receipt:
        note = name_of(self.output, shard)
        if self.output.exists(note):
            return Receipt.model_validate_json(self.output.read(note))
        rows = self.listing.read_row_group(shard).to_pylist()
        first = shard * self.shard_size
        entries = [(first + place, Entry(**row)) for place, row in enumerate(rows)]
        tables, rejections = self._rows(entries)
        table = pa.concat_tables([self.step.schema.empty_table(), *tables])
        files = [file_of(f"part-{shard:05d}", table)]
        if rejections:
            columns = [list(column) for column in zip(*sorted(rejections), strict=True)]
            refused = pa.table(columns, schema=_REJECTED)
            files.append(file_of(f"{REJECTED}/part-{shard:05d}", refused))
        part, rejected = [*(entry for entry, _ in files), None][:2]
        receipt = Receipt(shard=shard, listed=len(rows), part=part, rejected=rejected)
        keep(self.output, files, receipt)
        return receipt

    def _rows(self, entries: list[tuple[int, Entry]]) -> tuple[list[pa.Table], Rejections]:
        rejections: Rejections = []
        ready = _ahead(self.threads, self._prepare, entries, 2 * self.batch)
        usable = (item for item in ready if _set_aside(item, rejections))
        done = list(_ahead(self.threads, lambda ran: self.step.rows(*ran), self._run(usable), 2))
        rejections += (one for _, refused in done for one in refused)
        return [table for table, _ in done], rejections

    def _run(self, usable: Iterator[tuple[str, Any]]) -> Iterator[tuple[list[str], list[Any], Any]]:
        """Batches, with what the networks make of them."""
        while batch := list(itertools.islice(usable, self.batch)):
            ids, items = [id for id, _ in batch], [item for _, item in batch]
            yield ids, items, self.step.run(items)

    def _prepare(self, numbered: tuple[int, Entry]) -> tuple[str, Any]:
        """The prepared record, or the stage and reason of its rejection."""
        number, entry = numbered
        try:
            values = self.collection.values(number, entry)
        except Rejected as error:
            return entry.id, ("read", str(error))
        try:
            return entry.id, self.step.prepare(values)
        except Rejected as error:
            return entry.id, ("decode", str(error))


def _set_aside(item: tuple[str, Any], rejections: Rejections) -> bool:
    id, value = item
    if isinstance(value, tuple):
        rejections.append((id, *value))
        return False
    return True


In = TypeVar("In")
Out = TypeVar("Out")


def _ahead(
    threads: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], most: int
) -> Iterator[Out]:
    """Map in threads, in order, with at most `most` results waiting: memory stays bounded."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
