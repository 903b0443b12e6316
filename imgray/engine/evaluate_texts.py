"""Score the answers of an index to texts, on Ray."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import ray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest
from imgray.data.fields import Text
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


def evaluate_texts(
    config: EvaluateConfig, folder: Folder, manifest: Manifest, members: Members
) -> dict[str, float]:
    """Recall@k, the median rank of the best right answer, and mAP, over all texts that have one.

    Each caption of a picture is a query. Raises `UserError` where none has a right answer.
    """
    texts, rights = _read(config, members)
    embedding = embedding_of(folder, manifest)
    ranks, precisions, elapsed = [], [], 0.0
    with cluster():
        embed = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(Embedding.texts)
        starts = range(0, len(texts), TEXTS)
        waiting = [embed.remote(embedding, texts[a : a + TEXTS]) for a in starts]
        for start, vectors in zip(starts, waiting, strict=True):
            asked = as_vectors(ray.get(vectors))
            started = time.monotonic()
            answers = search_shards(folder, manifest, asked, config.top or TEXTS, TEXT)
            elapsed += time.monotonic() - started
            for hits, right in zip(answers, rights[start : start + TEXTS], strict=True):
                found = [id in right for id in hits.ids]
                ranks.append(metrics.first_rank(found))
                precisions.append(metrics.average_precision(found, len(right)))
    count = len(texts)
    scores = metrics.evaluate_ranks(ranks) | {"map": sum(precisions) / count}
    return scores | {"queries": count, "ms_per_query": 1000 * elapsed / count}


def _read(config: EvaluateConfig, members: Members) -> tuple[list[str], list[set[str]]]:
    """The texts that have right answers among the indexed images, and the ids of these."""
    table = open_table(str(config.texts), {"text": Text()}, config.layout)
    groups = table.groups
    if groups is None:
        raise UserError(
            f"{table.place}: no column 'group', which says what a text's right answer is; say "
            "--columns group=COLUMN"
        )
    rows: Sequence[int] = range(len(table))
    if config.part is not None:
        splits = table.texts("split") or []
        rows = [row for row, split in enumerate(splits) if split.as_py() == config.part]
    known = [row for row in rows if groups[row] in members]
    if not known:
        raise UserError(
            f"{table.place}: no text{f' of {config.part!r}' if config.part else ''} has a right "
            f"answer here; column {table.column('group')!r} holds ids of indexed images, or with "
            "--truth their groups"
        )
    say(f"evaluate: {len(known):,} texts, and {len(rows) - len(known):,} without a right answer")
    return [row["text"] for row in table.rows(known)], [members[groups[row]] for row in known]
