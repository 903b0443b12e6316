"""Boundary benchmark of BSDS: counts of matched pixels, ODS, OIS and AP.

Martin, Fowlkes and Malik (2004), Arbelaez et al. (2011), and the definitions of Dollar's edge
toolbox, by which the RDS chapter reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgray.classification.correspondence import matched_edges, near_pairs
from imgray.classification.ridges import check_map, thin
from imgray.errors import UserError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

THRESHOLDS = np.arange(1, 100) / 100
TOLERANCE = 0.0075
"""Largest distance of a matched pair, as a share of the image's diagonal."""
STEPS = 100
"""Points of the interpolation between two thresholds, both ends included."""


@dataclass(frozen=True)
class Counts:
    """Pixels of one image or, added up, of many.

    Columns: matched boundary pixels, boundary pixels (both summed over annotators), matched edge
    pixels (by any annotator), edge pixels.

    Attributes:
        table: int64 (99, 4), a row per threshold.
        best: int64 (4,), the row with each image's largest F, summed over images.
    """

    table: Ints
    best: Ints

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.table + other.table, self.best + other.best)


@dataclass(frozen=True)
class Scores:
    """Results over a collection.

    Attributes:
        ods: F-measure at the best threshold for all images.
        threshold: that threshold.
        recall: at that threshold.
        precision: at that threshold.
        ois: F-measure with every image at its own best threshold.
        ap: average precision.
    """

    ods: float
    threshold: float
    recall: float
    precision: float
    ois: float
    ap: float


def count(
    edge_map: NDArray[np.floating[Any]], boundaries: Bools, tolerance: float = TOLERANCE
) -> Counts:
    """Count an image's matched pixels at 99 thresholds, as `edgesEvalImg` does.

    At each threshold the pixels that reach it are thinned and matched to every annotator's. How
    many boundary pixels match, and with that recall, is the same for all maximum matchings. Which
    edge pixels match is not, and precision counts those that match for any annotator: distance
    decides, as `match` says, so that annotators who agree take the same. An arbitrary maximum
    matching would find a larger union, and too high a precision.

    Args:
        edge_map: (H, W) in 0..1, after `nms`.
        boundaries: bool (annotators, H, W).
        tolerance: the radius of a match as a share of the image's diagonal.

    Raises:
        UserError: the map is not float, not (H, W), under 2 pixels wide or high, or not in 0..1;
            there is no annotator or one of another shape; the tolerance is negative.
    """
    check_map(edge_map)
    if boundaries.shape != (max(1, len(boundaries)), *edge_map.shape):
        raise UserError(
            f"boundaries {boundaries.shape}: expected (annotators, H, W) with one annotator or "
            f"more, and the edge map's {edge_map.shape}"
        )
    masks = thin(edge_map >= THRESHOLDS.astype(edge_map.dtype)[:, None, None])
    edges = np.argwhere(masks.any(axis=0))
    present = masks[:, edges[:, 0], edges[:, 1]]
    radius = tolerance * float(np.hypot(*edge_map.shape))
    pairs, matched = np.zeros(len(masks), np.int64), np.zeros_like(present)
    for truth in boundaries:
        near = near_pairs(edges, np.argwhere(truth), radius)
        close = np.flatnonzero(np.diff(near.indptr))
        found = matched_edges(near[close], present[:, close])
        pairs += found.sum(axis=1)
        matched[:, close] |= found
    total = np.full(len(masks), np.count_nonzero(boundaries))
    table = np.stack([pairs, total, matched.sum(axis=1), present.sum(axis=1)], axis=1)
    return Counts(table, table[_f_measure(*rates(table)).argmax()])


def scores(counts: Counts) -> Scores:
    """ODS, OIS and AP from counts added up over images, as `edgesEvalDir` has them.

    * ODS: recall and precision are interpolated linearly between neighbouring thresholds, at 100
      points; the first point with the largest F counts.
    * OIS: F of the counts that every image has at its own best threshold, without interpolation.
    * AP: precision, interpolated linearly over recall, summed at recalls 0, 0.01 .. 1 and divided
      by 100. Recalls that no threshold spans add nothing, so a map of one recall has AP 0; of
      thresholds with the same recall the lowest counts.

    Recall, precision and F are 0 where they would divide by 0.
    """
    recall, precision = rates(counts.table)
    share = np.linspace(0, 1, STEPS)
    between = [
        (values[1:, None] * share + values[:-1, None] * (1 - share)).ravel()
        for values in (recall, precision, THRESHOLDS)
    ]
    f_measure = _f_measure(between[0], between[1])
    top = f_measure.argmax()
    return Scores(
        ods=float(f_measure[top]),
        threshold=float(between[2][top]),
        recall=float(between[0][top]),
        precision=float(between[1][top]),
        ois=float(_f_measure(*rates(counts.best))),
        ap=_average_precision(recall, precision),
    )


def rates(table: Ints) -> tuple[Floats, Floats]:
    """Recall and precision (...,) of counts (..., 4)."""
    return (
        table[..., 0] / np.maximum(table[..., 1], 1),
        table[..., 2] / np.maximum(table[..., 3], 1),
    )


def _f_measure(recall: Floats, precision: Floats) -> Floats:
    return 2 * recall * precision / np.maximum(recall + precision, np.finfo(float).eps)


def _average_precision(recall: Floats, precision: Floats) -> float:
    levels, first = np.unique(recall, return_index=True)
    if len(levels) == 1:
        return 0.0
    grid = np.arange(101) / 100
    return float(np.interp(grid, levels, precision[first], left=0, right=0).sum() / 100)
