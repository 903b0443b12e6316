"""The deployment that turns pictures into features: decode once, all networks, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve

from imgray.data.pixels import Rejected
from imgray.engine.search import check_fingerprints
from imgray.features.backbones import visible_device
from imgray.features.extractor import Extractor, Prepared, load_extractor
from imgray.features.memory import keep_freed
from imgray.serving.metrics import metrics, replica_name, timed
from imgray.serving.requests import PICTURE
from imgray.serving.settings import Batching
from imgray.serving.versions import Holder, Version

Half = NDArray[np.float16]


class Encoder:
    """The networks of the index versions, each verified.

    Args:
        registry: handle of the registry of versions.
        batching: of forward passes.
        pixels: pictures of more are refused.
    """

    async def __init__(self, registry: Any, batching: Batching, pixels: int) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_freed()
        self.device = visible_device()
        self.pixels = pixels
        batching.apply(self._run)
        self.holder = Holder(registry, replica_name(), self._open)
        await self.holder.start()

    def _open(self, version: Version) -> Extractor:
        folder, manifest = version.open()
        extractor = load_extractor(folder, manifest).to(self.device)
        check_fingerprints(manifest, extractor.describe())
        if extractor.config.max_pixels > self.pixels:
            extractor.config = extractor.config.model_copy(update={"max_pixels": self.pixels})
        return extractor

    async def encode(self, version: Version, image: bytes) -> dict[str, Half] | Rejected:
        """Features of a picture as artifacts store them, by name float16 (R, C).

        A picture that cannot be decoded is answered with the reason.
        """
        extractor = await self.holder.get(version)
        try:
            with timed("decode"):
                prepared = await asyncio.to_thread(extractor.prepare, image)
        except Rejected as error:
            return Rejected(f"{PICTURE}: {error}")
        with timed("encode"):
            found: dict[str, Half] = await self._run((extractor, prepared))
        return found

    def ready(self) -> bool:
        """Answered when this replica can answer."""
        return True

    @serve.batch
    async def _run(self, items: list[tuple[Extractor, Prepared]]) -> list[dict[str, Half]]:
        metrics().batch_size.observe(len(items))
        return await asyncio.to_thread(_forward, items)


def _forward(items: Sequence[tuple[Extractor, Prepared]]) -> list[dict[str, Half]]:
    """One pass per version: while the index is swapped, a batch may hold two."""
    answers: list[dict[str, Half]] = [{} for _ in items]
    for extractor in {id(one): one for one, _ in items}.values():
        places = [place for place, (one, _) in enumerate(items) if one is extractor]
        with torch.inference_mode():
            vectors = extractor.run([items[place][1] for place in places])
        for row, place in enumerate(places):
            answers[place] = {n: v[row].astype(np.float16) for n, v in vectors.items()}
    return answers
