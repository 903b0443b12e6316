"""Score the answers of an index to texts, on Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest
from imgray.data.fields import Text
from imgray.data.names import Names
from imgray.data.tables import open_table
from imgray.engine.cluster import TASK_RETRIES, cluster
from imgray.engine.fan_out import search_shards
from imgray.engine.joint import Embedding, as_vectors, embedding_of
from imgray.engine.progress import say
from imgray.engine.settings import EvaluateConfig
from imgray.errors import UserError
from imgray.retrieval import metrics
from imgray.retrieval.modalities import TEXT

TEXTS = 1000
"""Texts whose rankings are held at once, and how long these are."""
AHEAD = 4
"""Of so many thousand texts the embeddings are made ahead."""

Members = Mapping[str, set[str]]
"""By group the ids of its indexed images."""


def right_answers(ids: Collection[str], groups: Mapping[str, str] | None) -> Members:
    """The images that are the right answers of a text, by its group.

    Args:
        ids: of the indexed images.
        groups: by id the group of an image; without them each is one of its own, named as its id.
    """
    members: dict[str, set[str]] = {}
    for id in ids:
        if groups is None or id in groups:
            members.setdefault(id if groups is None else groups[id], set()).add(id)
    return members


class Asked(NamedTuple):
    """The texts that have right answers among the indexed images.

    rows: of the table (n,); texts: of all rows; groups: likewise, of which each is of some images.
    """

    rows: NDArray[np.int64]
    texts: pa.Array
    groups: Names


def evaluate_texts(
    config: EvaluateConfig, folder: Folder, manifest: Manifest, members: Members
) -> dict[str, float]:
    """Recall@k, the median rank of the best right answer, and mAP, over all texts that have one.

    Each caption of a picture is a query; one that the index cannot read has found nothing.

    Raises:
        UserError: no text has a right answer, or none can be read.
    """
    asked, depth = _read(config, members), config.top or TEXTS
    ranks: list[int] = []
    precisions, elapsed, answered = 0.0, 0.0, 0
    with cluster():
        for rows, vectors in _embedded(embedding_of(folder, manifest), asked):
            started = time.monotonic()
            answers = search_shards(folder, manifest, as_vectors(vectors), depth, TEXT)
            elapsed += time.monotonic() - started
            answered += len(rows)
            for row, hits in zip(rows.tolist(), answers, strict=True):
                right = members[asked.groups[row]]
                found = [id in right for id in hits.ids]
                ranks.append(metrics.first_rank(found))
                precisions += metrics.average_precision(found, len(right))
    count = len(asked.rows)
    if not answered:
        raise UserError(f"--texts {config.texts}: the index can read none of {count:,} texts")
    if answered < count:
        say(f"evaluate: {count - answered:,} texts cannot be read, and count as not found")
    scores = metrics.evaluate_ranks(ranks + [depth + 1] * (count - answered))
    return scores | {
        "map": precisions / count,
        "queries": count,
        "ms_per_query": 1000 * elapsed / answered,
    }


def _embedded(
    embedding: Embedding, asked: Asked
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Rows whose texts can be read, with their embeddings (n, D), some at a time and ahead."""
    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(Embedding.texts)
    waiting: deque[tuple[NDArray[np.int64], Any]] = deque()
    for start in range(0, len(asked.rows), TEXTS):
        rows = asked.rows[start : start + TEXTS]
        waiting.append((rows, task.remote(embedding, asked.texts.take(rows).to_pylist())))
        if len(waiting) > AHEAD:
            yield from _read_ones(*waiting.popleft())
    while waiting:
        yield from _read_ones(*waiting.popleft())


def _read_ones(
    rows: NDArray[np.int64], task: Any
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    vectors, places = ray.get(task)
    if len(places):
        yield rows[places], vectors


def _read(config: EvaluateConfig, members: Members) -> Asked:
    table = open_table(str(config.texts), {"text": Text()}, config.layout)
    groups, texts = table.groups, table.words("text")
    assert texts is not None
    if groups is None:
        raise UserError(
            f"{table.place}: no column 'group', which says what a text's right answer is; say "
            "--columns group=COLUMN"
        )
    rows = np.arange(len(table))
    if config.part is not None:
        splits = table.texts("split")
        rows = rows[:0] if splits is None else np.flatnonzero(pc.equal(splits, config.part))
    known = np.array([row for row in rows.tolist() if groups[row] in members], np.int64)
    if not len(known):
        raise UserError(
            f"{table.place}: no text{f' of {config.part!r}' if config.part else ''} has a right "
            f"answer here; column {table.column('group')!r} holds ids of indexed images, or with "
            "--truth their groups"
        )
    say(f"evaluate: {len(known):,} texts, and {len(rows) - len(known):,} without a right answer")
    return Asked(known, texts, groups)
