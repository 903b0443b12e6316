"""The space of images and texts that a dual encoder's towers share, or that a model has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_manifest, sha256
from imgray.errors import UserError
from imgray.features.columns import FeatureInfo, Vectors, columns_of
from imgray.features.extractor import (
    ExtractorConfig,
    TextExtractor,
    extractor_files,
    load_texts,
)
from imgray.features.texts import LAYER
from imgray.retrieval.codebook import unit

Floats = NDArray[np.float32]


class Space(Protocol):
    """Images by their stored features, and texts as they are, as vectors of unit length.

    The dot product of an image's and a text's says how well they match.
    """

    @property
    def columns(self) -> dict[str, FeatureInfo]:
        """The features of images that are needed, with their fingerprints."""

    @property
    def dim(self) -> int:
        """Dimensions of the space."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints, equal vectors."""

    def to(self, device: str) -> Self:
        """The same on another device."""

    def pictures(self, vectors: Vectors) -> Floats:
        """The vectors (B, D) of images by their features (B, R, C)."""

    def texts(self, texts: Sequence[str]) -> Floats:
        """The vectors (B, D) of texts. Raises `Rejected`."""


@dataclass(frozen=True)
class DualSpace:
    """That of a dual encoder: what its picture tower has made is a vector of it already.

    Of an image with regions the first counts, which is the whole.
    """

    column: str
    info: FeatureInfo
    towers: TextExtractor

    @property
    def columns(self) -> dict[str, FeatureInfo]:
        return {self.column: self.info}

    @property
    def dim(self) -> int:
        return self.info.dim

    @property
    def fingerprint(self) -> str:
        [name] = self.towers.texts
        return sha256(f"{self.info.fingerprint} {self.towers.fingerprint(name)}".encode())

    def to(self, device: str) -> DualSpace:
        self.towers.to(device)
        return self

    def pictures(self, vectors: Vectors) -> Floats:
        return unit(vectors[self.column][:, 0])

    def texts(self, texts: Sequence[str]) -> Floats:
        prepared = [self.towers.prepare(text, query=True) for text in texts]
        [found] = self.towers.run(prepared).values()
        return unit(found[:, 0].astype(np.float16).astype(np.float32))


def load_space(uri: str) -> DualSpace:
    """The space of the dual encoder that made the features of images.

    Raises:
        UserError: no features artifact, a damaged one, or one of no dual encoder, or of several.
    """
    folder = Folder(uri)
    manifest = read_manifest(folder, "features")
    name = _dual(uri, manifest)
    every = load_texts(folder, manifest)
    column = f"{name}.{LAYER}"
    towers = TextExtractor(every.config, {name: every.texts[name]})
    return DualSpace(column, columns_of(manifest)[column], towers)


def space_files(uri: str, manifest: Manifest) -> list[str]:
    """The files of a features artifact that `load_space` reads. Raises `UserError` as that."""
    _dual(uri, manifest)
    config = ExtractorConfig.model_validate(manifest.about["extractor"])
    return extractor_files(config.model_copy(update={"nets": {}}))


def _dual(uri: str, manifest: Manifest) -> str:
    config = ExtractorConfig.model_validate(manifest.about.get("extractor", {}))
    found = sorted(config.nets.keys() & config.texts.keys())
    if len(found) != 1:
        there = " and ".join(found) or ", ".join(config.nets)
        raise UserError(
            f"{uri}: features of images by one dual encoder are needed, these are by {there}; "
            "a model that was trained to match images and texts will do too"
        )
    if config.nets[found[0]].space != config.texts[found[0]].space:
        raise UserError(f"{uri}: the towers of {found[0]} share no space; extract the images again")
    return found[0]
