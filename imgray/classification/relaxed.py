"""What an edge detector's sides are taught: relaxed labels, chapter 3 of the thesis.

Pixels that a simple detector marks but annotators do not are hard to call: a side need not decide
them. The detector grows stricter from side to side, so that early sides are excused from more.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import canny

from imgray.errors import UserError

Mask = NDArray[np.bool_]

NEGATIVE, POSITIVE, RELAXED = 0, 1, 2
MULTIPLES = (0.5, 1.0, 1.5, 2.0, 2.5)
"""Thresholds of the five sides over the mean of an edge map, as the published labels are named."""

CANNY_SIGMA, CANNY_LOW = 2.0, 0.4
LUMINANCE = (0.299, 0.587, 0.114)


def relaxed_targets(
    truth: Mask,
    detections: Mask,
    relaxed: Literal["ignore", "positive", "negative"] = "ignore",
    order: Literal["given", "reversed"] = "given",
) -> NDArray[np.uint8]:
    """The targets of K sides (section 3.2.2): uint8 (K, H, W).

    1 where the truth has an edge, 2 (relaxed) where only the detector has one, 0 elsewhere.

    Args:
        truth: bool (H, W), where annotators agree on an edge.
        detections: bool (K, H, W), what the detector marks for each side.
        relaxed: for ablations, relaxed pixels become edges ("positive") or not ("negative"). The
            latter is HED's general supervision, of all sides by the truth.
        order: for ablations, the detections given to the sides in the opposite order.
    """
    marked = {"given": detections, "reversed": detections[::-1]}[order]
    label = {"ignore": RELAXED, "positive": POSITIVE, "negative": NEGATIVE}[relaxed]
    return np.where(truth, POSITIVE, np.where(marked, label, NEGATIVE)).astype(np.uint8)


def consensus(annotations: Mask, least: int = 3, dilation: int = 0) -> Mask:
    """Where at least `least` annotators mark an edge: bool (H, W) of bool (A, H, W).

    Of fewer annotators all must agree (our reading), and the result is dilated.

    Raises:
        UserError: there are no annotations.
    """
    if not len(annotations):
        raise UserError("no annotations to agree on; leave the image out")
    votes = annotations.sum(axis=0)
    return dilate(votes >= min(least, len(annotations)), dilation)


def dilate(mask: Mask, radius: int) -> Mask:
    """Mark the squares of 2 radius + 1 pixels around marked pixels, over the last two axes."""
    if radius == 0:
        return mask
    size = (1,) * (mask.ndim - 2) + (2 * radius + 1,) * 2
    return np.asarray(ndimage.maximum_filter(mask, size=size, mode="constant"))


def canny_maps(
    image: NDArray[np.uint8], multiples: tuple[float, ...] = MULTIPLES, dilation: int = 1
) -> Mask:
    """What Canny's detector marks for each side: bool (K, H, W) of RGB uint8 (H, W, 3).

    The thesis' settings for Canny are not published. In our reading the rule for structured edges
    holds: the upper threshold is k / 2 times the mean gradient, of a smoothing of 2 pixels common
    to all sides, the lower one 0.4 times the upper one. So each side's pixels hold the next one's.
    """
    gray = image.astype(np.float64) @ LUMINANCE / 255
    smooth = ndimage.gaussian_filter(gray, CANNY_SIGMA)
    gradient = np.hypot(ndimage.sobel(smooth, axis=0), ndimage.sobel(smooth, axis=1))
    ridges = canny(gray, CANNY_SIGMA, low_threshold=0, high_threshold=0, mode="reflect") * gradient
    highs = [multiple * gradient.mean() for multiple in multiples]
    return dilate(np.stack([_hysteresis(ridges, CANNY_LOW * t, t) for t in highs]), dilation)


def _hysteresis(ridges: NDArray[np.float64], low: float, high: float) -> Mask:
    """Canny's last stage: ridges above `low` that connect, corners included, to one at `high`."""
    marked = ridges > 0
    strong, weak = marked & (ridges >= high), marked & (ridges >= low)
    return np.asarray(ndimage.binary_propagation(strong, np.ones((3, 3)), weak))


def coarse_edges(labels: NDArray[np.uint8], void: int | None = None, dilation: int = 0) -> Mask:
    """Coarse edge annotations (CEA), boundaries of a segmentation: bool (H, W) of labels (H, W).

    A pixel is an edge where its right or lower neighbour has another label, dilated. A pair with a
    pixel of the label `void` is none. Which of the two pixels is marked is our reading.
    """
    known = np.ones_like(labels, bool) if void is None else labels != void
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & known[:, :-1] & known[:, 1:]
    edges[:-1] |= (labels[:-1] != labels[1:]) & known[:-1] & known[1:]
    return dilate(edges, dilation)
