"""The deployments that search: each answers for some shards of the index."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgray.engine.shards import open_shards
from imgray.retrieval.deepindex import DeepIndex, Hits
from imgray.serving.metrics import replica_name, timed
from imgray.serving.versions import Holder, Version


@dataclass(frozen=True)
class Question:
    """What is asked of every group of shards: features by name, float16 (R, C), and options."""

    vectors: Mapping[str, NDArray[np.float16]]
    top: int
    weights: Mapping[str, float]
    prefix: str


def shards_of(group: int, shard_groups: int, shards: int) -> range:
    """The shards that fall to one shard group: consecutive, as many as to the others."""
    return range(group * shards // shard_groups, (group + 1) * shards // shard_groups)


class ShardGroup:
    """Some consecutive shards of the index versions."""

    async def __init__(self, registry: Any, group: int, shard_groups: int) -> None:  # type: ignore[misc]  # Serve awaits it
        self.group, self.shard_groups = group, shard_groups
        self.holder = Holder(registry, replica_name(), self._open)
        await self.holder.start()

    def _open(self, version: Version) -> DeepIndex | None:
        folder, manifest = version.open()
        own = shards_of(self.group, self.shard_groups, manifest.counts["shards"])
        return open_shards(folder, manifest, own) if own else None

    async def search(self, version: Version, question: Question) -> Hits | None:
        """The best of these shards; None when the version has no shard for this group."""
        index = await self.holder.get(version)
        with timed("search"):
            return await asyncio.to_thread(_search, index, question) if index else None

    def ready(self) -> bool:
        """Answered when this replica can answer."""
        return True

    async def ids(self, version: Version, offset: int, limit: int) -> list[tuple[int, str]]:
        """Positions and ids of these shards' images from a position in the collection on."""
        index = await self.holder.get(version)
        found = []
        for shard in index.shards if index else ():
            first = max(0, offset - shard.offset)
            last = max(first, offset + limit - shard.offset)
            ids = shard.ids.slice(first, last - first).to_pylist()
            found += [(shard.offset + first + row, id) for row, id in enumerate(ids)]
        return found

    async def holds(self, version: Version, id: str) -> bool:
        """Whether an image is in these shards."""
        index = await self.holder.get(version)
        return index is not None and await asyncio.to_thread(index.holds, id)


def _search(index: DeepIndex, question: Question) -> Hits:
    vectors = {name: v[None].astype(np.float32) for name, v in question.vectors.items()}
    return index.search(vectors, question.top, question.weights, question.prefix)[0]
