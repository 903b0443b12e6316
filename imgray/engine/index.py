"""Build a sharded multi-DeepIndex from feature shards (Ray tasks), and report its recall.

Three passes: fit the codebooks on a sample (one task); encode and add every image (a task per
index shard, each over its own range of rows, in bounded memory); measure against exact search on
held-out queries. The idf is counted over all shards, so shards rank as one index would.
"""

from __future__ import annotations

import itertools
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import Identity
from imgray.artifacts.manifest import (
    WORK,
    FileEntry,
    Manifest,
    entry_of,
    entry_of_file,
    read_file,
    read_manifest,
    scratch,
)
from imgray.engine.cluster import TASK_RETRIES, cluster
from imgray.engine.producer import migrated, produce
from imgray.engine.progress import Progress, say
from imgray.engine.report import REPORT, measure, read_report
from imgray.engine.rows import BLOCK, Source
from imgray.engine.settings import SHARD_IMAGES, IndexConfig
from imgray.engine.shards import CODEBOOKS, FREQUENCY
from imgray.errors import UserError
from imgray.features.columns import FeatureInfo, choose
from imgray.features.extractor import ExtractorConfig, extractor_files
from imgray.features.texts import LAYER
from imgray.retrieval.codebook import Codebooks, CodebookSettings, fit
from imgray.retrieval.deepindex import ShardBuilder

MAX_CODEWORDS = 4096
DEFAULT_LISTS = 2**20
"""The most inverted lists that default codewords make: 169 MB of a build task, 25 of a shard."""
BUILT_BYTES, OPENED_BYTES = 161, 24
"""What FAISS 1.15 takes for a list without postings: in a build task, in a memory-mapped shard."""
FITTED = f"{WORK}/codebooks.json"
"""The note that codebooks are done."""


class IndexResult(BaseModel):
    """What an index build has made."""

    output: str
    images: int
    shards: int
    bytes_per_image: float
    recall: dict[str, float]

    def __str__(self) -> str:
        recall = ", ".join(f"{name} {value:.3f}" for name, value in self.recall.items())
        return (
            f"{self.images:,} images in {self.shards} shards, {self.bytes_per_image:.0f} bytes per "
            f"image\nagainst exact search: {recall}\nartifact: {self.output}"
        )


class _Receipt(BaseModel):
    """A finished index shard, with the file of its lists' document frequencies."""

    shard: int
    first: int
    images: int
    files: list[FileEntry]
    frequency: FileEntry


def build_index(config: IndexConfig) -> IndexResult:
    """Build, continue or find finished an index artifact."""
    features, output = Folder(config.features), Folder(config.output)
    made_from = read_manifest(features, "features")
    source = Source(features, made_from, config.feature, config.signature_feature)
    if not source.rows:
        raise UserError(f"{features.uri}: holds no images, only rejected ones; nothing to index")
    settings = _codebook_settings(config, source)
    migrate = partial(migrated, IndexConfig)
    identity = migrate(config.identity() | {"features_digest": made_from.digest})
    manifest = produce(
        output,
        "index",
        identity,
        partial(_build, config, source, settings, output, made_from, identity),
        sources=[config.features],
        note=FITTED,
        overwrite=config.overwrite,
        migrate=migrate,
    )
    report = read_report(output, manifest)
    return IndexResult(
        output=output.uri,
        images=manifest.counts["images"],
        shards=manifest.counts["shards"],
        bytes_per_image=report.bytes_per_image,
        recall=report.recall,
    )


def _codebook_settings(config: IndexConfig, source: Source) -> CodebookSettings:
    names = tuple(choose(source.columns, config.feature))
    levels = tuple(g * g for g in source.grids)
    single = sum(levels) == 1
    signature = tuple(choose(source.columns, config.signature_feature)) or names
    words = config.codewords or [_default_codewords(source.rows, sum(levels), len(names))]
    probes = config.probes or _default_probes(len(names), single)
    return CodebookSettings(
        features=names,
        codewords=_one_or_each("--codewords", words, len(names), "feature"),
        levels=levels,
        probes=_one_or_each("--probes", probes, len(levels), "level of the pyramid"),
        dim=config.dim or (128 if single else 48),
        signature=() if single or not config.signature_dim else signature,
        **config.model_dump(
            include={"code", "bandwidth", "seed", "signature_dim", "signature_power"}
        ),
    )


def _default_codewords(rows: int, regions: int, features: int) -> int:
    """A power of two near a multiple of the square root of the number of postings.

    Lists take memory in every task and shard even where they are empty, as most tuples of several
    features are. So they grow no more in number than to `DEFAULT_LISTS`, but in length.
    """
    factor = 0.5 if features > 1 else 2.0
    most = 2 ** int(math.log2(DEFAULT_LISTS) / features)
    limit = min(MAX_CODEWORDS, most, rows * regions // 8)
    return max(1, min(2 ** round(math.log2(factor * math.sqrt(rows * regions))), limit))


def _warn_of_many(lists: int) -> None:
    if lists > DEFAULT_LISTS:
        building, opened = (lists * size / 1e9 for size in (BUILT_BYTES, OPENED_BYTES))
        say(
            f"index: --codewords make {lists:,} lists: {building:.1f} GB in every build task, "
            f"{opened:.1f} GB in every opened shard; fewer words take less"
        )


def _default_probes(features: int, single: bool) -> list[int]:
    if single:
        return [512] if features > 1 else [32]
    return [512, 32, 4] if features > 1 else [16, 4, 1]


def _one_or_each(flag: str, values: list[int], count: int, what: str) -> tuple[int, ...]:
    if len(values) not in (1, count):
        raise UserError(f"{flag}: give one number, or {count}, one per {what}")
    if min(values) < 1:
        raise UserError(f"{flag}: {min(values)} is not a positive number")
    return tuple(values if len(values) == count else values * count)


@cluster()
def _build(
    config: IndexConfig,
    source: Source,
    settings: CodebookSettings,
    output: Folder,
    made_from: Manifest,
    identity: Identity,
) -> Manifest:
    started = time.monotonic()
    held_out, sample = _split(source, config)
    remote = ray.remote(num_cpus=config.cpus_per_task, max_retries=TASK_RETRIES)
    codebooks = ray.get(remote(_fit).remote(source, output, settings, sample))
    fitted = time.monotonic()
    _warn_of_many(settings.lists)
    cuts = _cuts(source.rows, config.shards)
    receipts = _build_shards(remote(_build_shard), source, output, codebooks, cuts)
    kept = Codebooks.from_bytes(read_file(output, codebooks)).settings  # of an earlier run, perhaps
    frequency = _sum_frequencies(output, receipts, kept.lists)
    built = time.monotonic()
    files = [codebooks, frequency] + [file for receipt in receipts for file in receipt.files]
    files += _copy_weights(source, made_from, output)
    manifest = Manifest(
        kind="index",
        config=identity,
        made_from={identity["features"]: made_from.digest},
        counts={"images": source.rows, "shards": len(receipts)},
        about=_about(made_from, source.columns),
        files=files,
    )
    report = measure(remote, source, output, manifest, held_out)
    seconds = {"fit": fitted - started, "shards": built - fitted}
    report = report.model_copy(update={"seconds": {k: round(v, 2) for k, v in seconds.items()}})
    data = report.model_dump_json(indent=1).encode()
    output.write(REPORT, data)
    manifest.files.append(entry_of(REPORT, data))
    return manifest


def _split(source: Source, config: IndexConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the held-out queries, and of the images to train on: disjoint, each rising."""
    random = np.random.default_rng(config.seed)
    queries = min(config.queries, max(1, source.rows // 10))
    images = -(-config.sample // sum(g * g for g in source.grids))
    chosen = source.sample(queries + images, random)
    held_out, sample = chosen[:queries], chosen[queries:]
    return np.sort(held_out), np.sort(sample if len(sample) else held_out)


def _cuts(rows: int, shards: int | None) -> list[tuple[int, int]]:
    """Ranges of rows of about equal length, cut at whole blocks."""
    blocks = -(-rows // BLOCK)
    count = min(shards or -(-rows // SHARD_IMAGES), blocks)
    if shards and count < shards:
        say(f"index: {rows} images fill only {count} shards")
    edges = [blocks * shard // count * BLOCK for shard in range(count)] + [rows]
    return list(itertools.pairwise(edges))


def _fit(
    source: Source, output: Folder, settings: CodebookSettings, sample: NDArray[np.int64]
) -> FileEntry:
    """Train the codebooks on a sample; those of an interrupted run are kept."""
    if output.exists(FITTED):
        return FileEntry.model_validate_json(output.read(FITTED))
    data = fit(source.pick(sample)[1], settings).to_bytes()
    output.write(CODEBOOKS, data)
    entry = entry_of(CODEBOOKS, data)
    output.write(FITTED, entry.model_dump_json().encode())
    return entry


def _build_shards(
    task: Any, source: Source, output: Folder, codebooks: FileEntry, cuts: list[tuple[int, int]]
) -> list[_Receipt]:
    progress = Progress("index", source.rows)
    shared = ray.put(source)
    waiting = [
        task.remote(shared, output, codebooks, number, first, last)
        for number, (first, last) in enumerate(cuts)
    ]
    receipts: list[_Receipt] = []
    while waiting:
        done, waiting = ray.wait(waiting)
        receipts += ray.get(done)
        progress.add(receipts[-1].images)
    return sorted(receipts, key=lambda receipt: receipt.shard)


def _build_shard(
    source: Source, output: Folder, codebooks: FileEntry, number: int, first: int, last: int
) -> _Receipt:
    note = f"{WORK}/shard-{number:05d}.json"
    if output.exists(note):
        return _Receipt.model_validate_json(output.read(note))
    builder = ShardBuilder(Codebooks.from_bytes(read_file(output, codebooks)))
    for ids, vectors in source.read(first, last):
        builder.add(ids, vectors)
    name = f"shard-{number:05d}"
    with scratch() as folder:
        builder.write(folder / f"{name}.faiss", folder / f"{name}.parquet")
        files = [
            _publish(output, folder / f"{name}{s}", last - first) for s in (".faiss", ".parquet")
        ]
    lists, counts = builder.document_frequency()
    data = save_safetensors({"lists": lists, "counts": counts})
    frequency = entry_of(f"{WORK}/{name}.safetensors", data)
    output.write(frequency.name, data)
    receipt = _Receipt(
        shard=number, first=first, images=last - first, files=files, frequency=frequency
    )
    output.write(note, receipt.model_dump_json().encode())
    return receipt


def _publish(output: Folder, path: Path, rows: int) -> FileEntry:
    entry = entry_of_file(path, rows)
    output.upload(path, path.name)
    return entry


def _sum_frequencies(output: Folder, receipts: list[_Receipt], lists: int) -> FileEntry:
    total = np.zeros(lists, np.int64)
    for receipt in receipts:
        found = load_safetensors(read_file(output, receipt.frequency))
        np.add.at(total, found["lists"], found["counts"])
    used = np.flatnonzero(total)
    data = save_safetensors({"lists": used, "counts": total[used]})
    output.write(FREQUENCY, data)
    return entry_of(FREQUENCY, data)


def _copy_weights(source: Source, made_from: Manifest, output: Folder) -> list[FileEntry]:
    """The networks travel with the index, so that it answers without a hub."""
    entries = []
    for name in extractor_files(_extractor(made_from, source.columns)):
        entry = made_from.file(name)
        output.write(entry.name, read_file(source.folder, entry))
        entries.append(entry)
    return entries


def _extractor(made_from: Manifest, columns: dict[str, FeatureInfo]) -> ExtractorConfig:
    """The extractor of the features, cut down to the indexed networks and layers."""
    whole = ExtractorConfig.model_validate(made_from.about["extractor"])
    nets = {}
    for name, net in whole.nets.items():
        layers = {k: path for k, path in net.layers.items() if f"{name}.{k}" in columns}
        if layers:
            nets[name] = net.model_copy(update={"layers": layers})
    texts = {name: text for name, text in whole.texts.items() if f"{name}.{LAYER}" in columns}
    return whole.model_copy(update={"nets": nets, "texts": texts})


def _about(made_from: Manifest, columns: dict[str, FeatureInfo]) -> dict[str, Any]:
    return {
        **{key: made_from.about[key] for key in ("images", "layout") if key in made_from.about},
        "extractor": _extractor(made_from, columns).model_dump(mode="json"),
        "features": {name: info.model_dump() for name, info in columns.items()},
    }
