"""Poses: skeletons by name, the 18 points of OpenPose, and their heat maps.

Points lie in a picture's plane, x from its left and y from its upper border, in pixels: that of the
first pixel's middle is (0.5, 0.5).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgray.data.pixels import Rejected

SIDES = ("left", "right")
LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{side}_{name}" for name in names for side in SIDES)


COCO18 = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
"""Of OpenPose (Cao et al., CVPR 2017), in its order; left and right are the person's own."""
MEDIAPIPE33 = (
    "nose", *(f"{side}_eye{part}" for side in SIDES for part in ("_inner", "", "_outer")),
    *_both("ear"), "mouth_left", "mouth_right", *_both(*LIMBS[:3], "pinky", "index", "thumb"),
    *_both(*LIMBS[3:], "heel", "foot_index"),
)  # fmt: skip
"""Of BlazePose (Bazarevsky et al. 2020), as MediaPipe orders them."""
SKELETONS = {"mediapipe33": MEDIAPIPE33, "coco18": COCO18}
SHOULDERS = [COCO18.index(name) for name in ("right_shoulder", "left_shoulder")]
NECK = COCO18.index("neck")
MIRRORED = [
    COCO18.index(
        name.replace("left_", "right_") if name.startswith("left_") else
        name.replace("right_", "left_")
    )
    for name in COCO18
]  # fmt: skip
"""By point of a mirrored picture the point that it was."""


def body18(points: NDArray[np.float32], skeleton: str) -> NDArray[np.float32]:
    """The points of a skeleton as the 18 of OpenPose: float32 (18, 3), x, y, visibility.

    The neck of a skeleton without one lies between the shoulders, as visible as the less visible.

    Args:
        points: float32 (K, 3).
        skeleton: one of `SKELETONS`.
    """
    own = SKELETONS[skeleton]
    found = np.zeros((len(COCO18), 3), np.float32)
    for place, name in enumerate(COCO18):
        if name in own:
            found[place] = points[own.index(name)]
    if "neck" not in own:
        shoulders = found[SHOULDERS]
        found[NECK] = *shoulders[:, :2].mean(axis=0), shoulders[:, 2].min()
    return found


def check_pose(points: NDArray[np.float32], size: tuple[int, int], visible: float) -> None:
    """Refuse a pose (18, 3) that is none of a picture.

    Args:
        points: as of `body18`.
        size: width and height of the picture.
        visible: the least visibility of points that count.

    Raises:
        Rejected: a visibility that is none; no shoulder is visible; no visible point lies in the
            picture, or all as close together as shares of its sides are.
    """
    shares = points[:, 2]
    if shares.min() < 0 or shares.max() > 1:
        worst = shares[np.argmax(np.abs(shares - 0.5))]
        raise Rejected(f"pose: visibility {worst:g}; 0 to 1 is expected")
    if shares[SHOULDERS].max() < visible:
        raise Rejected(f"pose: no shoulder has a visibility of {visible:g}; one at least is needed")
    seen = points[shares >= visible, :2]
    if max(size) > 2 and np.abs(seen).max() <= 1:
        raise Rejected("pose: all points lie within one pixel; pixels are expected, not shares")
    if not ((seen >= 0) & (seen <= size)).all(axis=1).any():
        width, height = size
        raise Rejected(f"pose: no visible point lies in the picture of {width} x {height} pixels")


def mirrored(points: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """The pose (18, 3) of a mirrored picture: left is right."""
    found = points[MIRRORED].copy()
    found[:, 0] = width - found[:, 0]
    return found


def heat_maps(points: Tensor, size: tuple[int, int], sigma: float, visible: float) -> Tensor:
    """A map for each point, from 0 to 1: exp(−d² / 2σ²) at the distance d from it.

    Args:
        points: (N, K, 3), x, y and visibility.
        size: height and width of the maps.
        sigma: in pixels.
        visible: maps of points that are less visible are empty.

    Returns:
        float32 (N, K, H, W).
    """
    bells = []
    for axis, length in zip((1, 0), size, strict=True):
        middles = torch.arange(length, device=points.device) + 0.5
        distance = middles - points[:, :, axis, None].float()
        bells.append(torch.exp(-distance.square() / (2 * sigma**2)))
    rows, columns = bells
    seen = (points[:, :, 2] >= visible).float()[:, :, None, None]
    return rows[:, :, :, None] * columns[:, :, None] * seen
