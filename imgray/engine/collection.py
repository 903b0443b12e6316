"""Run a step over every record of a collection, exactly once.

The sorted listing is frozen at the start and cut into shards; a shard is a row group of
`listing.parquet`. A worker turns one shard into `part-NNNNN-DIGEST.parquet` and, if images were set
aside, `rejected/part-NNNNN-DIGEST.parquet`, each written whole or not at all, and then leaves a
receipt in `_work/`. A later run does the shards that have no receipt. Nothing depends on how Ray
distributes the work. What a worker of another run writes too late has another name, unless it is
the same to the byte.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydantic import BaseModel, ValidationError
from ray.exceptions import ActorDiedError
from ray.util.annotations import RayDeprecationWarning

from imgray.artifacts.folder import Entry, Folder, Skipped
from imgray.artifacts.manifest import (
    NAME,
    WORK,
    FileEntry,
    Manifest,
    entry_of,
    entry_of_file,
    read_manifest,
    scratch,
    sha256,
)
from imgray.artifacts.owner import Lost, Owned
from imgray.data.collections import CHANGED, Collection
from imgray.data.fields import Values
from imgray.data.pixels import Rejected
from imgray.engine.cluster import Pool, plan_pool
from imgray.engine.progress import Progress, say
from imgray.engine.settings import CollectionConfig
from imgray.errors import LINE, TooManyRejected, UserError, brief
from imgray.features.memory import keep_freed

LISTING = "listing.parquet"
LISTED = f"{WORK}/listing.json"
RECEIPTS = f"{WORK}/receipts"
REJECTED = "rejected"
PART = re.compile(rf"({REJECTED}/)?part-\d{{5,}}(-[0-9a-f]{{12}})?\.parquet")
BATCH = 8
"""Records of a forward pass by default."""
ROW_GROUP_BYTES = 16 * 2**20
RESTARTS: dict[str, Any] = {"max_restarts": 5, "max_task_retries": -1}
"""Restarts are finite: by default a shard that always kills its worker would be tried forever.
Retries are not: until Ray has noticed that a node is gone, each fails at once. Ray 2.60 warns that
such keywords go away, but has no others for them yet."""

_LISTING = pa.schema([("id", pa.string()), ("size", pa.int64())])
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


class Receipt(BaseModel):
    """A finished shard."""

    shard: int
    listed: int
    part: FileEntry
    rejected: FileEntry | None = None

    @property
    def files(self) -> list[FileEntry]:
        """The data files of the shard."""
        return [self.part] + ([self.rejected] if self.rejected else [])


class Outcome(BaseModel):
    """A finished collection: done + rejected = listed."""

    files: list[FileEntry]
    listed: int
    done: int
    rejected: int


def process_configured(
    what: str,
    config: CollectionConfig,
    collection: Collection,
    output: Folder,
    make_step: Callable[[], Step],
    batch_size: int = BATCH,
) -> Outcome:
    """`process_collection` with the settings of a job, on the cluster that it has joined.

    `batch_size` holds where the settings have none.
    """
    pool = plan_pool(config.workers, config.cpus_per_worker, config.gpus_per_worker)
    return process_collection(
        what,
        collection,
        output,
        make_step,
        pool,
        batch_size=config.batch_size or batch_size,
        shard_size=config.shard_size,
    )


def process_collection(
    what: str,
    collection: Collection,
    output: Folder,
    make_step: Callable[[], Step],
    pool: Pool,
    *,
    batch_size: int,
    shard_size: int,
) -> Outcome:
    """Do all shards that are not done yet, and account for every listed record."""
    listing = _freeze_listing(collection, output, shard_size)
    receipts = {r.shard: r for r in _receipts(output)}
    pending = [shard for shard in range(listing.shards) if shard not in receipts]
    earlier = sum(receipt.listed for receipt in receipts.values())
    if earlier:
        say(f"{what}: {earlier:,} of {listing.images:,} images were done by an earlier run")
    progress = Progress(what, listing.images, earlier)
    worker = {"collection": collection, "output": output, "make_step": make_step}
    worker |= {"batch": batch_size, "shard_size": shard_size}
    for receipt in _run(pending, worker, pool):
        receipts[receipt.shard] = receipt
        progress.add(receipt.listed, receipt.rejected.rows if receipt.rejected else 0)
    _sweep(output, [file for receipt in receipts.values() for file in receipt.files])
    return _account(listing, [receipts[shard] for shard in sorted(receipts)])


def _sweep(output: Folder, files: Iterable[FileEntry]) -> None:
    """Remove the parts of other runs: who reads `part-*.parquet` sees what the manifest lists."""
    listed = {file.name for file in files}
    found = (*output.files(), *output.sizes(REJECTED))
    output.remove_many([n for n in found if PART.fullmatch(n) and n not in listed])


def summarize_rejections(output: Folder, files: Iterable[FileEntry], most: int = 5) -> list[str]:
    """The commonest reasons for which images were set aside, with their number and an example."""
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for entry in files:
        if entry.name.startswith(f"{REJECTED}/"):
            table = pq.read_table(io.BytesIO(output.read(entry.name)))
            for row in table.to_pylist():
                counts[row["reason"]] += 1
                example.setdefault(row["reason"], row["id"])
    return [
        f"{n:,} x {reason} (first: {example[reason]})" for reason, n in counts.most_common(most)
    ]


def check_rejected(output: Folder, manifest: Manifest, most: float) -> None:
    """Say why images were set aside. Raises `TooManyRejected` above a share of the listed ones."""
    listed, rejected = manifest.counts["listed"], manifest.counts["rejected"]
    for line in summarize_rejections(output, manifest.files):
        say(f"rejected: {brief(line, LINE)}")
    if rejected > most * listed:
        raise TooManyRejected(
            f"{rejected:,} of {listed:,} images were rejected, more than --max-rejected {most:g}; "
            f"the others are done; see {output.uri}/{REJECTED}"
        )


class _Listing(BaseModel):
    images: int
    shards: int
    file: FileEntry
    digest: str | None = None


def _freeze_listing(collection: Collection, output: Folder, shard_size: int) -> _Listing:
    if output.exists(LISTED):
        listing = _Listing.model_validate_json(output.read(LISTED))
        if listing.digest != collection.digest:
            raise UserError(f"{collection.uri}: {CHANGED}")
        return listing
    skipped = Skipped()
    entries = collection.entries(skipped)
    total = shards = 0
    with scratch() as folder:
        path = folder / LISTING
        with pq.ParquetWriter(path, _LISTING) as writer:
            while chunk := list(itertools.islice(entries, shard_size)):
                columns = [[entry.id for entry in chunk], [entry.size for entry in chunk]]
                writer.write_table(pa.table(columns, schema=_LISTING), row_group_size=shard_size)
                total, shards = total + len(chunk), shards + 1
        if not total:
            found = f", only {skipped}" if skipped.by_suffix else ""
            raise UserError(f"{collection.uri}: no images here{found}; see --suffixes")
        file = entry_of_file(path, total)
        output.upload(path, LISTING)
    if skipped.by_suffix:
        say(f"{collection.uri}: passed over {skipped}")
    listing = _Listing(images=total, shards=shards, file=file, digest=collection.digest)
    output.write(LISTED, listing.model_dump_json().encode())
    return listing


def _receipts(output: Folder) -> list[Receipt]:
    """Receipts of earlier runs whose files are still there at full size; others are removed."""
    names = sorted(name for name in output.sizes(_notes(output)) if name.endswith(".json"))
    sizes = output.sizes() if names else {}
    found = []
    for name, data in zip(names, output.read_many(names), strict=True):
        receipt = _receipt(data)
        if receipt and all(sizes.get(file.name) == file.size for file in receipt.files):
            found.append(receipt)
        else:
            output.remove(name)
    return found


def _notes(output: Folder) -> str:
    """Where the receipts lie: those of another beginning are of other settings, perhaps."""
    run = output.begun if isinstance(output, Owned) else ""
    return f"{RECEIPTS}/{run}" if run else RECEIPTS


def _receipt(data: bytes) -> Receipt | None:
    try:
        return Receipt.model_validate_json(data)
    except ValidationError:
        return None


def _run(pending: list[int], worker: dict[str, Any], pool: Pool) -> Iterator[Receipt]:
    if not pending:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    workers = min(pool.workers, len(pending))
    shards = ray.data.from_items(
        [{"shard": shard} for shard in pending],
        override_num_blocks=min(len(pending), 64 * workers),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        done = shards.map_batches(
            Worker,
            fn_constructor_kwargs={**worker, "pool": pool},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            **RESTARTS,
        )
    try:
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
            for text, error in zip(batch["receipt"], batch["error"], strict=True):
                if error:
                    raise UserError(error)
                yield Receipt.model_validate_json(text)
    except ActorDiedError:
        raise UserError(
            f"a worker died {RESTARTS['max_restarts'] + 1} times: out of memory, or an image that "
            "crashes its decoder; run again with fewer --workers or a smaller --batch-size to go on"
        ) from None


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
        note = f"{_notes(self.output)}/{shard:05d}.json"
        if self.output.exists(note):
            return Receipt.model_validate_json(self.output.read(note))
        rows = self.listing.read_row_group(shard).to_pylist()
        first = shard * self.shard_size
        entries = [(first + place, Entry(**row)) for place, row in enumerate(rows)]
        tables, rejections = self._rows(entries)
        table = pa.concat_tables([self.step.schema.empty_table(), *tables])
        files = [_file(f"part-{shard:05d}", table)]
        if rejections:
            columns = [list(column) for column in zip(*sorted(rejections), strict=True)]
            refused = pa.table(columns, schema=_REJECTED)
            files.append(_file(f"{REJECTED}/part-{shard:05d}", refused))
        part, rejected = [*(entry for entry, _ in files), None][:2]
        receipt = Receipt(shard=shard, listed=len(rows), part=part, rejected=rejected)
        _keep(self.output, files, note, receipt)
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


def _file(name: str, table: pa.Table) -> tuple[FileEntry, bytes]:
    """A table's file, whose name tells its content."""
    data = _parquet(table)
    return entry_of(f"{name}-{sha256(data)[:12]}.parquet", data, len(table)), data


def _keep(
    output: Folder, files: Sequence[tuple[FileEntry, bytes]], note: str, receipt: Receipt
) -> None:
    """Write a shard. Raises `Lost` where another run owns the output, and takes it back."""
    try:
        for entry, data in files:
            output.write(entry.name, data)
        output.write(note, receipt.model_dump_json().encode())
        if isinstance(output, Owned):
            output.check()
    except Lost:
        _take_back(Folder(output.absolute), receipt)
        raise


def _take_back(output: Folder, receipt: Receipt) -> None:
    """Remove what was written too late; a run that is not done does so before it publishes."""
    if output.exists(NAME):
        listed = {file.name for file in read_manifest(output).files}
        for file in receipt.files:
            if file.name not in listed:
                output.remove(file.name)


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


def _parquet(table: pa.Table) -> bytes:
    """Encode deterministically, in row groups that a reader can hold one at a time."""
    rows = max(1, ROW_GROUP_BYTES * max(1, len(table)) // max(1, table.nbytes))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows, compression="zstd", use_dictionary=False)
    return buffer.getvalue()


def _account(listing: _Listing, receipts: list[Receipt]) -> Outcome:
    done = sum(receipt.part.rows for receipt in receipts)
    rejected = sum(receipt.rejected.rows for receipt in receipts if receipt.rejected)
    if len(receipts) != listing.shards or done + rejected != listing.images:
        raise UserError(
            f"{done} done + {rejected} rejected are not the {listing.images} listed images: "
            "the output was changed while the job ran; run it again with --overwrite"
        )
    files = [listing.file] + [file for receipt in receipts for file in receipt.files]
    return Outcome(files=files, listed=listing.images, done=done, rejected=rejected)
