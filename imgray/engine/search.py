"""Open a published index, encode queries, and search: from pictures and words to ranked ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel

from imgray.artifacts.folder import Folder, read_uri
from imgray.artifacts.manifest import Manifest, read_manifest
from imgray.data.collections import Collection, collection_of
from imgray.data.pixels import Rejected
from imgray.engine.joint import as_vectors, embed_texts, load_words
from imgray.engine.settings import SearchConfig
from imgray.engine.shards import check_answers_words, open_parts
from imgray.engine.sheets import Asked, draw_results
from imgray.errors import UserError
from imgray.features.backbones import visible_device
from imgray.features.columns import FeatureInfo, Vectors, columns_of
from imgray.features.extractor import Extractor, Prepared, load_extractor
from imgray.retrieval.deepindex import Hits, Result
from imgray.retrieval.modalities import IMAGE, TEXT, Blend, ask, depth

if TYPE_CHECKING:
    from imgray.features.spaces import Space

QUERIES_AT_ONCE = 16
EVEN = Blend()


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
    """An index with the networks that made it: answers images, and words if it has a joint part.

    Raises `UserError` when any file of the index, its weights included, is not as published. The
    model that reads words is loaded by the first of them.
    """

    def __init__(self, uri: str) -> None:
        self.folder = Folder(uri)
        self.manifest = read_manifest(self.folder, "index")
        self.parts = open_parts(self.folder, self.manifest)
        self.index = self.parts[IMAGE]
        self.extractor = load_extractor(self.folder, self.manifest).to(visible_device())
        check_fingerprints(self.manifest, self.extractor.describe())

    def search(
        self,
        image: bytes | None = None,
        text: str | None = None,
        *,
        top: int = 10,
        weights: Mapping[str, float] | None = None,
        prefix: str = "",
        blend: Blend = EVEN,
        name: str = "image",
    ) -> Hits:
        """Rank the collection for an image, for words, or for both together.

        Args:
            image: encoded.
            text: words.
            top: results at most.
            weights: of the features of the image, as `DeepIndex.search`.
            prefix: only images whose id starts so are results.
            blend: how both rankings become one.
            name: what an error calls the image.

        Raises:
            UserError: nothing is asked, no image, no text that is read, or no joint part.
        """
        asked = blend.asked([m for m, one in ((IMAGE, image), (TEXT, text)) if one is not None])
        vectors: dict[str, Vectors] = {}
        if image is not None and IMAGE in asked:
            vectors[IMAGE] = encode(self.extractor, {name: image})
        if text is not None and TEXT in asked:
            vectors[TEXT] = self._embedded([text])
        return blend.join(ask(self.parts, vectors, depth(asked, top), weights, prefix), top)

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

    def search_texts(self, texts: Sequence[str], top: int, prefix: str = "") -> list[Hits]:
        """Rank the collection for each of some texts, by the joint embedding.

        Raises `UserError` for one that cannot be read, or where there is no joint part.
        """
        vectors = self._embedded(texts)
        return self.parts[TEXT].search(vectors, top, prefix=prefix)

    def _embedded(self, texts: Sequence[str]) -> Vectors:
        check_answers_words(self.folder, self.manifest)
        return as_vectors(embed_texts(self._words, texts))

    @cached_property
    def _words(self) -> Space:
        return load_words(self.folder, self.manifest).to(visible_device())

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
    """Answer query images and words from a published index, in this process."""
    images = {uri: read_uri(uri) for uri in config.query}
    blend = Blend(config.weights, config.fusion)
    engine = SearchEngine(config.index)
    if len(images) == len(config.text) == 1:
        [(uri, image)], [text] = images.items(), config.text
        asked = [Asked(uri, image, text)]
        found = [engine.search(image, text, top=config.top, blend=blend, name=uri)]
    else:
        asked = [Asked(uri, image) for uri, image in images.items()]
        asked += [Asked("", text=text) for text in config.text]
        found = []
        if images and blend.asked([IMAGE]):
            found += engine.search_images(images, config.top)
        if config.text and blend.asked([TEXT]):
            found += engine.search_texts(config.text, config.top)
    if config.contact_sheet:
        collection = collection_of(engine.manifest.about)
        draw_results(Path(config.contact_sheet), collection, asked, found)
    return SearchResult(
        answers=[
            Answer(query=one.title, results=hits.results())
            for one, hits in zip(asked, found, strict=True)
        ],
        contact_sheet=config.contact_sheet,
    )
