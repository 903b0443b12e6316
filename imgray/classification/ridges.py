"""Ridges of edge maps: non-maximum suppression of soft maps, thinning of binary ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d, map_coordinates

from imgray.errors import UserError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MULTIPLIER = 1.01
"""How much a neighbour across the edge must exceed a pixel to suppress it."""
BORDER = 5
"""Pixels over which the map fades towards each side of the image."""


def nms(edge_map: NDArray[np.floating[Any]]) -> Floats:
    """Keep the ridges of a soft edge map, as the thesis does before it evaluates.

    The map is smoothed with a triangle of radius 1. A pixel is set to 0 when, one pixel away across
    the edge on either side, the smoothed map is over 1.01 times as strong; what is left fades
    linearly within 5 pixels of a side. The direction across the edge comes from second derivatives
    of the map smoothed once more, with radius 4 (`edgesNms` of the toolbox). The toolbox rounds
    the result to 8 bits, in a file; this does not.

    Args:
        edge_map: (H, W) in 0..1, of any float type.

    Returns:
        float64 (H, W) in 0..1.

    Raises:
        UserError: the map is not float, not (H, W), under 2 pixels wide or high, or not in 0..1.
    """
    check_map(edge_map)
    smooth = _triangle(edge_map.astype(np.float64), 1)
    angle = _across(_triangle(smooth, 4))
    y, x = np.indices(smooth.shape)
    keep = np.ones(smooth.shape, np.bool_)
    for side in (-1, 1):
        places = [y + side * np.sin(angle), x + side * np.cos(angle)]
        beside = map_coordinates(smooth, places, order=1, mode="nearest")
        keep &= smooth * MULTIPLIER >= beside
    height, width = smooth.shape
    border = min(BORDER, height // 2, width // 2)
    return smooth * keep * _fade(height, border)[:, None] * _fade(width, border)


def _triangle(image: Floats, radius: int) -> Floats:
    """Convolve with a triangle of 2 * radius + 1 pixels and sum 1, the image mirrored outside."""
    kernel = (radius + 1 - np.abs(np.arange(-radius, radius + 1))) / (radius + 1) ** 2
    rows: Floats = convolve1d(image, kernel, axis=0, mode="reflect")
    return convolve1d(rows, kernel, axis=1, mode="reflect")


def _across(smooth: Floats) -> Floats:
    """Angle (H, W) of the direction across the edge, from the columns' axis to the rows'.

    The toolbox multiplies by sign(-dxy), which is 0 on an edge exactly along a row: it would look
    along that edge. Here 0 counts as positive.
    """
    dy, dx = np.gradient(smooth)
    dxx = np.gradient(dx, axis=1)
    dyy, dxy = np.gradient(dy)
    return np.arctan(np.where(dxy > 0, -dyy, dyy) / (dxx + 1e-5))


def _fade(length: int, border: int) -> Floats:
    """Weights (length,) that grow from 0 at both ends to 1 after `border` pixels."""
    place = np.arange(length)
    return np.minimum(np.minimum(place, place[::-1]) / border, 1)


def _deletable() -> Bools:
    """Whether a pixel goes, (2, 256): by half of an iteration and the bits of its 8 neighbours.

    The neighbours run counter-clockwise from the east one. Conditions G1, G2 and G3 of Guo and Hall
    (1989), algorithm A1, as Lam, Lee and Suen (1992), page 879, write them.
    """
    x = (np.arange(256) >> np.arange(8)[:, None] & 1).astype(np.bool_)
    side, corner, turned = x[0::2], x[1::2], np.roll(x[0::2], -1, axis=0)
    crossings = (~side & (corner | turned)).sum(axis=0)
    pairs = np.minimum((side | corner).sum(axis=0), (corner | turned).sum(axis=0))
    removable = (crossings == 1) & (pairs >= 2) & (pairs <= 3)
    east, west = (x[1] | x[2] | ~x[7]) & x[0], (x[5] | x[6] | ~x[3]) & x[4]
    return np.stack([removable & ~east, removable & ~west])


_DELETABLE = _deletable()


def thin(binary: Bools) -> Bools:
    """Thin regions to lines until nothing changes: `bwmorph(binary, 'thin', inf)`.

    Args:
        binary: bool (..., H, W); each image of a stack by itself.

    Returns:
        bool, of the same shape.
    """
    padded = np.pad(binary, [(0, 0)] * (binary.ndim - 2) + [(1, 1)] * 2)
    flat, width = padded.reshape(-1), padded.shape[-1]
    around = np.array([1, 1 - width, -width, -1 - width, -1, width - 1, width, width + 1])
    candidates = np.flatnonzero(flat)
    gone = [_delete(flat, candidates, around, half) for half in (0, 1)]
    half = 0
    # A pixel's fate changes only with its neighbours, since the same half looked at it last.
    while len(changed := np.concatenate(gone[-2:])):
        touched = np.zeros_like(flat)
        touched[changed + around[:, None]] = True
        gone.append(_delete(flat, np.flatnonzero(touched & flat), around, half))
        half = 1 - half
    return padded[..., 1:-1, 1:-1]


def _delete(flat: Bools, candidates: Ints, around: Ints, half: int) -> Ints:
    """Clear the candidates that half an iteration deletes, and give them; all indices of `flat`."""
    bits = np.packbits(flat[candidates + around[:, None]], axis=0, bitorder="little")[0]
    gone = candidates[_DELETABLE[half][bits]]
    flat[gone] = False
    return gone


def check_map(edge_map: NDArray[np.floating[Any]]) -> None:
    """Check an edge map before work starts.

    Raises:
        UserError: it is not float, not (H, W), under 2 pixels wide or high, or not in 0..1.
    """
    if edge_map.dtype.kind != "f":
        raise UserError(f"edge map of {edge_map.dtype}: expected floats in 0..1")
    if edge_map.ndim != 2 or min(edge_map.shape) < 2:
        raise UserError(f"edge map {edge_map.shape}: expected (H, W), at least 2 x 2")
    if not ((edge_map >= 0) & (edge_map <= 1)).all():
        raise UserError(
            f"edge map of values {edge_map.min()}..{edge_map.max()}: expected finite ones in 0..1"
        )
