"""The deployment that embeds words, and pictures by their features, in the space that they share.

It is there with every index, since one with a joint part may come at any time. Until then it holds
nothing, and loads neither torch nor a tower.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from ray import serve

from imgray.data.pixels import Rejected
from imgray.engine.shards import answers
from imgray.errors import UserError
from imgray.retrieval.modalities import TEXT
from imgray.serving.metrics import metrics, replica_name, timed
from imgray.serving.settings import Batching
from imgray.serving.versions import Holder, Version

if TYPE_CHECKING:
    from imgray.features.spaces import Space

Floats = NDArray[np.float32]
Half = NDArray[np.float16]


class JointEncoder:
    """The joint embeddings of the index versions that have one, each verified.

    Args:
        registry: handle of the registry of versions.
        batching: of forward passes.
    """

    async def __init__(self, registry: Any, batching: Batching) -> None:  # type: ignore[misc]  # Serve awaits it
        batching.apply(self._run)
        self.holder = Holder(registry, replica_name(), _open)
        await self.holder.start()

    async def embed_text(self, version: Version, text: str) -> Floats | Rejected:
        """The embedding (D,) of a text; of one that the tower does not take: the reason."""
        joint = await self._joint(version)
        with timed("text"):
            found: Floats | Rejected = await self._run((joint, text))
        return found

    async def embed_picture(self, version: Version, vectors: Mapping[str, Half]) -> Floats:
        """The embedding (D,) of a picture by its features, by name (R, C).

        Raises:
            UserError: it needs another one, which the index does not make.
        """
        joint = await self._joint(version)
        for name in joint.columns:
            if name not in vectors:
                raise UserError(
                    f"the index makes {', '.join(vectors)}, and its joint embedding of pictures "
                    f"needs {name}: serve the model of that embedding, and name it"
                )
        with timed("joint"):
            found = cast(Floats, await self._run((joint, vectors)))
        return found

    async def _joint(self, version: Version) -> Space:
        joint = await self.holder.get(version)
        if joint is None:
            raise UserError(f"{version.uri}: has no joint part")
        return joint

    def ready(self) -> bool:
        """Answered when this replica can answer."""
        return True

    @serve.batch
    async def _run(self, items: list[tuple[Space, Any]]) -> list[Floats | Rejected]:
        metrics().batch_size.observe(len(items))
        return await asyncio.to_thread(_forward, items)


def _open(version: Version) -> Space | None:
    folder, manifest = version.open()
    if not answers(manifest, TEXT):
        return None
    from imgray.engine.joint import load_words  # which loads torch
    from imgray.features.backbones import visible_device
    from imgray.features.memory import keep_freed

    keep_freed()
    return load_words(folder, manifest).to(visible_device())


def _forward(items: Sequence[tuple[Space, Any]]) -> list[Floats | Rejected]:
    """A pass for the texts and one for the pictures of each version: there may be two in a swap."""
    found: dict[int, Floats | Rejected] = {}
    for joint in {id(one): one for one, _ in items}.values():
        for kind, embed in ((str, _texts), (dict, _pictures)):
            places = [n for n, (one, v) in enumerate(items) if one is joint and isinstance(v, kind)]
            if places:
                answers = embed(joint, [items[place][1] for place in places])
                found |= zip(places, answers, strict=True)
    return [found[place] for place in range(len(items))]


def _texts(joint: Space, texts: list[str]) -> list[Floats | Rejected]:
    from imgray.engine.joint import embed_each  # as above

    return embed_each(joint, texts)


def _pictures(joint: Space, batch: list[Mapping[str, Half]]) -> list[Floats | Rejected]:
    from imgray.engine.joint import embed_pictures  # as above

    stacked = {n: np.stack([one[n] for one in batch]).astype(np.float32) for n in joint.columns}
    return list(embed_pictures(joint, stacked))
