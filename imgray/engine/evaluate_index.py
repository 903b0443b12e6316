"""Score the answers of an index against a known truth, on Ray."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydantic import BaseModel, RootModel

from imgray.artifacts.folder import Folder, read_uri
from imgray.artifacts.manifest import NAME, Manifest, read_file, read_manifest
from imgray.artifacts.walk import Skipped
from imgray.data.pixels import SUFFIXES
from imgray.engine.cluster import TASK_RETRIES, cluster, cores
from imgray.engine.evaluate_texts import evaluate_texts, right_answers
from imgray.engine.fan_out import search_shards
from imgray.engine.progress import say
from imgray.engine.rows import Source
from imgray.engine.search import check_fingerprints, encode
from imgray.engine.settings import EvaluateConfig
from imgray.engine.shards import check_answers_words
from imgray.errors import UserError
from imgray.features.columns import Vectors, columns_of
from imgray.features.extractor import load_extractor
from imgray.retrieval import metrics

CHUNK = 64


class Scores(RootModel[dict[str, float]]):
    """Metrics by name."""

    def __str__(self) -> str:
        return "\n".join(f"{name:14} {value:10.4f}" for name, value in self.root.items())


class Truth(BaseModel):
    """The group of every image by id."""

    groups: dict[str, str]

    @classmethod
    def read(cls, uri: str) -> Truth:
        """Read a CSV with the columns id and group."""
        try:
            rows = list(csv.DictReader(io.StringIO(read_uri(uri).decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"--truth {uri}: not a CSV file: {error}") from None
        if not rows or not {"id", "group"} <= rows[0].keys():
            raise UserError(f"--truth {uri}: expected rows under a header with id and group")
        broken = next((n for n, r in enumerate(rows, 2) if not r["id"] or not r["group"]), None)
        if broken:
            raise UserError(f"--truth {uri}: line {broken} lacks an id or a group")
        return cls(groups={row["id"]: row["group"] for row in rows})


def evaluate(config: EvaluateConfig) -> Scores:
    """Search with every query, image or text, that has a right answer, and score the rankings."""
    folder = Folder(config.index)
    manifest = read_manifest(folder, "index")
    groups = Truth.read(config.truth).groups if config.truth else None
    if config.queries is None:
        check_answers_words(folder, manifest)
        members = right_answers(indexed_ids(folder, manifest), groups)
        return Scores(evaluate_texts(config, folder, manifest, members))
    return _evaluate_images(config, folder, manifest, Folder(config.queries), groups or {})


def _evaluate_images(
    config: EvaluateConfig,
    folder: Folder,
    manifest: Manifest,
    queries: Folder,
    groups: Mapping[str, str],
) -> Scores:
    top = config.top or 10_000
    with cluster():
        ids, vectors = query_vectors(folder, manifest, queries, groups)
        started = time.monotonic()
        answers = search_shards(folder, manifest, vectors, top + 1)
        elapsed = time.monotonic() - started
    rankings = {
        id: [found for found in hits.ids if found != id][:top]
        for id, hits in zip(ids, answers, strict=True)
    }
    scores = metrics.evaluate(rankings, groups, indexed_ids(folder, manifest))
    return Scores(scores | {"queries": len(ids), "ms_per_query": 1000 * elapsed / len(ids)})


def query_vectors(
    index: Folder, manifest: Manifest, queries: Folder, groups: Mapping[str, str]
) -> tuple[list[str], Vectors]:
    """Ids and features of the queries that have a group, from images or extracted features."""
    if queries.exists(NAME):
        ids, vectors = _extracted(manifest, queries, groups)
    else:
        ids, vectors = _encoded(index, manifest, queries, groups)
    say(f"evaluate: {len(ids):,} queries")
    return ids, vectors


def _extracted(
    manifest: Manifest, queries: Folder, groups: Mapping[str, str]
) -> tuple[list[str], Vectors]:
    features = read_manifest(queries, "features")
    check_fingerprints(manifest, columns_of(features))
    source = Source(queries, features, list(columns_of(manifest)), [])
    ids: list[str] = []
    parts: dict[str, list[Any]] = {name: [] for name in source.columns}
    for block, vectors in source.read(0, source.rows):
        rows = [row for row, id in enumerate(block) if id in groups]
        ids += [block[row] for row in rows]
        for name, value in vectors.items():
            parts[name].append(value[rows])
    _some(ids, queries)
    return ids, {name: np.concatenate(values) for name, values in parts.items()}


def _encoded(
    index: Folder, manifest: Manifest, queries: Folder, groups: Mapping[str, str]
) -> tuple[list[str], Vectors]:
    ids = [entry.id for entry in queries.walk(SUFFIXES, Skipped()) if entry.id in groups]
    _some(ids, queries)
    size = max(1, min(CHUNK, -(-len(ids) // cores())))
    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(_encode_chunk)
    chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
    parts = ray.get([task.remote(index, manifest, queries, chunk) for chunk in chunks])
    return ids, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _encode_chunk(index: Folder, manifest: Manifest, queries: Folder, ids: list[str]) -> Vectors:
    return encode(load_extractor(index, manifest), {id: queries.read(id) for id in ids})


def _some(ids: list[str], queries: Folder) -> None:
    if not ids:
        raise UserError(
            f"{queries.uri}: no image here has an id of the truth; ids are paths relative to it"
        )


def indexed_ids(folder: Folder, manifest: Manifest) -> set[str]:
    """Ids of all images of an index."""
    tables = manifest.named("shard-", ".parquet")
    read = [pq.read_table(pa.BufferReader(read_file(folder, t)), columns=["id"]) for t in tables]
    return {id for table in read for id in table["id"].to_pylist()}
