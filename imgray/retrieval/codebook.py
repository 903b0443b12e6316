"""What the shards of a DeepIndex share, learnt on a sample: projections, codebooks, code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from imgray.config import Code
from imgray.errors import UserError
from imgray.retrieval.backend import faiss

Floats = NDArray[np.float32]
MAX_LISTS = 2**24
KMEANS_ITERATIONS = 20
BLOCK = 1024
LEAST_SHARE = 1e-3
"""Of a feature, in the choice of lists to visit."""

_CODES = {"SQ8": "QT_8bit", "SQ4": "QT_4bit", "SQfp16": "QT_fp16"}


class CodebookSettings(BaseModel):
    """How a DeepIndex describes and compares images.

    Attributes:
        features: names of the features fused in the index, in order.
        codewords: words of each feature's codebook.
        levels: regions of an image in each level of its pyramid; the first is the whole image.
        probes: lists that a region visits, by its level. Coarse regions are few and decide what
            is found at all, so they visit many.
        dim: dimensions of a region's feature after PCA.
        code: FAISS scalar quantizer of a region's reduced features.
        bandwidth: h of the kernel exp((cos - 1) / h) on two regions' codes.
        signature: features of the global image signature; none switches it off.
        signature_dim: dimensions, and bytes, of each feature in the signature.
        signature_power: exponent of the signatures' cosine.
        seed: of k-means.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: tuple[str, ...]
    codewords: tuple[int, ...]
    levels: tuple[int, ...]
    probes: tuple[int, ...]
    dim: int
    code: Code
    bandwidth: float
    signature: tuple[str, ...]
    signature_dim: int
    signature_power: float
    seed: int

    @property
    def regions(self) -> int:
        """Regions of an image."""
        return sum(self.levels)

    @property
    def lists(self) -> int:
        """Number of inverted lists: one per tuple of words."""
        return math.prod(self.codewords)


@dataclass(frozen=True)
class Projection:
    """PCA to unit length: float32 mean (C,), matrix (C, d)."""

    mean: Floats
    matrix: Floats

    def __call__(self, vectors: Floats) -> Floats:
        """Reduce vectors (..., C) to unit vectors (..., d)."""
        return unit((vectors - self.mean) @ self.matrix)

    @classmethod
    def fit(cls, sample: Floats, dim: int) -> Projection:
        """Learn from a sample (n, C). `dim` is cut to the rank that the sample can have."""
        mean = sample.mean(axis=0, dtype=np.float64)
        scatter = np.zeros((len(mean), len(mean)))
        for start in range(0, len(sample), BLOCK):  # in double precision, but never all at once
            centred = sample[start : start + BLOCK] - mean
            scatter += centred.T @ centred
        variances, axes = np.linalg.eigh(scatter / len(sample))
        order = np.argsort(-variances)[: max(1, min(dim, len(sample) - 1, sample.shape[1]))]
        return cls(mean.astype(np.float32), axes[:, order].astype(np.float32))


@dataclass(frozen=True)
class Encoded:
    """Images as the index sees them.

    reduced: by feature float32 (B, R, d), unit length; signatures: int8 (B, S).
    """

    reduced: list[Floats]
    signatures: NDArray[np.int8]


@dataclass(frozen=True)
class Codebooks:
    """Projections, words and the empty FAISS index that every shard starts from.

    A feature without a projection stays as it is.
    """

    settings: CodebookSettings
    projections: dict[str, Projection]
    words: dict[str, Floats]
    signature: dict[str, Projection]
    empty: NDArray[np.uint8]

    def encode(self, vectors: Mapping[str, Floats]) -> Encoded:
        """Describe images by their features (B, R, C), by name."""
        names = self.settings.features
        reduced = [self._reduced(name, vectors[name]) for name in names]
        return Encoded(reduced, self._signatures(vectors))

    def _reduced(self, name: str, vectors: Floats) -> Floats:
        projection = self.projections.get(name)
        return projection(vectors) if projection else vectors

    def _signatures(self, vectors: Mapping[str, Floats]) -> NDArray[np.int8]:
        """The whole image's features, reduced and scaled to the range of a signed byte."""
        if not self.signature:
            return np.zeros((len(next(iter(vectors.values()))), 0), np.int8)
        parts = [p(vectors[name][:, 0]) for name, p in self.signature.items()]
        joined = np.concatenate(parts, axis=1)
        largest = np.abs(joined).max(axis=1, keepdims=True).clip(1e-12)
        return np.rint(joined * (127.0 / largest)).astype(np.int8)

    def codes_of(self, encoded: Encoded, weights: Sequence[float] | None = None) -> Floats:
        """Reduced features side by side: float32 (B, R, F * d).

        With `weights`, which sum to 1, those of a query: its inner product with a stored code is
        the weighted mean of the features' cosines.
        """
        parts = encoded.reduced
        if weights is not None:
            parts = [np.float32(w) * part for w, part in zip(weights, parts, strict=True)]
        return np.ascontiguousarray(np.concatenate(parts, axis=-1), dtype=np.float32)

    def lists_of(self, encoded: Encoded) -> NDArray[np.int64]:
        """The inverted list (B, R) of every region: its nearest word in each codebook."""
        nearest = [words[..., 0] for _, words in self._nearest(encoded, slice(None), 1)]
        return self._numbers(nearest)

    def probes_of(
        self, encoded: Encoded, weights: Sequence[float]
    ) -> list[tuple[slice, NDArray[np.int64]]]:
        """Multiple assignment: for every level its regions, and the lists (B, R', P) they visit.

        They are the tuples of words with the largest weighted sum of cosines, largest first, found
        as in the multi-sequence algorithm (Babenko and Lempitsky, 2012). A feature of weight 0
        still orders the tuples that tie in the others, so that a region's own list comes first.
        """
        shares = [max(w, LEAST_SHARE) for w in weights]
        visits, first = [], 0
        for regions, probes in zip(self.settings.levels, self.settings.probes, strict=True):
            part = slice(first, first + regions)
            visits.append((part, self._lists(self._nearest(encoded, part, probes), shares, probes)))
            first += regions
        return visits

    def _nearest(
        self, encoded: Encoded, regions: slice, count: int
    ) -> list[tuple[Floats, NDArray[np.int64]]]:
        """By feature the cosines with the nearest words, falling, and these words: (B, R', n)."""
        pairs = zip(encoded.reduced, self.settings.features, strict=True)
        return [_nearest(r[:, regions], self.words[name], count) for r, name in pairs]

    def _lists(
        self,
        nearest: list[tuple[Floats, NDArray[np.int64]]],
        shares: Sequence[float],
        probes: int,
    ) -> NDArray[np.int64]:
        if len(nearest) == 1:
            return nearest[0][1]
        ranks = _frontier(tuple(words.shape[-1] for _, words in nearest), probes)
        picked = list(zip(shares, nearest, ranks.T, strict=True))
        total = sum(np.float32(share) * cosines[..., rank] for share, (cosines, _), rank in picked)
        numbers = self._numbers([words[..., rank] for _, (_, words), rank in picked])
        best = _largest(np.asarray(total), min(probes, len(ranks)))
        return np.take_along_axis(numbers, best, axis=-1)

    def _numbers(self, words: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """The number of the list of each tuple of words."""
        number = np.zeros(words[0].shape, np.int64)
        for column, count in zip(words, self.settings.codewords, strict=True):
            number = number * count + column
        return number

    def new_index(self) -> Any:
        """An empty `faiss.IndexIVF` with this code, trained."""
        return faiss.deserialize_index(self.empty)

    def to_bytes(self) -> bytes:
        """As safetensors, settings in the metadata."""
        tensors: dict[str, NDArray[Any]] = {"empty": self.empty}
        for name, projection in self.projections.items():
            tensors |= {f"{name}/mean": projection.mean, f"{name}/matrix": projection.matrix}
        tensors |= {f"{name}/words": words for name, words in self.words.items()}
        for name, projection in self.signature.items():
            tensors[f"signature/{name}/mean"] = projection.mean
            tensors[f"signature/{name}/matrix"] = projection.matrix
        tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        return save_safetensors(tensors, {"settings": self.settings.model_dump_json()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Codebooks:
        """The inverse of `to_bytes`."""
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        settings = CodebookSettings.model_validate_json(header["__metadata__"]["settings"])

        def projection(name: str) -> Projection:
            return Projection(tensors[f"{name}/mean"], tensors[f"{name}/matrix"])

        return cls(
            settings,
            {name: projection(name) for name in settings.features if f"{name}/mean" in tensors},
            {name: tensors[f"{name}/words"] for name in settings.features},
            {name: projection(f"signature/{name}") for name in settings.signature},
            tensors["empty"],
        )


def fit(sample: Mapping[str, Floats], settings: CodebookSettings) -> Codebooks:
    """Learn projections and codebooks from images (n, R, C) by feature name.

    Raises:
        UserError: the sample is too small for so many words, or there would be too many lists.
    """
    if settings.lists > MAX_LISTS:
        raise UserError(
            f"--codewords make {settings.lists:,} lists; at most {MAX_LISTS:,}: ask for fewer words"
        )
    projections, words, reduced = {}, {}, []
    for name, count in zip(settings.features, settings.codewords, strict=True):
        regions = sample[name].reshape(-1, sample[name].shape[-1])
        if len(regions) < count:
            raise UserError(
                f"--codewords {count}: the sample has only {len(regions)} regions; "
                "ask for fewer words, or index more images"
            )
        projections[name] = Projection.fit(regions, settings.dim)
        reduced.append(projections[name](regions))
        words[name] = kmeans(reduced[-1], count, settings.seed)
    signature = {
        name: Projection.fit(sample[name][:, 0], settings.signature_dim)
        for name in settings.signature
    }
    empty = _empty_index(np.concatenate(reduced, axis=1), settings)
    return Codebooks(settings, projections, words, signature, empty)


def fit_unprojected(sample: Floats, settings: CodebookSettings) -> Codebooks:
    """Learn the words of one feature (n, d), of unit length, whose dot products are to stay.

    They do, up to the code: queries may come from another distribution than what is indexed, as
    texts do in a joint embedding with images, and to centre or cut both would change their order.
    """
    [name], [count] = settings.features, settings.codewords
    words = {name: kmeans(sample, count, settings.seed)}
    return Codebooks(settings, {}, words, {}, _empty_index(sample, settings))


def kmeans(vectors: Floats, count: int, seed: int) -> Floats:
    """Spherical k-means of unit vectors (n, d): unit centroids (count, d)."""
    found = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=KMEANS_ITERATIONS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=max(256, len(vectors) // count + 1),
        gpu=hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0,
    )
    found.train(np.ascontiguousarray(vectors))
    return unit(found.centroids)


def unit(vectors: NDArray[np.floating[Any]]) -> Floats:
    """Scale vectors to length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def _empty_index(codes: Floats, settings: CodebookSettings) -> NDArray[np.uint8]:
    """A trained IVF index whose lists are addressed from outside, by tuples of words.

    FAISS's own multi-index quantizer would need equal powers of two for the codebooks.
    """
    dim = codes.shape[1]
    quantizer = faiss.IndexFlatIP(dim)
    if settings.code == "Flat":
        index = faiss.IndexIVFFlat(quantizer, dim, settings.lists, faiss.METRIC_INNER_PRODUCT)
    else:
        code = getattr(faiss.ScalarQuantizer, _CODES[settings.code])
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, settings.lists, code, faiss.METRIC_INNER_PRODUCT, False
        )
        index.sq.train(np.ascontiguousarray(codes))
    index.is_trained = True
    return np.asarray(faiss.serialize_index(index), np.uint8)


def _nearest(vectors: Floats, words: Floats, count: int) -> tuple[Floats, NDArray[np.int64]]:
    """Inner products (..., n) with the nearest of words, falling, and these words, n <= count."""
    count = min(count, len(words))
    table = np.ascontiguousarray(vectors.reshape(-1, vectors.shape[-1]))
    cosines, found = faiss.knn(table, words, count, metric=faiss.METRIC_INNER_PRODUCT)
    shape = (*vectors.shape[:-1], count)
    return cosines.reshape(shape), found.reshape(shape)


def _largest(values: Floats, count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest values along the last axis, largest first."""
    if count == 1:
        return values.argmax(axis=-1)[..., None]
    table = np.ascontiguousarray(values.reshape(-1, values.shape[-1]))
    _, found = faiss.kmax(table, count)
    return found.reshape(*values.shape[:-1], count)


@cache
def _frontier(depth: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Tuples of ranks among which the `count` nearest are sure to be.

    A tuple at ranks (i, j) is preceded by (i + 1)(j + 1) - 1 others, so larger products drop out.
    """
    ranks = np.zeros((1, 0), np.int64)
    for words in depth:
        grown = [np.insert(ranks, ranks.shape[1], rank, axis=1) for rank in range(words)]
        ranks = np.concatenate(grown)
        ranks = ranks[(ranks + 1).prod(axis=1) <= count]
    return ranks
