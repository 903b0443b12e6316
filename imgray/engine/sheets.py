"""Contact sheets of search results and of predictions, the images read from their collection."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_file, sha256
from imgray.data.collections import Collection
from imgray.drawing.predictions import Panel, panel_sheet
from imgray.drawing.results import Result, Row, contact_sheet
from imgray.errors import UserError
from imgray.retrieval.deepindex import Hits
from imgray.training.sheet import coloured, legend
from imgray.training.task import Task

SHOWN = 8
PANELS = 12


@dataclass(frozen=True)
class Asked:
    """A query: an image, encoded, and what it is called; words; or both."""

    name: str
    image: bytes | None = None
    text: str = ""

    @property
    def title(self) -> str:
        """What an answer calls it."""
        return " + ".join(part for part in (self.name, self.text) if part)


def draw_results(
    path: Path,
    collection: Collection,
    queries: Sequence[Asked],
    answers: Sequence[Hits],
    groups: Mapping[str, str] | None = None,
    title: str = "",
) -> None:
    """Draw queries and their best answers; right and wrong where the truth of their names is."""
    rows = [
        Row(one.image, one.name, _results(one.name, hits, collection, groups or {}), one.text)
        for one, hits in zip(queries, answers, strict=True)
    ]
    contact_sheet(rows, path, max(len(row.results) for row in rows) or 1, title)


def _results(
    query: str, hits: Hits, collection: Collection, groups: Mapping[str, str]
) -> list[Result]:
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


def draw_predictions(
    path: Path, collection: Collection, predictions: Folder, manifest: Manifest, task: Task
) -> None:
    """Draw some images of a collection, evenly spaced, and what a published artifact says of them.

    Raises:
        UserError: there are none, or a file differs from the artifact's manifest.
    """
    rows = _some_rows(predictions, manifest)
    pictures = [_painted(predictions, row) for row in rows]
    panels = [
        Panel(row["id"], _read(collection, row["id"]), task.words(row), coloured(picture, task))
        for row, picture in zip(rows, pictures, strict=True)
    ]
    panel_sheet(panels, legend(pictures, task), path)


def _some_rows(predictions: Folder, manifest: Manifest) -> list[dict[str, Any]]:
    parts = manifest.named("part-")
    starts = np.cumsum([0, *(part.rows for part in parts)])
    wanted = np.unique(np.linspace(0, starts[-1] - 1, PANELS).round().astype(int))
    found = []
    for part, start, end in zip(parts, starts, starts[1:], strict=False):
        places = wanted[(wanted >= start) & (wanted < end)] - start
        if len(places):
            table = pq.read_table(io.BytesIO(read_file(predictions, part)))
            found += table.take(places).to_pylist()
    return found


def _painted(predictions: Folder, row: Mapping[str, Any]) -> Image.Image | None:
    if row["picture"] is None:
        return None
    data = predictions.read(row["picture"])
    if sha256(data) != row["sha256"]:
        raise UserError(
            f"{predictions.uri}/{row['picture']}: its content differs from the table's digest; "
            "make the artifact again with --overwrite"
        )
    return Image.open(io.BytesIO(data), formats=["PNG"])


def _read(collection: Collection, id: str) -> bytes | None:
    try:
        return collection.picture(id)
    except UserError:
        return None
