"""Late fusion: score lists of one query, by several embeddings or features, joined into one.

Thesis chapter 6 names average and adaptive fusion, both without training. Its weights are not at
hand; our reading of the adaptive one is that of Zheng et al. (CVPR 2015): a list whose sorted
scores drop sharply tells a few candidates from the rest, so a list counts in inverse proportion to
the area under its sorted scores. They multiply powers of the scores; the weighted sum is offered
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Fused = NDArray[np.float64]
Combine = Literal["sum", "product"]

LEAST_AREA, LEAST_FACTOR = 1e-6, 1e-6
"""Floors, so that a single candidate above all others does not silence the other lists, and one
that a list lacks or puts last is still ranked by the others in a product."""


def minmax(scores: Scores) -> Fused:
    """Scale the scores of each query to 0..1.

    Args:
        scores: (..., N), -inf for a candidate that the list lacks.

    Returns:
        float64 (..., N): 0 for the lowest and for what is lacking, 1 for the highest; 0 throughout
        a list whose scores are all equal, as it says nothing.

    Raises:
        ValueError: a score is NaN or +inf.
    """
    found = np.asarray(scores, np.float64)
    if not found.size:
        return found
    if np.isnan(found).any() or np.isposinf(found).any():
        raise ValueError("scores to fuse must be numbers, or -inf where a candidate is lacking")
    have = np.isfinite(found)
    low = np.where(have, found, np.inf).min(axis=-1, keepdims=True)
    high = found.max(axis=-1, keepdims=True)
    usable = np.isfinite(high) & (high > low)
    span = np.where(usable, high - np.where(usable, low, 0), 1)
    scaled: Fused = np.where(have & usable, (found - np.where(usable, low, 0)) / span, 0.0)
    return scaled


def areas(scores: Scores) -> Fused:
    """The area (...) under the sorted min-max scores (..., N) of each query: their mean."""
    scaled = minmax(scores)
    return scaled.mean(axis=-1) if scaled.shape[-1] else np.zeros(scaled.shape[:-1])


def average(lists: Sequence[Scores], weights: Sequence[float] | None = None) -> Fused:
    """The weighted mean of the min-max scores of each query.

    Args:
        lists: M arrays of one shape (..., N), as `minmax` takes them.
        weights: of the lists, not negative, not all 0; by default equal.

    Returns:
        float64 (..., N) from 0 to 1, whatever the order of the lists to the last bit.
    """
    shares = _shares(lists, weights)
    return _summed([share * minmax(one) for share, one in zip(shares, lists, strict=True)])


def adaptive(
    lists: Sequence[Scores],
    weights: Sequence[float] | None = None,
    combine: Combine = "sum",
) -> Fused:
    """Fusion with weights that each query sets: in inverse proportion to a list's area.

    Args:
        lists: as `average` takes them.
        weights: of the lists; they multiply those that the query sets.
        combine: the weighted sum of min-max scores, or the product of their powers.

    Returns:
        float64 (..., N) from 0 to 1, whatever the order of the lists to the last bit.
    """
    shares = _shares(lists, weights)
    scaled = [minmax(one) for one in lists]
    own = [
        share / np.maximum(areas(one), LEAST_AREA) for share, one in zip(shares, lists, strict=True)
    ]
    total = _summed(own)
    exponents = [(one / total)[..., None] for one in own]
    pairs = zip(exponents, scaled, strict=True)
    if combine == "sum":
        return _summed([share * one for share, one in pairs])
    return np.exp(_summed([share * np.log(np.maximum(one, LEAST_FACTOR)) for share, one in pairs]))


def _shares(lists: Sequence[Scores], weights: Sequence[float] | None) -> list[float]:
    if not lists:
        raise ValueError("no scores to fuse")
    given = [1.0] * len(lists) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(lists):
        raise ValueError(f"{len(given)} weights for {len(lists)} lists of scores")
    if not all(np.isfinite(w) and w >= 0 for w in given) or not any(given):
        raise ValueError("weights must be finite, not negative, and not all zero")
    scaled = [weight / max(given) for weight in given]
    return [weight / sum(sorted(scaled)) for weight in scaled]


def _summed(parts: Sequence[Fused]) -> Fused:
    """A sum that does not depend on the order of its parts."""
    total: Fused = np.sort(np.stack(parts), axis=0).sum(axis=0)
    return total
