"""Retrieval metrics over rankings: mAP, precision@k, recall@k, median rank and the N-S score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

NS_GROUP = 4


def average_precision(hits: Sequence[bool], relevant: int) -> float:
    """Mean of the precision at each relevant result; relevant images not returned count as 0.

    Args:
        hits: for every result in rank order, whether it is relevant.
        relevant: how many relevant images the collection has; 0 gives 0.
    """
    found, total = 0, 0.0
    for rank, hit in enumerate(hits, start=1):
        if hit:
            found += 1
            total += found / rank
    return total / relevant if relevant else 0.0


def precision_at(hits: Sequence[bool], k: int) -> float:
    """Share of relevant images among the first k; missing results count as wrong."""
    return sum(hits[:k]) / k


def recall_at(hits: Sequence[bool], k: int) -> float:
    """1 if a relevant image is among the first k, else 0.

    Averaged over queries this is recall@k of metric learning and of image-text matching.
    """
    return float(any(hits[:k]))


def first_rank(hits: Sequence[bool]) -> int:
    """Rank of the first relevant result, from 1; one more than there are results if none is."""
    return next((rank for rank, hit in enumerate(hits, start=1) if hit), len(hits) + 1)


def evaluate_ranks(ranks: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall@k and the median rank, from each query's `first_rank`."""
    recall = {f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in ks}
    return recall | {"median_rank": float(median(ranks))}


def evaluate(
    rankings: Mapping[str, Sequence[str]],
    groups: Mapping[str, str],
    indexed: set[str],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Average the metrics over queries.

    A result is relevant when it is of the query's group. The query itself is left out of its
    ranking. For the N-S score of UKBench (Nister and Stewenius 2006: relevant images among the
    first four, at most 4) an indexed query counts as its own first result, as in that protocol.

    Args:
        rankings: by query id the ids of its results, best first.
        groups: by id its group.
        indexed: ids of the images that the index holds.
        ks: the cut-offs of precision and recall.
    """
    members: dict[str, set[str]] = {}
    for id in indexed & groups.keys():
        members.setdefault(groups[id], set()).add(id)
    sums: dict[str, float] = {}
    for query, ranking in rankings.items():
        peers = members.get(groups[query], set()) - {query}
        hits = [id in peers for id in ranking if id != query]
        own = query in indexed
        values = {"map": average_precision(hits, len(peers))}
        for k in ks:
            values[f"precision@{k}"] = precision_at(hits, k)
            values[f"recall@{k}"] = recall_at(hits, k)
        values["ns_score"] = own + sum(hits[: NS_GROUP - own])
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: total / max(1, len(rankings)) for name, total in sums.items()}
