"""DeepIndex and multi-DeepIndex (thesis chapter 4; Liu, Guo, Wu and Lew, ICMR 2015).

An image is a set of regions. Every region is assigned a word of each feature's codebook; the tuple
of words addresses one inverted list, and a posting there is the region's code. A query visits the
lists of its regions' nearest tuples (multiple assignment) and its regions vote for images:

    score(q, d) = w(q, d) * sum over x in q, y in d, y in a list that x visits,
                  of idf(list of y)^2 * k(x, y)
    k(x, y) = exp((c(x, y) - 1) / h)              c: weighted mean of the features' cosines
    w(q, d) = max(0, cos(sig q, sig d)) ^ power   on the global image signatures
    idf(list) = log(1 + images / images with a region in the list)

The thesis gives the sum of squared idf over matched words; the kernel (Tolias, Avrithis and Jegou,
2013), the form of the signature and the smoothing of the idf are our reading. With one feature this
is the plain DeepIndex. With one region an image has a single posting, and the ranking is that of an
ordinary IVF index: by code alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from imgray.errors import UserError
from imgray.retrieval.backend import faiss, threads_for
from imgray.retrieval.codebook import Codebooks, CodebookSettings, Floats

Ints = NDArray[np.int64]
Chosen = NDArray[np.bool_]
THREADS = 8
NOTHING = -1e9
"""A cosine that all exceed: range search then gives whole lists."""


class Result(BaseModel):
    """An image of the collection, and how alike it is."""

    id: str
    score: float


class Hits(NamedTuple):
    """Ranked answers to one query: positions in the collection's order, scores, ids.

    `touched` is the number of postings that were scored.
    """

    positions: Ints
    scores: NDArray[np.float64]
    ids: list[str]
    touched: int

    def results(self) -> list[Result]:
        """Ids and scores, as every answer to a user gives them."""
        pairs = zip(self.ids, self.scores.tolist(), strict=True)
        return [Result(id=id, score=round(score, 6)) for id, score in pairs]


def merge(parts: Sequence[Hits], top: int | None = None) -> Hits:
    """Join the answers of several shards of an index into the ranking of the whole."""
    positions = np.concatenate([part.positions for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    ids = [id for part in parts for id in part.ids]
    order = ranked(positions, scores, top)
    touched = sum(part.touched for part in parts)
    return Hits(positions[order], scores[order], [ids[i] for i in order], touched)


@dataclass
class ShardBuilder:
    """Collects images into one shard, in the collection's order."""

    codebooks: Codebooks
    ids: list[str] = field(default_factory=list)
    signatures: list[NDArray[np.int8]] = field(default_factory=list)
    pairs: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = self.codebooks.new_index()

    def add(self, ids: Sequence[str], vectors: Mapping[str, Floats]) -> None:
        """Add images by id, with their features (B, R, C)."""
        encoded = self.codebooks.encode(vectors)
        lists = self.codebooks.lists_of(encoded)
        images, regions = lists.shape
        postings = len(self.ids) * regions + np.arange(images * regions, dtype=np.int64)
        codes = self.codebooks.codes_of(encoded).reshape(images * regions, -1)
        flat = np.ascontiguousarray(lists.reshape(-1))
        pointers = [faiss.swig_ptr(array) for array in (codes, postings, flat)]
        self.index.add_core(len(codes), *pointers)
        rows = np.repeat(np.arange(images), regions)
        pairs = np.unique(np.stack([rows, flat], axis=1), axis=0)
        self.pairs.append(pairs[:, 1])
        self.ids += ids
        self.signatures.append(encoded.signatures)

    def document_frequency(self) -> tuple[Ints, Ints]:
        """The lists that this shard uses, and how many of its images have a region in each."""
        return np.unique(np.concatenate(self.pairs), return_counts=True)

    def write(self, index: Path) -> None:
        """Write the FAISS file."""
        faiss.write_index(self.index, str(index))

    def write_images(self, table: Path) -> None:
        """Write the table of ids and signatures."""
        signatures = np.concatenate(self.signatures)
        width = signatures.shape[1]
        flat = pa.array(signatures.ravel(), pa.int8())
        columns = {
            "id": pa.array(self.ids, pa.string()),
            "signature": pa.FixedSizeListArray.from_arrays(flat, width)
            if width
            else pa.nulls(len(self.ids), pa.list_(pa.int8(), 0)),
        }
        pq.write_table(pa.table(columns), table, compression="zstd")


class Images:
    """The images of a shard: ids, and signatures int8 (N, S). Indexes of them share it."""

    def __init__(self, table: Path) -> None:
        rows = pq.read_table(table)
        self.ids = rows["id"].combine_chunks()
        column = rows["signature"].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        self.signatures = flat.reshape(len(self.ids), column.type.list_size)
        self.lengths = np.linalg.norm(self.signatures.astype(np.float32), axis=1)


class Shard:
    """A part of the collection, searchable on its own; the FAISS lists are memory-mapped."""

    def __init__(self, index: Path, images: Images, offset: int) -> None:
        self.index = faiss.read_index(str(index), faiss.IO_FLAG_MMAP)
        self.images, self.ids = images, images.ids
        self.offset = offset

    def __len__(self) -> int:
        return len(self.ids)

    def chosen(self, prefix: str, among: Ints | None) -> Chosen | None:
        """Of every image whether it may be a result, as `DeepIndex.search`; None where all may."""
        if not prefix and among is None:
            return None
        found: Chosen = np.ones(len(self), np.bool_)
        if among is not None:
            inside = among[(among >= self.offset) & (among < self.offset + len(self))]
            found[:] = False
            found[inside - self.offset] = True
        if prefix:
            found &= pc.starts_with(self.ids, prefix).to_numpy(zero_copy_only=False)
        return found

    def vote(
        self, query: Query, settings: CodebookSettings, top: int, chosen: Chosen | None = None
    ) -> Votes:
        """Positions and unnormalised scores of the best images, ties included, unsorted."""
        none = np.zeros(query.lists.shape, np.float32)
        limits, cosines, postings = self.index.range_search_preassigned(
            query.codes, NOTHING, query.lists, none
        )
        weights = np.repeat(query.squared_idf, np.diff(limits).astype(np.int64))
        weights = weights * kernel(cosines, settings.bandwidth)
        votes: NDArray[np.float64] = np.bincount(
            postings // settings.regions, weights, len(self)
        ).astype(np.float64)
        found = np.flatnonzero(votes if chosen is None else votes * chosen)
        scores = votes[found]
        if self.images.signatures.shape[1]:
            scores = scores * self._signature_weight(query.signature, found, settings)
        best = _best(scores, top)
        return Votes(found[best] + self.offset, scores[best], len(postings))

    def nearest(
        self, codes: Floats, lists: Ints, top: int, chosen: Chosen | None = None
    ) -> tuple[Floats, Ints]:
        """Single vectors by FAISS's own ranking: cosines and positions (B, top), -1 for none.

        One more is asked for than needed: where it ties with the last, FAISS has chosen among
        equals by chance, and the tied are found by a search of their own.
        """
        cosines, found = self._search(codes, lists, top + 1, chosen)
        for row in np.flatnonzero((cosines[:, top - 1] == cosines[:, top]) & (found[:, top] >= 0)):
            first = self._first(codes[row], lists[row], top, chosen)
            cosines[row, :top], found[row, :top] = first
        return cosines[:, :top], np.where(found < 0, found, found + self.offset)[:, :top]

    def _search(
        self, codes: Floats, lists: Ints, top: int, chosen: Chosen | None
    ) -> tuple[Floats, Ints]:
        """FAISS's own search in these lists, whose Python method takes no selection."""
        none = np.zeros(lists.shape, np.float32)
        self.index.nprobe = lists.shape[1]
        if chosen is None:
            return self.index.search_preassigned(codes, top, lists, none)
        cosines = np.empty((len(codes), top), np.float32)
        found = np.empty((len(codes), top), np.int64)
        packed = np.packbits(chosen, bitorder="little")
        selected = faiss.IDSelectorBitmap(packed)
        params = faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selected)
        given = [faiss.swig_ptr(array) for array in (lists, none, cosines, found)]
        asked = len(codes), faiss.swig_ptr(codes), top
        self.index.search_preassigned_c(*asked, *given, False, params)
        return cosines, found

    def _first(
        self, code: Floats, lists: Ints, top: int, chosen: Chosen | None
    ) -> tuple[Floats, Ints]:
        """The best postings of whole lists, ties by position."""
        _, cosines, found = self.index.range_search_preassigned(
            code[None], NOTHING, lists[None], np.zeros((1, len(lists)), np.float32)
        )
        if chosen is not None:
            cosines, found = cosines[chosen[found]], found[chosen[found]]
        order = ranked(found, cosines, top)
        return cosines[order], found[order]

    def _signature_weight(
        self, signature: Floats, found: Ints, settings: CodebookSettings
    ) -> NDArray[np.float64]:
        products = self.images.signatures[found].astype(np.float32) @ signature
        cosines = products / np.maximum(
            self.images.lengths[found] * np.linalg.norm(signature), 1e-12
        )
        return np.maximum(cosines, 0.0).astype(np.float64) ** settings.signature_power


@dataclass(frozen=True)
class Query:
    """One encoded image, a row per visit of a region to a list.

    codes: float32 (V, D); lists: int64 (V, 1); squared_idf: float64 (V,) of these lists;
    signature: float32 (S,); own: the score of the image with itself, by which all are divided.
    """

    codes: Floats
    lists: Ints
    squared_idf: NDArray[np.float64]
    signature: Floats
    own: float


@dataclass(frozen=True)
class Votes:
    """What one shard answers: positions in the whole collection, and scores."""

    positions: Ints
    scores: NDArray[np.float64]
    touched: int


class DeepIndex:
    """Consecutive shards of an index, searched in parallel and ranked as one.

    Args:
        codebooks: what the shards were made with.
        frequency: images with a region in each list, int64 (lists,), counted over all shards.
        images: number of images in all shards of the index.
        shards: all of them, or those that this process answers for.
    """

    def __init__(
        self, codebooks: Codebooks, frequency: Ints, images: int, shards: Sequence[Shard]
    ) -> None:
        self.codebooks, self.shards = codebooks, list(shards)
        self.ids = pa.chunked_array([shard.ids for shard in self.shards])
        self.first = self.shards[0].offset
        self.frequency, self.images = frequency, images
        self.squared_idf = idf(frequency, images) ** 2
        self.threads = ThreadPoolExecutor(THREADS, "search", faiss.omp_set_num_threads, (1,))

    @property
    def settings(self) -> CodebookSettings:
        """What the codebooks were made with."""
        return self.codebooks.settings

    def search(
        self,
        vectors: Mapping[str, Floats],
        top: int,
        weights: Mapping[str, float] | None = None,
        prefix: str = "",
        among: Ints | None = None,
    ) -> list[Hits]:
        """Rank the collection for every image of a batch.

        Args:
            vectors: by feature name float32 (B, R, C), unit vectors, regions as in the index.
            top: how many results at most; an image without a vote is no result.
            weights: by feature name its weight in the comparison, 1 where not named.
            prefix: only images whose id starts so are results; their scores are what they were.
            among: likewise, only images at these positions.

        A few images take one thread of FAISS, and many all of them; votes of regions are counted
        by a thread for each shard. See `threads_for` for what numpy takes.
        """
        with threads_for(len(next(iter(vectors.values())))):
            return self._search(vectors, top, weights, prefix, among)

    def _search(
        self,
        vectors: Mapping[str, Floats],
        top: int,
        weights: Mapping[str, float] | None,
        prefix: str,
        among: Ints | None,
    ) -> list[Hits]:
        shares = self._shares(weights or {})
        chosen = [shard.chosen(prefix, among) for shard in self.shards]
        encoded = self.codebooks.encode(vectors)
        visits = self.codebooks.probes_of(encoded, shares)
        codes = self.codebooks.codes_of(encoded, shares)
        if self.settings.regions == 1:
            return self._nearest(codes[:, 0], visits[0][1][:, 0], top, chosen)
        home = np.concatenate([visited[..., 0] for _, visited in visits], axis=1)
        stored = self.codebooks.codes_of(encoded)
        queries = [
            self._query(
                codes[row],
                stored[row],
                home[row],
                [(r, v[row]) for r, v in visits],
                encoded.signatures[row],
            )
            for row in range(len(codes))
        ]
        waiting = [
            [
                self.threads.submit(shard.vote, query, self.settings, top, own)
                for shard, own in zip(self.shards, chosen, strict=True)
            ]
            for query in queries
        ]
        return [
            self._merge([future.result() for future in futures], query, top)
            for futures, query in zip(waiting, queries, strict=True)
        ]

    def _shares(self, weights: Mapping[str, float]) -> list[float]:
        given = [float(weights.get(name, 1.0)) for name in self.settings.features]
        unknown = weights.keys() - set(self.settings.features)
        if unknown:
            names = ", ".join(self.settings.features)
            raise UserError(f"weight of {min(unknown)!r}: the index has {names}")
        if not all(w >= 0 and np.isfinite(w) for w in given) or sum(given) <= 0:
            raise UserError("weights must be finite, not negative, and not all zero")
        return [w / sum(given) for w in given]

    def _query(
        self,
        codes: Floats,
        stored: Floats,
        home: Ints,
        visits: list[tuple[slice, Ints]],
        signature: NDArray[np.int8],
    ) -> Query:
        lists = np.concatenate([visited.reshape(-1) for _, visited in visits])
        rows = np.concatenate([np.repeat(np.arange(len(home))[r], v.shape[1]) for r, v in visits])
        squared = self.squared_idf[lists]
        visit, region = np.nonzero(lists[:, None] == home[None, :])
        cosines = (codes[rows[visit]] * stored[region]).sum(axis=1)
        own = float((squared[visit] * kernel(cosines, self.settings.bandwidth)).sum())
        return Query(codes[rows], lists[:, None], squared, signature.astype(np.float32), own)

    def _merge(self, votes: list[Votes], query: Query, top: int) -> Hits:
        positions = np.concatenate([vote.positions for vote in votes])
        scores = np.concatenate([vote.scores for vote in votes])
        order = ranked(positions, scores, top)
        positions, scores = positions[order], scores[order] / max(query.own, 1e-12)
        touched = sum(vote.touched for vote in votes)
        return Hits(positions, scores, self.ids_of(positions), touched)

    def _nearest(
        self, codes: Floats, lists: Ints, top: int, chosen: Sequence[Chosen | None]
    ) -> list[Hits]:
        codes, lists = np.ascontiguousarray(codes), np.ascontiguousarray(lists)
        pairs = zip(self.shards, chosen, strict=True)
        answers = [shard.nearest(codes, lists, top, own) for shard, own in pairs]
        cosines = np.concatenate([answer[0] for answer in answers], axis=1).astype(np.float64)
        positions = np.concatenate([answer[1] for answer in answers], axis=1)
        order = ranked(positions, cosines, top)
        cosines = np.take_along_axis(cosines, order, axis=1)
        positions = np.take_along_axis(positions, order, axis=1)
        counts = (positions >= 0).sum(axis=1)
        ids = self.ids_of(positions[positions >= 0])
        ends = np.cumsum(counts).tolist()
        touched = self._sizes(lists).sum(axis=1).tolist()
        rows = zip(positions, cosines, counts.tolist(), ends, touched, strict=True)
        return [Hits(p[:n], s[:n], ids[end - n : end], t) for p, s, n, end, t in rows]

    def _sizes(self, lists: Ints) -> Ints:
        """Postings that these shards hold in lists; in all shards it is the number of images."""
        if sum(map(len, self.shards)) == self.images:
            return self.frequency[lists]
        sizes = [shard.index.invlists.list_size for shard in self.shards]
        counts = [sum(size(number) for size in sizes) for number in lists.ravel().tolist()]
        return np.array(counts, np.int64).reshape(lists.shape)

    def holds(self, id: str) -> bool:
        """Whether an image is in these shards."""
        return bool(pc.index(self.ids, id).as_py() >= 0)

    def ids_of(self, positions: Ints) -> list[str]:
        """Ids of images by their position in the collection."""
        return list(self.ids.take(pa.array(positions - self.first)).to_pylist())


def kernel(cosines: Floats, bandwidth: float) -> NDArray[np.float64]:
    """Weight of a match: 1 for equal regions, falling with the angle between them."""
    return np.exp((cosines.astype(np.float64) - 1.0) / bandwidth)


def idf(frequency: Ints, images: int) -> NDArray[np.float64]:
    """Inverse document frequency of every list, from the number of images in it."""
    return np.log1p(images / np.maximum(frequency, 1))


def ranked(positions: Ints, scores: NDArray[np.floating[Any]], top: int | None) -> Ints:
    """Order of the `top` best, or of all, along the last axis: by score, then by position."""
    return np.lexsort((positions, -scores))[..., :top]


def _best(scores: NDArray[np.float64], top: int) -> Ints:
    """Indices of the `top` best scores and of all that tie with the last of them."""
    if len(scores) <= top:
        return np.arange(len(scores))
    last = np.partition(scores, len(scores) - top)[len(scores) - top]
    return np.flatnonzero(scores >= last)
