"""What people say of the images of a collection: a table, whose texts stand under the results."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from imgray.data.fields import Text
from imgray.data.layout import Layout
from imgray.data.names import Names
from imgray.data.tables import open_table
from imgray.errors import UserError
from imgray.retrieval.deepindex import Result
from imgray.serving.settings import CaptionSettings

MOST, LONGEST = 5, 300
"""Captions of an image that are told, and letters of each."""


class Found(Result):
    """An image of the collection, how alike it is, and what is said of it."""

    captions: list[str] = Field(default=[], description="from the service's table of captions")


class Captions:
    """The texts of images by id, in Arrow's memory: about as many bytes as they have letters.

    Args:
        ids: of images, rising; one has as many entries as captions.
        texts: as many.
    """

    def __init__(self, ids: pa.Array, texts: pa.Array) -> None:
        self.ids, self.texts = Names(ids), Names(texts)

    @classmethod
    def of(cls, settings: CaptionSettings | None) -> Self:
        """Those of a table, or none. Raises `UserError`."""
        if settings is None:
            return cls(pa.array([], pa.string()), pa.array([], pa.string()))
        table = open_table(settings.table, {"text": Text()}, Layout(settings.columns))
        ids = table.texts("id")
        if ids is None:
            raise UserError(f"{table.place}: no column 'id'; say --columns id=COLUMN")
        texts = table.whole(table.column("text")).cast(pa.string())
        order = pc.sort_indices(ids).filter(pc.is_valid(texts.take(pc.sort_indices(ids))))
        return cls(ids.take(order), texts.take(order))

    def added(self, results: Sequence[Result]) -> list[Found]:
        """Results with their captions, in the order of the table."""
        return [Found(**one.model_dump(), captions=self.about(one.id)) for one in results]

    def about(self, id: str) -> list[str]:
        """The first captions of an image, each cut where it is long."""
        first = bisect_left(self.ids, id)
        ids = self.ids[first : first + MOST]
        texts = self.texts[first : first + ids.count(id)]
        return [text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for text in texts]
