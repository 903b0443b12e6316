"""Contact sheets of search results, with the pictures read from their collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from imgray.errors import UserError
from imgray.pictures import Result, Row, contact_sheet
from imgray.retrieval.deepindex import Hits
from imgray.storage import Folder

SHOWN = 8


def draw(
    path: Path,
    collection: Folder,
    queries: Mapping[str, bytes],
    answers: Sequence[Hits],
    groups: Mapping[str, str] | None = None,
    title: str = "",
) -> None:
    """Draw queries (encoded image by id) and their best answers; right and wrong where truth is."""
    rows = [
        Row(image, id, _results(id, hits, collection, groups or {}))
        for (id, image), hits in zip(queries.items(), answers, strict=True)
    ]
    contact_sheet(rows, path, SHOWN, title)


def _results(query: str, hits: Hits, collection: Folder, groups: Mapping[str, str]) -> list[Result]:
    known = query in groups
    shown = list(zip(hits.ids, hits.scores, strict=True))[:SHOWN]
    return [
        Result(
            id=id,
            score=float(score),
            image=_read(collection, id),
            right=groups.get(id) == groups[query] if known else None,
        )
        for id, score in shown
    ]


def _read(collection: Folder, id: str) -> bytes | None:
    try:
        return collection.read(id)
    except UserError:
        return None
