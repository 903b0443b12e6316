"""Measure an index against exact search on held-out queries (Ray tasks)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_file
from imgray.engine.fan_out import search_shards
from imgray.engine.joint import Embedding, JointPart, as_vectors
from imgray.engine.rows import BLOCK, Source
from imgray.engine.shards import PLACES
from imgray.features.columns import Vectors, choose
from imgray.retrieval.codebook import Floats, unit
from imgray.retrieval.modalities import IMAGE, TEXT

REPORT = "report.json"
EXACT_ROWS = 20_000
RECALL_AT = (1, 10, 100)
DEPTH = max(RECALL_AT)


class Measured(BaseModel):
    """A part of an index against exact search, over queries of one kind.

    `recall` is the share of the k nearest images that are among the first k of the part.
    """

    queries: int
    recall: dict[str, float]
    postings_touched: float
    milliseconds_per_query: float


class Report(BaseModel):
    """Recall against exact search, sizes and times, as published in `report.json`.

    `recall` is the share of the k nearest images by exact cosine (of all indexed features of the
    whole images side by side, float32) that are among the first k of the index, over held-out
    queries. An index of regions is meant to find more than such neighbours: it ranks otherwise.

    `modalities` has that again under `image`, and under `text`, where `--text-queries` gave texts
    to measure with, the recall of their nearest images by the exact joint embedding. `joint` is the
    same with the embeddings of the held-out images for queries, which lie closer to the others.
    """

    queries: int
    recall: dict[str, float]
    bytes_per_image: float
    postings_touched: float
    seconds: dict[str, float]
    milliseconds_per_query: float
    modalities: dict[str, Measured] = {}
    joint: Measured | None = None


@dataclass(frozen=True)
class _Trial:
    """Queries, and what exact search compares them by.

    modality: whose part answers them; vectors: what it is asked with; whole: (Q, D) by which exact
    search compares; embed: the same of images (B, D), from their features; own: rows of the
    queries (Q,), to be left out of their own ranking, -1 for those that are no images.
    """

    modality: str
    vectors: Vectors
    whole: Floats
    embed: Callable[[Vectors], Floats]
    own: NDArray[np.int64]


def read_report(folder: Folder, manifest: Manifest) -> Report:
    """The verified report of an index artifact. Raises `UserError`."""
    return Report.model_validate_json(read_file(folder, manifest.file(REPORT)))


def measure(
    remote: Any,
    source: Source,
    output: Folder,
    manifest: Manifest,
    held_out: NDArray[np.int64],
    joint: JointPart | None,
) -> Report:
    """Compare the index with exact search on held-out queries, each left out of its ranking."""
    _, vectors = ray.get(remote(Source.pick).remote(source, held_out))
    embed = partial(_global, names=list(choose(source.columns, manifest.config["feature"])))
    trial = _Trial(IMAGE, vectors, embed(vectors), embed, held_out)
    found = {IMAGE: _measured(remote, source, output, manifest, trial)}
    own = None
    if joint:
        asked = _joint_trials(remote, joint, held_out)
        measured = [_measured(remote, joint.source, output, manifest, one) for one in asked]
        own = measured[0]
        found |= zip([TEXT], measured[1:], strict=False)
    stored = sum(e.size for place in PLACES.values() for e in manifest.named(f"{place}shard-"))
    return Report(
        **found[IMAGE].model_dump(),
        bytes_per_image=stored / source.rows,
        seconds={},
        modalities=found,
        joint=own,
    )


def _joint_trials(remote: Any, joint: JointPart, held_out: NDArray[np.int64]) -> list[_Trial]:
    """The joint part asked with images, and with texts where there are some."""
    embedding = joint.embedding
    images = ray.get(remote(Embedding.rows).remote(embedding, joint.source, held_out))
    asked = [(images, held_out)]
    if joint.texts:
        texts, _ = ray.get(remote(Embedding.texts).remote(embedding, joint.texts))
        asked.append((texts, np.full(len(texts), -1)))
    return [_Trial(TEXT, as_vectors(whole), whole, embedding, own) for whole, own in asked]


def _measured(
    remote: Any, source: Source, output: Folder, manifest: Manifest, trial: _Trial
) -> Measured:
    exact = _exact_neighbours(remote, source, trial)
    started = time.monotonic()
    answers = search_shards(output, manifest, trial.vectors, DEPTH + 1, trial.modality)
    elapsed = time.monotonic() - started
    recall = dict.fromkeys(RECALL_AT, 0.0)
    for row, hits, truth in zip(trial.own, answers, exact, strict=True):
        found = [position for position in hits.positions if position != row]
        others = [position for position in truth if position != row]
        for k in recall:
            nearest = set(others[:k])
            recall[k] += len(nearest & set(found[:k])) / max(1, len(nearest)) / len(answers)
    postings = source.rows * next(iter(trial.vectors.values())).shape[1]
    return Measured(
        queries=len(answers),
        recall={f"recall@{k}": round(value, 4) for k, value in recall.items()},
        postings_touched=sum(hits.touched for hits in answers) / len(answers) / postings,
        milliseconds_per_query=1000 * elapsed / len(answers),
    )


def _exact_neighbours(remote: Any, source: Source, trial: _Trial) -> NDArray[np.int64]:
    """Rows (Q, DEPTH) of the nearest images by exact cosine.

    A query that is an image comes after all others, so it is among them in a small collection
    alone.
    """
    step = BLOCK * max(1, EXACT_ROWS // BLOCK)
    starts = range(0, source.rows, step)
    shared = ray.put((trial.whole, trial.own))
    task = remote(_exact_part)
    parts = ray.get(
        [task.remote(source, trial.embed, shared, a, min(a + step, source.rows)) for a in starts]
    )
    cosines = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    order = np.lexsort((rows, -cosines))[:, :DEPTH]
    return np.take_along_axis(rows, order, axis=1)


def _exact_part(
    source: Source,
    embed: Callable[[Vectors], Floats],
    queries: tuple[Floats, NDArray[np.int64]],
    first: int,
    last: int,
) -> tuple[Floats, NDArray[np.int64]]:
    wanted, own = queries
    cosines = np.concatenate(
        [wanted @ embed(vectors).T for _, vectors in source.read(first, last)], axis=1
    )
    rows = np.arange(first, last)
    cosines[own[:, None] == rows[None, :]] = -2.0
    best = np.argsort(-cosines, axis=1, kind="stable")[:, : DEPTH + 1]
    found = np.take_along_axis(cosines, best, axis=1)
    order = np.argsort(found == -2.0, axis=1, kind="stable")[:, : min(DEPTH, last - first)]
    return np.take_along_axis(found, order, axis=1), rows[np.take_along_axis(best, order, axis=1)]


def _global(vectors: Vectors, names: list[str]) -> Floats:
    """Features of the whole image, each of unit length, side by side."""
    return np.concatenate([unit(vectors[name][:, 0]) for name in names], axis=1)
