"""The headers of many tars, each read once: by Ray tasks, which leave what they found as receipts.

A task reads the headers of some tars that follow each other, and writes their records to a file in
`_work/`, whose name tells which tars and versions they are; then what it has passed over, which is
its receipt: a later run does not read those tars again. Few tars are read by the driver itself.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import WORK, scratch
from imgray.artifacts.walk import Entry, Skipped
from imgray.data.collections import Collection, Packed
from imgray.data.tars import SCANS, Listed, Tar, Tars
from imgray.engine.cluster import TASK_RETRIES
from imgray.engine.listing import ENTRY, in_groups, table_of, write_tables
from imgray.engine.receipts import of_chain
from imgray.errors import UserError

HEADERS = f"{WORK}/headers"
TASKS, AHEAD = 10_000, 1000
"""Tasks at most, and those that are begun before the first of them is needed."""
_SCHEMA = pa.schema([("tar", pa.string()), ("key", pa.string()), *ENTRY])


def entries_of(collection: Collection, output: Folder, skipped: Skipped) -> Iterator[Entry]:
    """`Collection.entries`, with the help of Ray for tars; `output` keeps what was read of them."""
    if isinstance(collection, Packed):
        tars = collection.tars
        return tars.entries(skipped, partial(_scanned, tars, output))
    return collection.entries(skipped)


def _scanned(
    tars: Tars, output: Folder, named: Sequence[Tar], skipped: Skipped
) -> Iterator[Listed]:
    """What tars hold, in their order. Raises `UserError`."""
    if len(named) <= SCANS:
        yield from tars.scanned(named, skipped)
        return
    found = _by_tasks(tars, output, named, skipped)
    if (first := next(found, None)) is None:  # the command is to be corrected
        output.remove(HEADERS)
        return
    yield first
    yield from found


def _by_tasks(
    tars: Tars, output: Folder, named: Sequence[Tar], skipped: Skipped
) -> Iterator[Listed]:
    below = of_chain(output, HEADERS)
    there = output.sizes(below)
    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(_scan)
    opened, size = ray.put(tars), -(-len(named) // TASKS)
    waiting: deque[tuple[str, ray.ObjectRef[str] | None]] = deque()
    try:
        for first in range(0, len(named), size):
            some = named[first : first + size]
            name = f"{below}/{_digest(some)}"
            known = f"{name}.json" in there
            waiting.append((name, None if known else task.remote(opened, output, name, some)))
            if len(waiting) >= AHEAD:
                yield from _taken(output, *waiting.popleft(), skipped)
        while waiting:
            yield from _taken(output, *waiting.popleft(), skipped)
    finally:
        for _, left in waiting:
            if left is not None:
                ray.cancel(left)


def _digest(some: Sequence[Tar]) -> str:
    return hashlib.sha256(json.dumps(some).encode()).hexdigest()[:32]


def _scan(tars: Tars, output: Folder, name: str, some: Sequence[Tar]) -> str:
    """Write what some tars hold: why not, if it cannot be done."""
    skipped = Skipped()
    try:
        with scratch() as folder:
            found = (row for tar in some for row in tars.listed(*tar, skipped))
            write_tables(map(_table, in_groups(found)), folder / "found", _SCHEMA)
            output.upload(folder / "found", f"{name}.parquet")
        output.write(f"{name}.json", json.dumps([skipped.counts, skipped.places]).encode())
    except UserError as error:
        return str(error)
    return ""


def _table(found: Sequence[Listed]) -> pa.Table:
    tars, keys, entries = zip(*found, strict=True)
    return pa.table([tars, keys, *table_of(entries).columns], schema=_SCHEMA)


def _taken(
    output: Folder, name: str, done: ray.ObjectRef[str] | None, skipped: Skipped
) -> Iterator[Listed]:
    try:
        fault = ray.get(done) if done is not None else ""
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"a worker that reads the headers of tars died: {reason}; run again to go on"
        ) from None
    if fault:
        raise UserError(fault)
    try:
        counts, places = json.loads(output.read(f"{name}.json"))
        for batch in pq.ParquetFile(output.open(f"{name}.parquet")).iter_batches():
            for row in batch.to_pylist():
                yield row.pop("tar"), row.pop("key"), Entry(**row)
    except (ValueError, pa.ArrowException) as error:
        place = output.place(f"{name}.json")
        way = "remove it and run again"
        raise UserError(f"{place}: damaged, or its twin; {way}") from error
    skipped.update(Skipped(Counter(counts), places))
