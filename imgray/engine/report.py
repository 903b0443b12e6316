"""Measure an index against exact search on held-out queries (Ray tasks)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_file
from imgray.engine.fan_out import search_shards
from imgray.engine.rows import BLOCK, Source
from imgray.features.columns import Vectors, choose
from imgray.retrieval.codebook import unit

REPORT = "report.json"
EXACT_ROWS = 20_000
RECALL_AT = (1, 10, 100)
DEPTH = max(RECALL_AT)


class Report(BaseModel):
    """Recall against exact search, sizes and times, as published in `report.json`.

    `recall` is the share of the k nearest images by exact cosine (of all indexed features of the
    whole images side by side, float32) that are among the first k of the index, over held-out
    queries. An index of regions is meant to find more than such neighbours: it ranks otherwise.
    """

    queries: int
    recall: dict[str, float]
    bytes_per_image: float
    postings_touched: float
    seconds: dict[str, float]
    milliseconds_per_query: float


def read_report(folder: Folder, manifest: Manifest) -> Report:
    """The verified report of an index artifact. Raises `UserError`."""
    return Report.model_validate_json(read_file(folder, manifest.file(REPORT)))


def measure(
    remote: Any, source: Source, output: Folder, manifest: Manifest, held_out: NDArray[np.int64]
) -> Report:
    """Compare the index with exact search on held-out queries, each left out of its ranking."""
    _, vectors = ray.get(remote(Source.pick).remote(source, held_out))
    names = list(choose(source.columns, manifest.config["feature"]))
    exact = _exact_neighbours(remote, source, names, vectors, held_out)
    started = time.monotonic()
    answers = search_shards(output, manifest, vectors, DEPTH + 1)
    elapsed = time.monotonic() - started
    recall = dict.fromkeys(RECALL_AT, 0.0)
    for row, hits, truth in zip(held_out, answers, exact, strict=True):
        found = [position for position in hits.positions if position != row]
        others = [position for position in truth if position != row]
        for k in recall:
            nearest = set(others[:k])
            recall[k] += len(nearest & set(found[:k])) / max(1, len(nearest)) / len(held_out)
    regions = source.rows * source.columns[names[0]].regions
    stored = sum(file.size for file in manifest.named("shard-"))
    return Report(
        queries=len(held_out),
        recall={f"recall@{k}": round(value, 4) for k, value in recall.items()},
        bytes_per_image=stored / source.rows,
        postings_touched=sum(hits.touched for hits in answers) / len(answers) / regions,
        milliseconds_per_query=1000 * elapsed / len(answers),
        seconds={},
    )


def _exact_neighbours(
    remote: Any,
    source: Source,
    names: list[str],
    queries: Vectors,
    held_out: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Rows (Q, DEPTH) of the nearest images by exact cosine.

    The query comes after all others, so it is among them in a small collection alone.
    """
    wanted = _global(queries, names)
    step = BLOCK * max(1, EXACT_ROWS // BLOCK)
    starts = range(0, source.rows, step)
    parts = ray.get(
        [
            remote(_exact_part).remote(
                source, names, wanted, held_out, a, min(a + step, source.rows)
            )
            for a in starts
        ]
    )
    cosines = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    order = np.lexsort((rows, -cosines))[:, :DEPTH]
    return np.take_along_axis(rows, order, axis=1)


def _exact_part(
    source: Source,
    names: list[str],
    wanted: NDArray[np.float32],
    held_out: NDArray[np.int64],
    first: int,
    last: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    cosines = np.concatenate(
        [wanted @ _global(vectors, names).T for _, vectors in source.read(first, last)], axis=1
    )
    rows = np.arange(first, last)
    cosines[held_out[:, None] == rows[None, :]] = -2.0
    best = np.argsort(-cosines, axis=1, kind="stable")[:, : DEPTH + 1]
    found = np.take_along_axis(cosines, best, axis=1)
    own = found == -2.0
    order = np.argsort(own, axis=1, kind="stable")[:, : min(DEPTH, last - first)]
    return np.take_along_axis(found, order, axis=1), rows[np.take_along_axis(best, order, axis=1)]


def _global(vectors: Vectors, names: list[str]) -> NDArray[np.float32]:
    """Features of the whole image, each of unit length, side by side."""
    return np.concatenate([unit(vectors[name][:, 0]) for name in names], axis=1)
