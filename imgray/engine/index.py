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
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import Identity
from imgray.artifacts.manifest import FileEntry, Manifest, entry_of, read_file, read_manifest
from imgray.data.layout import HOW
from imgray.engine.build import (
    FITTED,
    Part,
    Receipt,
    build_shard,
    build_shards,
    fit_part,
    sum_frequencies,
)
from imgray.engine.cluster import TASK_RETRIES, cluster
from imgray.engine.joint import JointPart, joint_part, sample_rows
from imgray.engine.producer import migrated, produce
from imgray.engine.progress import say
from imgray.engine.report import REPORT, Measured, Report, measure, read_report
from imgray.engine.rows import BLOCK, Source
from imgray.engine.settings import SHARD_IMAGES, IndexConfig
from imgray.engine.shards import PLACES
from imgray.errors import UserError
from imgray.features.columns import FeatureInfo, choose
from imgray.features.extractor import ExtractorConfig, extractor_files
from imgray.features.texts import LAYER
from imgray.retrieval.codebook import Codebooks, CodebookSettings
from imgray.retrieval.modalities import IMAGE, TEXT

MAX_CODEWORDS = 4096
DEFAULT_LISTS = 2**20
"""The most inverted lists that default codewords make: 169 MB of a build task, 25 of a shard."""
BUILT_BYTES, OPENED_BYTES = 161, 24
"""What FAISS 1.15 takes for a list without postings: in a build task, in a memory-mapped shard."""
SEARCHED_WITH = frozenset({"probes", "joint_probes", "text_queries"})
"""Settings that a run which goes on may change: what is built so far does not depend on them."""
MEASURED = "recall@10"
"""The recall that `--min-recall` is about."""


class IndexResult(BaseModel):
    """What an index build has made."""

    output: str
    images: int
    shards: int
    bytes_per_image: float
    recall: dict[str, float]
    modalities: dict[str, Measured] = {}

    def __str__(self) -> str:
        found = {IMAGE: self.recall} | {name: one.recall for name, one in self.modalities.items()}
        lines = [f"against exact search, {name}: {_listed(one)}" for name, one in found.items()]
        shards = "one shard" if self.shards == 1 else f"{self.shards} shards"
        head = f"{self.images:,} images in {shards}, {self.bytes_per_image:.0f} bytes "
        return "\n".join([f"{head}per image", *lines, f"artifact: {self.output}"])


def _listed(recall: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in recall.items())


def build_index(config: IndexConfig) -> IndexResult:
    """Build, continue or find finished an index artifact."""
    features, output = Folder(config.features), Folder(config.output)
    made_from = read_manifest(features, "features")
    _refuse_texts(features, made_from)
    source = Source(features, made_from, config.feature, config.signature_feature)
    if not source.rows:
        raise UserError(f"{features.uri}: holds no images, only rejected ones; nothing to index")
    settings = _codebook_settings(config, source)
    migrate = partial(migrated, IndexConfig)
    identity = config.identity() | {"features_digest": made_from.digest}
    if config.joint:
        identity["joint_digest"] = read_manifest(Folder(config.joint)).digest
    identity = migrate(identity)

    def work(output: Folder) -> Manifest:
        words = min(_default_codewords(source.rows, 1, 1), max(1, config.sample // 8))
        joint = joint_part(config, made_from, output, words)
        return _build(config, source, settings, joint, output, made_from, identity)

    manifest = produce(
        output,
        "index",
        identity,
        work,
        sources=[config.features, *([config.joint] if config.joint else [])],
        notes=[FITTED],
        overwrite=config.overwrite,
        wait=config.wait,
        migrate=migrate,
        free=SEARCHED_WITH,
    )
    report = read_report(output, manifest)
    _refuse_low(report, config, "it is published; build another with --overwrite")
    return IndexResult(
        output=output.uri,
        images=manifest.counts["images"],
        shards=manifest.counts["shards"],
        bytes_per_image=report.bytes_per_image,
        recall=report.recall,
        modalities=report.modalities,
    )


def _refuse_texts(features: Folder, made_from: Manifest) -> None:
    """Raises `UserError` for features of texts, or of what no network of ours has seen."""
    extractor = ExtractorConfig.model_validate(made_from.about.get("extractor", {}))
    if not extractor.nets:
        raise UserError(
            f"{features.uri}: not the features of images, whose networks an index needs to answer "
            "images; words are answered with --joint MODEL"
        )


def _refuse_low(report: Report, config: IndexConfig, then: str) -> None:
    """Raises `UserError`, which says what `then`, where `--min-recall` asks for more."""
    for name, least in config.least_recall.items():
        measured = {IMAGE: report.recall} | {n: m.recall for n, m in report.modalities.items()}
        found = measured.get(name, {}).get(MEASURED, 0.0)
        if found < least:
            flag = "--probes" if name == IMAGE else "--joint-probes"
            raise UserError(
                f"--min-recall {name}={least:g}: {MEASURED} against exact search is {found:.4f}; "
                f"more {flag} find more; {then}"
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
    joint: JointPart | None,
    output: Folder,
    made_from: Manifest,
    identity: Identity,
) -> Manifest:
    started = time.monotonic()
    held_out, sample = _split(source, config)
    remote: Any = ray.remote(num_cpus=config.cpus_per_task, max_retries=TASK_RETRIES)
    fitting: list[tuple[Any, ...]] = [(source, output, settings, sample)]
    if joint:
        rows = sample_rows(joint, config, held_out)
        fitting.append((joint.source, output, joint.settings, rows, PLACES[TEXT], joint.embedding))
    parts: list[Part] = ray.get([remote(fit_part).remote(*given) for given in fitting])
    fitted = time.monotonic()
    _warn_of_many(settings.lists)
    whole = source.joined(joint.source) if joint else source
    receipts = build_shards(
        remote(build_shard), whole, output, parts, _cuts(source.rows, config.shards)
    )
    files: list[FileEntry] = []
    for part, own in zip(parts, receipts, strict=True):
        files += _files(output, part, own)
    built = time.monotonic()
    files += _copy_weights(source, made_from, output)
    manifest = Manifest(
        kind="index",
        config=identity,
        made_from={identity["features"]: made_from.digest},
        counts={"images": source.rows, "shards": len(receipts[0])},
        about=_about(made_from, source.columns),
        files=files,
    )
    if joint:
        manifest.files += joint.files
        manifest.about["joint"] = joint.about
        manifest.made_from[identity["joint"]] = identity["joint_digest"]
    report = measure(remote, source, output, manifest, held_out, joint)
    seconds = {"fit": fitted - started, "shards": built - fitted}
    report = report.model_copy(update={"seconds": {k: round(v, 2) for k, v in seconds.items()}})
    _refuse_low(report, config, "run it again, without --overwrite: what is built so far is kept")
    data = report.model_dump_json(indent=1).encode()
    output.write(REPORT, data)
    manifest.files.append(entry_of(REPORT, data))
    return manifest


def _files(output: Folder, part: Part, receipts: list[Receipt]) -> list[FileEntry]:
    """The files of a part, whose codebooks may be of an earlier run."""
    kept = Codebooks.from_bytes(read_file(output, part.codebooks)).settings
    frequency = sum_frequencies(output, receipts, kept.lists, part.place)
    return [part.codebooks, frequency] + [file for receipt in receipts for file in receipt.files]


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
    place = "images", "layout", *HOW
    return {
        **{key: value for key, value in made_from.about.items() if key in place},
        "extractor": _extractor(made_from, columns).model_dump(mode="json"),
        "features": {name: info.model_dump() for name, info in columns.items()},
    }
