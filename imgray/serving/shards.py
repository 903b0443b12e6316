"""The deployments that search: each answers for some shards of the index."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgray.engine.shards import open_parts
from imgray.retrieval.backend import limit_numpy
from imgray.retrieval.deepindex import DeepIndex, Hits
from imgray.retrieval.modalities import IMAGE, ask
from imgray.serving.metrics import replica_name, timed
from imgray.serving.versions import Holder, Version


@dataclass(frozen=True)
class Question:
    """What is asked of every group of shards.

    vectors: by modality what its part takes, by name float (R, C); top: of every part.
    """

    vectors: Mapping[str, Mapping[str, NDArray[Any]]]
    top: int
    weights: Mapping[str, float]
    prefix: str


def shards_of(group: int, shard_groups: int, shards: int) -> range:
    """The shards that fall to one shard group: consecutive, as many as to the others."""
    return range(group * shards // shard_groups, (group + 1) * shards // shard_groups)


class ShardGroup:
    """Some consecutive shards of the index versions."""

    async def __init__(self, registry: Any, group: int, shard_groups: int) -> None:  # type: ignore[misc]  # Serve awaits it
        limit_numpy()  # searches are not on the main thread, which alone could do it for each
        self.group, self.shard_groups = group, shard_groups
        self.holder = Holder(registry, replica_name(), self._open)
        await self.holder.start()

    def _open(self, version: Version) -> dict[str, DeepIndex]:
        """Of these shards by modality the part that answers it; nothing where there are none."""
        folder, manifest = version.open()
        own = shards_of(self.group, self.shard_groups, manifest.counts["shards"])
        return open_parts(folder, manifest, own) if own else {}

    async def search(self, version: Version, question: Question) -> dict[str, Hits] | None:
        """What these shards know, as `ask`; None when the version has none for this group."""
        parts = await self.holder.get(version)
        with timed("search"):
            return await asyncio.to_thread(_search, parts, question) if parts else None

    def ready(self) -> bool:
        """Answered when this replica can answer."""
        return True

    async def ids(self, version: Version, offset: int, limit: int) -> list[tuple[int, str]]:
        """Positions and ids of these shards' images from a position in the collection on."""
        parts = await self.holder.get(version)
        found = []
        for shard in parts[IMAGE].shards if parts else ():
            first = max(0, offset - shard.offset)
            last = max(first, offset + limit - shard.offset)
            ids = shard.ids.slice(first, last - first).to_pylist()
            found += [(shard.offset + first + row, id) for row, id in enumerate(ids)]
        return found

    async def holds(self, version: Version, id: str) -> bool:
        """Whether an image is in these shards."""
        parts = await self.holder.get(version)
        return bool(parts) and await asyncio.to_thread(parts[IMAGE].holds, id)


def _search(parts: Mapping[str, DeepIndex], question: Question) -> dict[str, Hits]:
    vectors = {
        modality: {name: value[None].astype(np.float32) for name, value in own.items()}
        for modality, own in question.vectors.items()
    }
    return ask(parts, vectors, question.top, question.weights, question.prefix)
