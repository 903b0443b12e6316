"""Recall@k, median rank and category mAP of a joint embedding, exact and in bounded memory.

Scores are dot products in float32, computed for some queries at a time. The rank of a query is that
of its best right item:

    rank = 1 + the number of wrong items that do not score below it,

so ties count against the query. Ranks then do not depend on the order of the items, and neither a
collapsed embedding nor one in half precision is flattered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

KS = (1, 5, 10)
SCORES = 2**24
"""Scores that are held at once: 64 MB in float32."""

Embeddings = NDArray[np.float32]
Ids = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]
Fuse = Callable[[Sequence[Any]], Any]
"""Joins the score lists (B, N) of several embeddings, as `imgray.retrieval.fusion` does."""


@dataclass(frozen=True)
class Ranking:
    """Queries (Q) and the items (N) that are ranked for each; they match where they share a key.

    parts: by embedding the queries (Q, D) and the items (N, D), float32; several are fused.
    queries, items: which keys (K) they have, bool (Q, K) and (N, K), sparse by rows.
    """

    parts: Sequence[tuple[Embeddings, Embeddings]]
    queries: sparse.csr_array
    items: sparse.csr_array
    fuse: Fuse = sum

    def ranks(self) -> Ids:
        """The rank (Q,) of the best right item of each query; 0 of one that has none."""
        found = np.zeros(self.queries.shape[0], np.int64)
        for rows, scores, right in self._blocks(SCORES):
            best = np.full(len(scores), -np.inf, scores.dtype)
            np.maximum.at(best, right.row, scores[right.row, right.col])
            wrong = ~(scores < best[:, None])
            wrong[right.row, right.col] = False
            has = np.bincount(right.row, minlength=len(scores)) > 0
            found[rows] = np.where(has, 1 + wrong.sum(axis=1), 0)
        return found

    def average_precisions(self) -> NDArray[np.float64]:
        """The average precision (Q,) of each query, right items last among equals.

        It is 0 of a query without a right item.
        """
        found = np.zeros(self.queries.shape[0])
        for rows, scores, right in self._blocks(SCORES // 16):
            hits = right.toarray() > 0
            order = np.lexsort((hits, -scores))
            hits = np.take_along_axis(hits, order, axis=1)
            precisions = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
            found[rows] = (precisions * hits).sum(axis=1) / np.maximum(1, hits.sum(axis=1))
        return found

    def _blocks(self, held: int) -> Iterator[tuple[slice, Scores, sparse.coo_array]]:
        """Queries, their scores (B, N), and which items are right (B, N)."""
        queries, items = self.queries.shape[0], self.items.shape[0]
        size = max(1, held // max(1, items * len(self.parts)))
        keys = self.items.T.tocsr()
        for start in range(0, queries, size):
            rows = slice(start, start + size)
            lists = [of[rows] @ among.T for of, among in self.parts]
            yield rows, self.fuse(lists), (self.queries[rows] @ keys).tocoo()


def matching_ranks(
    images: Sequence[Embeddings],
    texts: Sequence[Embeddings],
    image_ids: Ids,
    text_ids: Ids,
    fuse: Fuse = sum,
) -> dict[str, Ids]:
    """The ranks at which images find their texts (i2t) and texts their images (t2i).

    Every text is a query and an item, every image one of each, however many texts it has. A text
    that several images share is right for each of them, and each of them for it.

    Args:
        images: by embedding those of all pairs (P, D), float32; the same for pairs of one image.
        texts: likewise.
        image_ids: which image each pair has (P,).
        text_ids: which text each pair has (P,).
        fuse: joins the scores of several embeddings.
    """
    _, first, image_of = np.unique(image_ids, return_index=True, return_inverse=True)
    text_of = np.unique(text_ids, return_inverse=True)[1]
    of_images = incidence(image_of, text_of)
    of_texts = incidence(np.arange(len(text_of)), text_of)
    pairs = [(image[first], text) for image, text in zip(images, texts, strict=True)]
    back = [(text, image) for image, text in pairs]
    return {
        "i2t": Ranking(pairs, of_images, of_texts, fuse).ranks(),
        "t2i": Ranking(back, of_texts, of_images, fuse).ranks(),
    }


def matching_metrics(ranks: Mapping[str, Ids]) -> dict[str, float]:
    """Recalls, from 0 to 1, and median ranks of `matching_ranks`, and `rsum`.

    That is the sum of the six recalls in percent, by which such systems are compared.
    """
    found = {k: v for name, some in ranks.items() for k, v in recalls(name, some).items()}
    return found | {"rsum": 100 * sum(v for name, v in found.items() if "recall" in name)}


def recalls(name: str, ranks: Ids) -> dict[str, float]:
    """NAME_recall@k, shares of ranks from 1 to k, and NAME_median_rank, over ranks (Q,) above 0."""
    known = ranks[ranks > 0]
    found = {f"{name}_recall@{k}": float((known <= k).mean()) for k in KS}
    return found | {f"{name}_median_rank": float(np.median(known))}


def category_map(
    parts: Sequence[tuple[Embeddings, Embeddings]],
    queries: sparse.csr_array,
    items: sparse.csr_array,
    fuse: Fuse = sum,
) -> float:
    """Mean average precision where items of a query's category are right, as in `Ranking`.

    Queries without a right item are left out; NaN where all are.
    """
    ranking = Ranking(parts, queries, items, fuse)
    has = (queries @ items.sum(axis=0)) > 0
    return float(ranking.average_precisions()[has].mean())


def incidence(owners: Ids, keys: Ids, count: int | None = None) -> sparse.csr_array:
    """Who has which key: bool (largest owner + 1, `count` or largest key + 1).

    Args:
        owners: of each pair (P,).
        keys: of each pair (P,).
        count: of all keys.
    """
    shape = None if count is None else (int(owners.max()) + 1, count)
    return sparse.coo_array((np.ones(len(keys), bool), (owners, keys)), shape).tocsr()
