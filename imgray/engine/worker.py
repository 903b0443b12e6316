"""A worker's way through a shard: read, prepare, run, write; a Ray Data actor."""

from __future__ import annotations

import io
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import REJECTED, read_file, scratch
from imgray.artifacts.walk import Entry
from imgray.data.collections import Collection
from imgray.data.fields import Values
from imgray.data.pixels import Rejected
from imgray.engine.cluster import Pool
from imgray.engine.pieces import rows_of
from imgray.engine.receipts import Receipt, keep, name_of, parse, write_part
from imgray.errors import UserError, brief
from imgray.features.memory import keep_freed

FEW = 10
"""So many rejections in a shard say nothing of a store, whatever their share is."""
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


def item_of(shard: int, before: Receipt | None) -> dict[str, Any]:
    """A shard that a worker is to do, or to do again, as Ray Data passes it on."""
    return {"shard": shard, "before": before.model_dump_json() if before else ""}


class Worker:
    """A Ray Data actor: takes what `item_of` gives, gives receipts, or why there is none."""

    def __init__(
        self,
        collection: Collection,
        output: Folder,
        make_step: Callable[[], Step],
        batch: int,
        shard_size: int,
        most: float,
        pool: Pool,
    ) -> None:
        import torch

        torch.set_num_threads(pool.cpus)
        self.collection, self.output = collection, output
        self.batch, self.most = batch, most
        keep_freed()
        self.step = make_step()
        self.listing = rows_of(output, shard_size)
        self.threads = ThreadPoolExecutor(4 * pool.cpus)

    def __call__(self, items: dict[str, np.ndarray]) -> Iterator[dict[str, list[str]]]:
        for shard, before in zip(items["shard"], items["before"], strict=True):
            try:
                receipt = self._do(int(shard), parse(before.encode()))
                yield {"receipt": [receipt.model_dump_json()], "error": [""]}
            except UserError as error:  # Ray would add lines of its own, and log a traceback
                yield {"receipt": [""], "error": [str(error)]}

    def _do(self, shard: int, before: Receipt | None) -> Receipt:
        done = None if before else parse(self.output.find(name_of(self.output, shard)) or b"")
        if done:
            return done
        entries = self.listing.entries(shard)
        rejections: Rejections = []
        tables = (
            self._again(entries, before, rejections) if before else self._rows(entries, rejections)
        )
        with scratch() as folder:
            files = [write_part(folder, f"part-{shard:05d}", tables, self.step.schema)]
            if not before:
                self._check(rejections, len(entries))
            if rejections:
                columns = [list(column) for column in zip(*sorted(rejections), strict=True)]
                refused = pa.table(columns, schema=_REJECTED)
                files.append(
                    write_part(folder, f"{REJECTED}/part-{shard:05d}", [refused], _REJECTED)
                )
            part, rejected = [*(entry for entry, _ in files), None][:2]
            receipt = Receipt(shard=shard, listed=len(entries), part=part, rejected=rejected)
            keep(self.output, files, receipt, again=before is not None)
        return receipt

    def _again(
        self, entries: list[tuple[int, Entry]], before: Receipt, rejections: Rejections
    ) -> Iterator[pa.Table]:
        """Of those that were rejected before, with the rows that were not."""
        done = pq.read_table(io.BytesIO(read_file(self.output, before.part)))
        ids = set(done["id"].to_pylist())
        # Their files may have another size by now.
        left = [(number, replace(one, size=0)) for number, one in entries if one.id not in ids]
        tables = list(self._rows(left, rejections))
        table = pa.concat_tables([done.cast(self.step.schema), *tables])
        places = {entry.id: number for number, entry in entries}
        yield table.take(np.argsort([places[id] for id in table["id"].to_pylist()]))

    def _check(self, rejections: Rejections, listed: int) -> None:
        """Raises `UserError` where more are rejected than bad images alone explain."""
        if len(rejections) >= FEW and len(rejections) > self.most * listed:
            (reason, _), *_ = Counter(reason for *_, reason in rejections).most_common(1)
            raise UserError(
                f"{self.collection.uri}: {len(rejections):,} of {listed:,} images in a row would "
                f"be rejected, more than --max-rejected-shard {self.most:g} (such as: "
                f"{brief(reason)}); run again when their store is whole, or with "
                "--max-rejected-shard 1 if it is they that are bad"
            )

    def _rows(self, entries: list[tuple[int, Entry]], rejections: Rejections) -> Iterator[pa.Table]:
        """The rows of records, in their order; what is set aside is added to `rejections`."""
        ready = _ahead(self.threads, self._prepare, entries, 2 * self.batch)
        usable = (item for item in ready if _set_aside(item, rejections))
        for table, refused in _ahead(
            self.threads, lambda ran: self.step.rows(*ran), self._run(usable), 2
        ):
            rejections += refused
            yield table

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
