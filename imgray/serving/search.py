"""The asynchronous router of a search: encode, fan out to the groups of shards, merge."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from imgray.artifacts.manifest import Manifest
from imgray.data.collections import Collection, collection_of
from imgray.engine.report import Report, read_report
from imgray.errors import UserError
from imgray.features.columns import FeatureInfo, columns_of
from imgray.retrieval.deepindex import Hits, Result, merge
from imgray.serving.calls import call, call_with_pictures
from imgray.serving.guard import RETRY_AFTER, ErrorAnswer, Refusal, faulty
from imgray.serving.metrics import timed
from imgray.serving.requests import PICTURE, BatchOptions, Ranking
from imgray.serving.settings import ServiceSettings
from imgray.serving.shards import Question, shards_of
from imgray.serving.versions import Holder, Version

log = logging.getLogger("ray.serve")


class Shards(BaseModel):
    """Which shards of the index an answer is from."""

    total: int
    answered: int
    missing: list[int] = Field(description="numbers of the shards that did not answer")


class SearchAnswer(BaseModel):
    """The images most like a picture, best first."""

    version: str = Field(description="of the index")
    results: list[Result]
    shards: Shards


@dataclass(frozen=True)
class Described:
    """An index version without its data: what its manifest and report say."""

    version: Version
    manifest: Manifest
    report: Report
    columns: Mapping[str, FeatureInfo]

    @classmethod
    def of(cls, version: Version) -> Described:
        folder, manifest = version.open()
        return cls(version, manifest, read_report(folder, manifest), columns_of(manifest))

    @cached_property
    def collection(self) -> Collection:
        """Where the indexed images lie."""
        return collection_of(self.manifest.about)

    def picture(self, id: str) -> bytes:
        """The bytes of an indexed image; the collection is opened when the first is asked for."""
        return self.collection.picture(id)

    @property
    def shards(self) -> int:
        """Shards of the whole index."""
        return int(self.manifest.counts["shards"])


class Searcher:
    """Searches the current version; every step of a request names the version it began with."""

    def __init__(
        self,
        settings: ServiceSettings,
        encoder: Any,
        shard_groups: Sequence[Any],
        holder: Holder[Described],
    ) -> None:
        self.settings, self.limits = settings, settings.limits
        self.encoder, self.shard_groups, self.holder = encoder, shard_groups, holder

    async def current(self) -> Described:
        """The version that a request which begins now is answered from."""
        return await self.holder.get(self.holder.current)

    async def encode(self, index: Described, image: bytes) -> dict[str, NDArray[np.float16]]:
        """Features of a picture, as `Encoder.encode`. Raises `Refusal`."""
        method, retries = self.encoder.encode, self.limits.retries
        vectors: dict[str, NDArray[np.float16]] = await call_with_pictures(
            method, index.version, image, fields=(PICTURE,), retries=retries
        )
        return vectors

    async def search(self, index: Described, image: bytes, options: Ranking) -> SearchAnswer:
        """The answer to a picture, for options that `check_weights` lets pass. Raises `Refusal`."""
        vectors = await self.encode(index, image)
        question = Question(vectors, options.top, options.weights, options.prefix)
        with timed("shards"):
            asked = (self._ask(group, index, question) for group in self.shard_groups)
            answers = await asyncio.gather(*asked)
        missing = self._missing(index, answers)
        hits = merge([hits for hits in answers if isinstance(hits, Hits)], options.top)
        answered = index.shards - len(missing)
        return SearchAnswer(
            version=index.version.digest,
            results=hits.results(),
            shards=Shards(total=index.shards, answered=answered, missing=missing),
        )

    async def search_all(
        self, index: Described, pictures: Sequence[bytes], options: BatchOptions
    ) -> list[SearchAnswer | ErrorAnswer]:
        """An answer for each picture, then for each id, or what was wrong with it; some at a time.

        Raises:
            Refusal: the fault is not a picture's.
        """
        some = asyncio.Semaphore(max(1, self.settings.batching.size // 2))

        async def one(image: bytes | None, id: str = "") -> SearchAnswer | ErrorAnswer:
            async with some:
                try:
                    picture = await self.picture(index, id) if image is None else image
                    return await self.search(index, picture, options)
                except Refusal as fault:
                    if fault.status >= 500:
                        raise
                    return faulty(fault.message, fault.field)

        asked = [*(one(image) for image in pictures), *(one(None, id) for id in options.ids)]
        return await asyncio.gather(*asked)

    def check_weights(self, index: Described, options: Ranking) -> None:
        """Refuse weights that this version cannot use."""
        for name in options.weights.keys() - index.columns.keys():
            known = ", ".join(index.columns)
            raise Refusal(422, f"no such feature; the index has {known}", f"weights.{name}")
        if not any(options.weights.get(name, 1.0) for name in index.columns):
            raise Refusal(422, "not all weights can be zero", "weights")

    async def _ask(self, group: Any, index: Described, question: Question) -> Hits | str | None:
        """One group's answer, or why there is none."""
        try:
            async with asyncio.timeout(self.limits.shard_seconds):
                hits: Hits | None = await call(
                    group.search, index.version, question, retries=self.limits.retries
                )
                return hits
        except TimeoutError:
            return f"no answer within {self.limits.shard_seconds:g} s"
        except Refusal as fault:
            return fault.message

    def _missing(self, index: Described, answers: Sequence[Hits | str | None]) -> list[int]:
        """Shards that did not answer. Raises `Refusal` if they must, or if none did."""
        count = len(self.shard_groups)
        silent = {group: text for group, text in enumerate(answers) if isinstance(text, str)}
        missing = [shard for group in silent for shard in shards_of(group, count, index.shards)]
        if missing and (self.settings.missing_shards == "refuse" or len(missing) == index.shards):
            reason = next(iter(silent.values()))
            numbers = ", ".join(map(str, missing[:10]))
            raise Refusal(503, f"shards {numbers} do not answer: {reason}", None, RETRY_AFTER)
        return missing

    async def picture(self, index: Described, id: str, field: str = "id") -> bytes:
        """The bytes of an indexed image. Raises `Refusal` for an id that the index lacks.

        Args:
            index: a version.
            id: of an image.
            field: of the request, which names it.
        """
        asked = (self._holds(group, index, id) for group in self.shard_groups)
        held = await asyncio.gather(*asked)
        if not any(held):
            raise Refusal(404, "the index has no such image", field)
        try:
            return await asyncio.to_thread(index.picture, id)
        except UserError as error:
            log.error("%s", error)
            text = "the collection does not give this image; the service's log says why"
            raise Refusal(503, text, field) from None

    async def _holds(self, group: Any, index: Described, id: str) -> bool:
        return bool(await call(group.holds, index.version, id, retries=self.limits.retries))

    async def ids(self, index: Described, offset: int, limit: int) -> list[str]:
        """Ids of the collection in its order."""
        asked = (
            call(group.ids, index.version, offset, limit, retries=self.limits.retries)
            for group in self.shard_groups
        )
        found = [pair for part in await asyncio.gather(*asked) for pair in part]
        return [id for _, id in sorted(found)]
