"""How well pictures and texts fit: by a model that matches, or by the index's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from imgray.data.fields import DIGITS
from imgray.retrieval.modalities import IMAGE, TEXT
from imgray.serving.calls import in_turns
from imgray.serving.guard import Refusal
from imgray.serving.models import Models, Served
from imgray.serving.search import Described, Searcher
from imgray.serving.settings import Batching

Floats = NDArray[np.float32]


class MatchAnswer(BaseModel):
    """The score of each picture with each text: the dot product of their joint embeddings."""

    model: str | None = Field(description="which has compared them; null is that of the index")
    fingerprint: str
    scores: list[list[float]] = Field(description="a row for each picture, then for each id")


@dataclass(frozen=True)
class ByModel:
    """Embeds by a model that is served."""

    models: Models
    model: Served

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return self.model.fingerprint

    async def picture(self, data: bytes) -> Floats:
        """The joint embedding (D,) of a picture. Raises `Refusal`."""
        return (await self.models.embed(self.model, {IMAGE: data}))[IMAGE]

    async def text(self, text: str) -> Floats:
        """The joint embedding (D,) of a text. Raises `Refusal`."""
        return (await self.models.embed(self.model, {TEXT: text}))[TEXT]


@dataclass(frozen=True)
class ByIndex:
    """Embeds by the joint part of an index version."""

    searcher: Searcher
    index: Described
    fingerprint: str
    name: None = None

    async def picture(self, data: bytes) -> Floats:
        """As `ByModel`, by its features, which the index must make."""
        vectors = await self.searcher.encode(self.index, data)
        return await self.searcher.embed_picture(self.index, vectors)

    async def text(self, text: str) -> Floats:
        """As `ByModel`."""
        return await self.searcher.embed_text(self.index, text)


def chosen(
    models: Models, searcher: Searcher | None, index: Described | None, name: str | None
) -> ByModel | ByIndex:
    """The model that a request names, or else the first, or the index's own. Raises `Refusal`."""
    if name is None and not models.match and searcher and index and index.joint:
        return ByIndex(searcher, index, index.joint.fingerprint)
    return ByModel(models, models.matching(name))


async def compare(
    by: ByModel | ByIndex,
    pictures: Sequence[bytes],
    ids: Sequence[str],
    texts: Sequence[str],
    indexed: Callable[[str], Awaitable[bytes]],
    batching: Batching,
) -> MatchAnswer:
    """The scores of pictures, and of indexed ones by id, with texts.

    Raises:
        Refusal: it names the one at fault by its place.
    """

    async def embed(asked: tuple[str, Any]) -> Floats:
        field, given = asked
        try:
            if field.startswith("texts"):
                return await by.text(given)
            return await by.picture(given if isinstance(given, bytes) else await indexed(given))
        except Refusal as fault:
            place = fault.field and field
            raise Refusal(fault.status, fault.message, place, fault.headers) from None

    given = {"image": pictures, "ids": ids, "texts": texts}
    asked = [(f"{name}.{n}", one) for name, all_ in given.items() for n, one in enumerate(all_)]
    found = np.stack(await in_turns(embed, asked, batching)).astype(np.float64)
    images, words = found[: -len(texts)], found[-len(texts) :]
    scores = np.round(images @ words.T, DIGITS).tolist()
    return MatchAnswer(model=by.name, fingerprint=by.fingerprint, scores=scores)
