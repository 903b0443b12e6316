"""Time of the boundary evaluation per image of BSDS500, and how it grows.

    python tests/benchmarks/bench_edges.py [--images N]

The soft edge map is the gradient magnitude of a Gaussian, of sigma 2, divided by its 99.5th
percentile; it is dense in textures, which costs more than the map of a network. One process.

Cost: thinning is linear in the pixels over all thresholds. An annotator's matching has one
assignment per threshold, among the edge pixels that compete for boundary pixels; those of a dense
map at low thresholds are the bulk, and grow with the product of their numbers.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_gradient_magnitude

from imgray.classification.edge_metrics import THRESHOLDS, Counts, count, scores
from imgray.classification.ridges import nms, thin

SIGMA = 2
FULL = 99.5
"""Percentile of the gradient that becomes 1."""


def photographs(data: Path, images: int) -> Iterator[tuple[Any, Any]]:
    """Soft edge maps (H, W) and boundaries (annotators, H, W) of the validation part."""
    paths = sorted((data / "bsds500/images/val").glob("*.jpg"))[:images]
    if not paths:
        sys.exit(f"{data}: no bsds500 here; --data or IMGRAY_TEST_DATA names another folder")
    for path in paths:
        grey = np.asarray(Image.open(path).convert("L"), np.float64)
        slope = gaussian_gradient_magnitude(grey, SIGMA)
        with np.load(data / "bsds500/boundaries/val" / f"{path.stem}.npz") as file:
            *_, width = file["shape"]
            boundaries = np.unpackbits(file["boundaries"], axis=2, count=width) > 0
        yield np.minimum(slope / np.percentile(slope, FULL), 1), boundaries


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a function gives, and its seconds of processor time."""
    began = time.process_time()
    return function(*args), time.process_time() - began


def measure(soft: NDArray[np.float64], boundaries: NDArray[np.bool_]) -> tuple[Counts, list[float]]:
    """Counts of an image; seconds of nms, of thinning, of all counting, and with one annotator."""
    ridges, suppressing = timed(nms, soft)
    _, thinning = timed(thin, ridges >= THRESHOLDS[:, None, None])
    counts, counting = timed(count, ridges, boundaries)
    _, one = timed(count, ridges, boundaries[:1])
    _, sparse = timed(count, np.where(ridges >= 0.2, ridges, 0), boundaries)
    return counts, [suppressing, thinning, counting, one, sparse]


def main() -> None:
    options = common.parser(__doc__, 20).parse_args()
    measured = [measure(*each) for each in photographs(options.data, options.images)]
    seconds = np.array([times for _, times in measured])
    names = (
        "nms",
        "thinning, 99 thresholds",
        "counting, thinning included",
        "... against one annotator",
        "... of a map without values under 0.2",
    )
    rows = [
        [name, float(column.mean()), float(np.median(column)), float(column.max())]
        for name, column in zip(names, seconds.T, strict=True)
    ]
    common.table([f"seconds an image, {len(measured)} images", "mean", "median", "most"], rows)
    result = scores(sum((counts for counts, _ in measured[1:]), start=measured[0][0]))
    print(
        f"ODS {result.ods:.3f} at {result.threshold:.3f}, OIS {result.ois:.3f}, AP {result.ap:.3f}"
    )


if __name__ == "__main__":
    main()
