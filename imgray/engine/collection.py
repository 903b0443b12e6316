"""Run a step over every record of a collection, exactly once.

The sorted listing is frozen, at the start or as it comes, and cut into shards. A worker turns one
shard into `part-NNNNN-DIGEST.parquet` and, if images were set aside, into
`rejected/part-NNNNN-DIGEST.parquet`, each written whole or not at all, and then leaves a receipt in
`_work/`. A later run does the shards that have no receipt. Nothing depends on how Ray distributes
the work. What a worker of another run writes too late has another name, unless it is the same to
the byte.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq
import ray
from pydantic import BaseModel
from ray.exceptions import ActorDiedError
from ray.util.annotations import RayDeprecationWarning

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, REJECTED, FileEntry, Manifest, read_manifest
from imgray.data.collections import Collection
from imgray.engine.cluster import Pool, plan_pool
from imgray.engine.frozen import freeze
from imgray.engine.listing import Listing
from imgray.engine.pieces import Known
from imgray.engine.progress import Progress, say
from imgray.engine.receipts import Ledger, Receipt, found_receipts, receipts_of
from imgray.engine.settings import CollectionConfig
from imgray.engine.worker import Step, Worker, item_of
from imgray.errors import LINE, TooManyRejected, UserError, brief

BATCH = 8
"""Records of a forward pass by default."""
RESTARTS: dict[str, Any] = {"max_restarts": 5, "max_task_retries": -1}
"""Restarts are finite: by default a shard that always kills its worker would be tried forever.
Retries are not: until Ray has noticed that a node is gone, each fails at once. Ray 2.60 warns that
such keywords go away, but has no others for them yet."""
VARYING = re.compile(r"'[^']*'|cannot read \S+|\d[\d,.]*")
"""What differs in reasons of one kind: names, places and numbers."""


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
    other_than: Sequence[str] = (),
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
        most=config.max_rejected_shard,
        retry=config.retry_rejected,
        other_than=other_than,
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
    most: float = 1.0,
    retry: bool = False,
    other_than: Sequence[str] = (),
) -> Outcome:
    """Do all shards that are not done yet, and account for every listed record.

    Args:
        what: the job, for those who watch.
        collection: the records.
        output: where the parts go.
        make_step: what makes, on a worker, the step that is run.
        pool: of workers.
        batch_size: records of a forward pass.
        shard_size: records of a part, or of the first where there are many (`listing`).
        most: share of a shard's records that may be rejected; more stop the job.
        retry: try again what was rejected before.
        other_than: features artifacts; only what they have not is done.

    Raises:
        UserError: the collection or the output cannot be read or written, or a shard lost more.
    """
    worker = {"collection": collection, "output": output, "make_step": make_step}
    worker |= {"batch": batch_size, "shard_size": shard_size, "most": most}
    with freeze(collection, output, other_than) as frozen:
        receipts, again = _earlier(output, retry)
        earlier = sum(receipt.listed for receipt in receipts.values())
        progress, ledger = Progress(what, 0, earlier, whole=False), Ledger(output)

        def listed(known: Known) -> None:
            progress.grow(known.images, known.whole)
            progress.add(0)

        for known, ready in frozen.shards(shard_size, listed):
            progress.grow(known.images, known.whole)
            if not ready.start:
                _tell_earlier(what, known, ready.stop, earlier, len(again))
            pending = [(n, again.get(n)) for n in ready if n not in receipts]
            for receipt in _run(pending, worker, pool):
                receipts[receipt.shard] = receipt
                ledger.add(receipt)
                known = frozen.known()
                progress.grow(known.images, known.whole)
                progress.add(receipt.listed, receipt.rejected.rows if receipt.rejected else 0)
        listing = frozen.ended()
    return _account(listing, ready.stop, [receipts[shard] for shard in sorted(receipts)])


def _earlier(output: Folder, retry: bool) -> tuple[dict[int, Receipt], dict[int, Receipt]]:
    """By shard the receipts of what is done, and of those that are to be done again."""
    found = found_receipts(output)
    if output.exists(NAME):
        before = {receipt.shard: receipt for receipt in receipts_of(read_manifest(output))}
        found = {n: r for n, r in found.items() if before.get(n) != r}
        again = {n: r for n, r in before.items() if r.rejected and n not in found}
    else:
        before, again = {}, {n: r for n, r in found.items() if r.rejected and retry}
    return {n: r for n, r in (before | found).items() if n not in again}, again


def _tell_earlier(what: str, known: Known, shards: int, done: int, again: int) -> None:
    so_far = "" if known.whole else " so far"
    if again:
        say(f"{what}: tries again what was rejected in {again:,} of {shards:,} shards{so_far}")
    elif done:
        images = f"{known.images:,} images{so_far}"
        say(f"{what}: {done:,} of {images} were done by an earlier run")


def summarize_rejections(output: Folder, files: Iterable[FileEntry], most: int = 5) -> list[str]:
    """The commonest kinds of reasons for which images were set aside, with their number.

    Reasons that differ in numbers and names alone are of one kind, and the first stands for them.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for entry in files:
        if entry.name.startswith(f"{REJECTED}/"):
            table = pq.read_table(io.BytesIO(output.read(entry.name)))
            for row in table.to_pylist():
                kind = VARYING.sub("", row["reason"])
                counts[kind] += 1
                first.setdefault(kind, f"{row['reason']} (first: {row['id']})")
    return [f"{n:,} x {first[kind]}" for kind, n in counts.most_common(most)]


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


def _run(
    pending: list[tuple[int, Receipt | None]], worker: dict[str, Any], pool: Pool
) -> Iterator[Receipt]:
    if not pending:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    workers = min(pool.workers, len(pending))
    items = ray.data.from_items(
        [item_of(*shard) for shard in pending],
        override_num_blocks=min(len(pending), 64 * workers),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        done = items.map_batches(
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


def _account(listing: Listing, shards: int, receipts: list[Receipt]) -> Outcome:
    done = sum(receipt.part.rows for receipt in receipts)
    rejected = sum(receipt.rejected.rows for receipt in receipts if receipt.rejected)
    if len(receipts) != shards or done + rejected != listing.images:
        raise UserError(
            f"{done} done + {rejected} rejected are not the {listing.images} listed images: "
            "the output was changed while the job ran; run it again with --overwrite"
        )
    files = listing.files + [file for receipt in receipts for file in receipt.files]
    return Outcome(files=files, listed=listing.images, done=done, rejected=rejected)
