"""The asynchronous router of a search: encode, fan out to the groups of shards, merge, fuse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from imgray.artifacts.manifest import Manifest
from imgray.data.collections import Collection, collection_of
from imgray.data.pixels import Rejected
from imgray.engine.joint import JOINT
from imgray.engine.report import Report, read_report
from imgray.errors import UserError
from imgray.features.columns import FeatureInfo, columns_of
from imgray.retrieval.deepindex import Hits, merge
from imgray.retrieval.modalities import IMAGE, TEXT, Blend, depth
from imgray.serving.calls import call, call_with_pictures, in_turns
from imgray.serving.captions import Captions, Found
from imgray.serving.guard import RETRY_AFTER, ErrorAnswer, Refusal, faulty
from imgray.serving.metrics import metrics, timed
from imgray.serving.options import BatchOptions, Ranking
from imgray.serving.requests import PICTURE
from imgray.serving.settings import ServiceSettings
from imgray.serving.shards import Question, shards_of
from imgray.serving.versions import Holder, Version

Floats = NDArray[np.float32]
log = logging.getLogger("ray.serve")


class Shards(BaseModel):
    """Which shards of the index an answer is from."""

    total: int
    answered: int
    missing: list[int] = Field(description="numbers of the shards that did not answer")


class SearchAnswer(BaseModel):
    """The images most like a picture, closest to a text, or both, best first."""

    version: str = Field(description="of the index")
    results: list[Found]
    shards: Shards


class JointInfo(BaseModel):
    """The joint embedding of pictures and texts, by which words are searched."""

    fingerprint: str = Field(description="of the model that embeds")
    dim: int


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
    def joint(self) -> JointInfo | None:
        """Of the joint part, which answers words; None where there is none."""
        about = self.manifest.about.get(JOINT)
        return JointInfo(fingerprint=about["fingerprint"], dim=about["dim"]) if about else None

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
        texts: Any,
        shard_groups: Sequence[Any],
        holder: Holder[Described],
        captions: Captions,
    ) -> None:
        self.settings, self.limits = settings, settings.limits
        self.encoder, self.texts, self.shard_groups = encoder, texts, shard_groups
        self.holder, self.captions = holder, captions

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

    async def embed_text(self, index: Described, text: str) -> Floats:
        """The joint embedding (D,) of a text.

        Raises:
            Refusal: also where the index has no joint part.
        """
        if index.joint is None:
            way = "an index of imgray index --joint MODEL does"
            raise Refusal(422, f"this index knows pictures alone, no words; {way}", TEXT)
        method, retries = self.texts.embed_text, self.limits.retries
        found: Floats | Rejected = await call(method, index.version, text, retries=retries)
        if isinstance(found, Rejected):
            metrics().rejected.inc(1, {"reason": "text"})
            raise Refusal(422, str(found).removeprefix(f"{TEXT}: "), TEXT)
        return found

    async def embed_picture(
        self, index: Described, vectors: Mapping[str, NDArray[np.float16]]
    ) -> Floats:
        """The joint embedding (D,) of a picture by its features. Raises `Refusal`."""
        method, retries = self.texts.embed_picture, self.limits.retries
        found: Floats = await call(method, index.version, vectors, retries=retries, blame=PICTURE)
        return found

    async def search(
        self, index: Described, options: Ranking, image: bytes | None, text: str | None
    ) -> SearchAnswer:
        """The answer to a picture, a text, or both, for options that `check` lets pass.

        Every part of the index answers by itself, from all shards, before the parts are joined: as
        `SearchEngine.search`. Raises `Refusal`.
        """
        weights = {str(name): weight for name, weight in options.modalities.items()}
        blend = Blend(weights, options.fusion)
        given = [name for name, one in ((IMAGE, image), (TEXT, text)) if one is not None]
        try:
            asked = blend.asked(given)
        except UserError as error:
            raise Refusal(422, str(error), "modalities") from None
        vectors = await self._vectors(index, asked, image, text)
        question = Question(vectors, depth(asked, options.top), options.weights, options.prefix)
        with timed("shards"):
            parts = (self._ask(group, index, question) for group in self.shard_groups)
            answers = await asyncio.gather(*parts)
        missing = self._missing(index, answers)
        found = [answer for answer in answers if isinstance(answer, dict)]
        merged = {name: merge([one[name] for one in found]) for name in asked}
        hits = blend.join(merged, options.top)
        answered = index.shards - len(missing)
        return SearchAnswer(
            version=index.version.digest,
            results=self.captions.added(hits.results()),
            shards=Shards(total=index.shards, answered=answered, missing=missing),
        )

    async def _vectors(
        self, index: Described, asked: Sequence[str], image: bytes | None, text: str | None
    ) -> dict[str, Mapping[str, NDArray[Any]]]:
        """What the part of each modality that is asked takes."""
        waiting: dict[str, Awaitable[Mapping[str, NDArray[Any]]]] = {}
        if IMAGE in asked and image is not None:
            waiting[IMAGE] = self.encode(index, image)
        if TEXT in asked and text is not None:
            waiting[TEXT] = self._joint(index, text)
        return dict(zip(waiting, await asyncio.gather(*waiting.values()), strict=True))

    async def _joint(self, index: Described, text: str) -> Mapping[str, NDArray[Any]]:
        return {JOINT: (await self.embed_text(index, text))[None]}

    async def search_all(
        self, index: Described, options: BatchOptions, pictures: Sequence[bytes]
    ) -> list[SearchAnswer | ErrorAnswer]:
        """An answer for each picture, then each id, then each text, or what was wrong with it.

        Raises:
            Refusal: the fault is not in one of them.
        """

        async def ask(item: tuple[str, Any]) -> SearchAnswer | ErrorAnswer:
            name, given = item
            try:
                text = given if name == TEXT else None
                image = await self.picture(index, given) if name == "id" else given
                return await self.search(index, options, None if text else image, text)
            except Refusal as fault:
                if fault.status >= 500:
                    raise
                return faulty(fault.message, fault.field)

        asked: list[tuple[str, Any]] = [(IMAGE, picture) for picture in pictures]
        asked += [("id", id) for id in options.ids] + [(TEXT, text) for text in options.texts]
        return await in_turns(ask, asked, self.settings.batching)

    def check_weights(self, index: Described, options: Ranking) -> None:
        """Refuse weights that this version cannot use."""
        for name in options.weights.keys() - index.columns.keys():
            known = ", ".join(index.columns)
            raise Refusal(422, f"no such feature; the index has {known}", f"weights.{name}")
        if not any(options.weights.get(name, 1.0) for name in index.columns):
            raise Refusal(422, "not all weights can be zero", "weights")

    async def _ask(
        self, group: Any, index: Described, question: Question
    ) -> dict[str, Hits] | str | None:
        """One group's answer by modality, or why there is none."""
        try:
            async with asyncio.timeout(self.limits.shard_seconds):
                answer: dict[str, Hits] | None = await call(
                    group.search, index.version, question, retries=self.limits.retries
                )
                return answer
        except TimeoutError:
            return f"no answer within {self.limits.shard_seconds:g} s"
        except Refusal as fault:
            return fault.message

    def _missing(
        self, index: Described, answers: Sequence[dict[str, Hits] | str | None]
    ) -> list[int]:
        """Shards that did not answer. Raises `Refusal` if they must, or if none did."""
        count = len(self.shard_groups)
        silent = {group: text for group, text in enumerate(answers) if isinstance(text, str)}
        missing = [shard for group in silent for shard in shards_of(group, count, index.shards)]
        for group, text in silent.items():
            log.warning("shards-%d: %s", group, text)
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
