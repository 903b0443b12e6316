"""Search the shards of a published index in parallel Ray tasks."""

from __future__ import annotations

import ray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest
from imgray.engine.cluster import TASK_RETRIES
from imgray.engine.shards import open_parts
from imgray.features.columns import Vectors
from imgray.retrieval.deepindex import Hits, merge
from imgray.retrieval.modalities import IMAGE


def search_shards(
    folder: Folder, manifest: Manifest, vectors: Vectors, top: int, modality: str = IMAGE
) -> list[Hits]:
    """Search every shard in a Ray task of its own, and merge: what one process would answer.

    The vectors are what the part of a modality takes: features of pictures, or `JOINT` embeddings.
    """
    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(_search_shard)
    queries = ray.put(vectors)
    shards = range(manifest.counts["shards"])
    parts = ray.get([task.remote(folder, manifest, n, queries, top, modality) for n in shards])
    return [merge(answers, top) for answers in zip(*parts, strict=True)]


def _search_shard(
    folder: Folder, manifest: Manifest, number: int, vectors: Vectors, top: int, modality: str
) -> list[Hits]:
    return open_parts(folder, manifest, [number], [modality])[modality].search(vectors, top)
