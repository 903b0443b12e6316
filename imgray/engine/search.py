"""Open a published index, encode query images, and search: from image bytes to ranked ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from imgray.artifacts.folder import Folder, read_uri
from imgray.artifacts.manifest import Manifest, read_manifest
from imgray.data.collections import Collection, collection_of
from imgray.data.pixels import Rejected
from imgray.engine import sheets
from imgray.engine.settings import SearchConfig
from imgray.engine.shards import open_shards
from imgray.errors import UserError
from imgray.features.backbones import visible_device
from imgray.features.columns import FeatureInfo, Vectors, columns_of
from imgray.features.extractor import Extractor, Prepared, load_extractor
from imgray.retrieval.deepindex import Hits, Result

QUERIES_AT_ONCE = 16


def encode(extractor: Extractor, images: Mapping[str, bytes]) -> Vectors:
    """Features (B, R, C) of encoded images by name, at the precision that artifacts store."""
    items = list(images.items())
    batches = []
    for start in range(0, len(items), QUERIES_AT_ONCE):
        prepared = [_prepare(extractor, *item) for item in items[start : start + QUERIES_AT_ONCE]]
        batches.append(extractor.run(prepared))
    return {
        name: np.concatenate([b[name] for b in batches]).astype(np.float16).astype(np.float32)
        for name in extractor.names
    }


def _prepare(extractor: Extractor, name: str, data: bytes) -> Prepared:
    try:
        return extractor.prepare(data)
    except Rejected as error:
        raise UserError(f"{name}: {error}") from None


class SearchEngine:
    """An index with the networks that made it: answers images.

    Raises `UserError` when any file of the index, its weights included, is not as published.
    """

    def __init__(self, uri: str) -> None:
        self.folder = Folder(uri)
        self.manifest = read_manifest(self.folder, "index")
        self.index = open_shards(self.folder, self.manifest)
        self.extractor = load_extractor(self.folder, self.manifest).to(visible_device())
        check_fingerprints(self.manifest, self.extractor.describe())

    def search_images(
        self,
        images: Mapping[str, bytes],
        top: int,
        weights: Mapping[str, float] | None = None,
        prefix: str = "",
    ) -> list[Hits]:
        """Rank the collection for encoded images by name, as `DeepIndex.search`.

        Raises `UserError` for one that is none.
        """
        vectors = encode(self.extractor, images)
        return self.index.search(vectors, top, weights, prefix)

    def picture(self, id: str) -> bytes:
        """The bytes of an indexed image. Raises `UserError` for an id that the index lacks."""
        if not self.index.holds(id):
            raise UserError(f"{self.folder.uri}: the index has no image {id!r}")
        return self._collection.picture(id)

    @cached_property
    def _collection(self) -> Collection:
        return collection_of(self.manifest.about)


def check_fingerprints(manifest: Manifest, columns: Mapping[str, FeatureInfo]) -> None:
    """Refuse features of other networks, weights, preprocessing or regions than the index has."""
    for name, info in columns_of(manifest).items():
        if name not in columns:
            raise UserError(f"the query lacks the feature {name}, which the index has")
        if columns[name] != info:
            raise UserError(
                f"indexed {name} has fingerprint {info.fingerprint[:12]}, the query's has "
                f"{columns[name].fingerprint[:12]}: extract it with the index's own networks"
            )


class Answer(BaseModel):
    """The results of one query, best first."""

    query: str
    results: list[Result]

    def __str__(self) -> str:
        lines = [f"{found.score:8.4f}  {found.id}" for found in self.results]
        return "\n".join([self.query, *lines])


class SearchResult(BaseModel):
    """The results of all queries."""

    answers: list[Answer]
    contact_sheet: str | None = None

    def __str__(self) -> str:
        sheet = [f"contact sheet: {self.contact_sheet}"] if self.contact_sheet else []
        return "\n".join([*map(str, self.answers), *sheet])


def search(config: SearchConfig) -> SearchResult:
    """Answer query images from a published index, in this process."""
    images = {uri: read_uri(uri) for uri in config.query}
    engine = SearchEngine(config.index)
    answers = engine.search_images(images, config.top)
    if config.contact_sheet:
        collection = collection_of(engine.manifest.about)
        sheets.draw_results(Path(config.contact_sheet), collection, images, answers)
    return SearchResult(
        answers=[
            Answer(query=uri, results=hits.results())
            for uri, hits in zip(images, answers, strict=True)
        ],
        contact_sheet=config.contact_sheet,
    )
