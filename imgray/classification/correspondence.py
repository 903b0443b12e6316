"""One-to-one matching of boundary pixels within a radius: exact, sparse, and warm-started."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, hstack
from scipy.sparse.csgraph import breadth_first_order, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from imgray.errors import UserError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def match(prediction: Bools, truth: Bools, radius: float) -> Ints:
    """Match boundary pixels one to one: as many as can be, at the smallest total distance.

    This is exact. `correspondPixels` of the BSDS benchmark means the same and approximates it: a
    pixel left over costs 100 radii, distances are rounded to 0.01 pixels, and pixels are left over
    against six outliers each, drawn at random. Where several matchings are best, either takes one.

    Args:
        prediction: bool (H, W).
        truth: bool (H, W).
        radius: of the farthest pixels that match, in pixels.

    Returns:
        int64 (n, 2, 2): for every pair row and column of its pixel in the prediction, then in the
        truth; in reading order of the prediction.

    Raises:
        UserError: the shapes differ, or the radius is negative.
    """
    if prediction.shape != truth.shape or prediction.ndim != 2:
        raise UserError(
            f"prediction {prediction.shape} and truth {truth.shape}: expected one (H, W)"
        )
    edges, boundary = np.argwhere(prediction), np.argwhere(truth)
    near = near_pairs(edges, boundary, radius)
    mates, many, few = _maximum(near, np.full(len(edges), -1))
    mates[many] = -1
    mates[_cheapest(near, many, few)] = np.flatnonzero(few)
    mates[~many] = _cheapest(near.T.tocsr(), ~few, ~many)
    found = np.flatnonzero(mates >= 0)
    return np.stack([edges[found], boundary[mates[found]]], axis=1)


def near_pairs(edges: Ints, boundary: Ints, radius: float) -> csr_array:
    """Pairs within the radius: 1 + distance (n, m) of pixels (n, 2) and (m, 2), others not stored.

    Raises:
        UserError: the radius is negative.
    """
    if not radius >= 0:
        raise UserError(f"radius {radius}: expected 0 or more pixels")
    found = cKDTree(edges).sparse_distance_matrix(cKDTree(boundary), radius, output_type="ndarray")
    shape = (len(edges), len(boundary))
    return csr_array((1 + found["v"], (found["i"], found["j"])), shape=shape)


def _maximum(near: csr_array, mates: Ints) -> tuple[Ints, Bools, Bools]:
    """Match as many edge pixels as can be, and find those that compete for boundary pixels.

    Alternating paths start at all free edge pixels at once. Any that end at a free boundary pixel
    and begin at different edge pixels share no pixel, so each adds a pair. When no path does, the
    matching is maximum (Berge), and the paths have reached one part of its Dulmage-Mendelsohn
    decomposition, which is the same for every maximum matching: `many` edge pixels compete for
    `few` boundary pixels. Every maximum matching takes all of `few`, all edge pixels but `many`,
    and no pair from one part to the other.

    Args:
        near: pairs (n, m) that can match.
        mates: int64 (n,), a matching to start from: the boundary pixel of each edge pixel, or -1.

    Returns:
        The mates (n,); `many`, bool (n,); `few`, bool (m,).
    """
    n, m = near.shape
    mates = mates.copy()
    while True:
        order, before = _alternate(near, mates)
        reached = np.zeros(n + m + 1, np.bool_)
        reached[order] = True
        taken = np.zeros(m, np.bool_)
        taken[mates[mates >= 0]] = True
        ends = order[(order >= n) & (order < n + m)]
        ends = ends[~taken[ends - n]]
        if not len(ends):
            return mates, reached[:n], reached[n:-1]
        _augment(mates, ends, before)


def _alternate(near: csr_array, mates: Ints) -> tuple[Ints, Ints]:
    """Search in breadth from all free edge pixels: vertices in order, predecessors by vertex.

    Vertices: n edge pixels, which lead to all near boundary pixels; m boundary pixels, each leading
    to its mate; the source.
    """
    n, m = near.shape
    matched = np.flatnonzero(mates >= 0)
    free = np.flatnonzero(mates < 0)
    owners = np.full(m, -1)
    owners[mates[matched]] = matched
    targets = np.concatenate([near.indices + n, owners[owners >= 0], free])
    degrees = np.concatenate([[0], np.diff(near.indptr), owners >= 0, [len(free)]])
    arcs = (np.ones(len(targets)), targets, np.cumsum(degrees))
    return breadth_first_order(csr_array(arcs, shape=(n + m + 1, n + m + 1)), n + m)


def _augment(mates: Ints, ends: Ints, before: Ints) -> None:
    """Turn over one path, the shortest, from each free edge pixel to the `ends`, in place.

    Args:
        mates: int64 (n,), as in `_maximum`.
        ends: vertices of free boundary pixels, in the order of the search.
        before: the predecessor of each vertex.
    """
    source, edges = len(before) - 1, len(mates)
    starts = ends
    while (moving := before[starts] != source).any():
        starts = np.where(moving, before[starts], starts)
    place = ends[np.unique(starts, return_index=True)[1]]
    while len(place):
        edge = before[place]
        mates[edge] = place - edges
        place = before[edge]
        place = place[place != source]


def _cheapest(near: csr_array, many: Bools, few: Bools) -> Ints:
    """The row of `many` that each column of `few` takes at the smallest sum, every column one.

    SciPy first looks whether there is such a matching, in exponential time at worst (its issue
    26147). A stand-in for every column, too dear to be taken, makes the first look succeed.
    """
    if not few.any():
        return np.zeros(0, np.int64)
    rows, columns = np.flatnonzero(many), np.flatnonzero(few)
    part = near[rows][:, columns].T.tocsr()
    dear = np.full(len(columns), (len(columns) + 1) * part.data.max())
    found = min_weight_full_bipartite_matching(hstack([part, diags_array(dear)], format="csr"))
    return rows[found[1]]


def matched_edges(near: csr_array, present: Bools) -> Bools:
    """Which of n edge pixels match an annotator's boundary at each of K thresholds, bool (K, n).

    From the highest threshold down, each matching starts from the one before. That saves time and
    changes nothing: the competing pixels are the same from any start, and only they are chosen.

    Args:
        near: pairs (n, m) that can match.
        present: bool (K, n), the edge pixels of each threshold.
    """
    matched = np.zeros_like(present)
    mates = np.full(present.shape[1], -1)
    for k in reversed(range(len(present))):
        if k + 1 < len(present) and np.array_equal(present[k], present[k + 1]):
            matched[k] = matched[k + 1]
            continue
        rows = np.flatnonzero(present[k])
        part = near[rows]
        found, many, few = _maximum(part, mates[rows])
        matched[k, rows[~many]] = True
        matched[k, rows[_cheapest(part, many, few)]] = True
        mates[:] = -1
        mates[rows] = found
    return matched
