"""Mosaics of real textures with the truth of every pixel: to train a segmenter or an edge detector.

A mosaic is cut into cells, the Voronoi regions of some random points, and every cell shows a piece
of a photograph of one material. The photographs are those of `imgray.data.samples`. Training and
validation show other pieces of the same ones, so scores say that a model learns, not how well it
would do on other photographs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imgray.data import samples

MATERIALS = {
    "brick": ("brick",),
    "coins": ("coins",),
    "grass": ("grass",),
    "gravel": ("gravel_a", "gravel_b", "gravel_c", "gravel_d"),
    "stars": ("hubble_a", "hubble_b", "hubble_c", "hubble_d"),
    "text": ("page", "text"),
    "tissue": ("ihc_a", "ihc_b", "ihc_c", "ihc_d"),
}
CELLS = (2, 5)
ZOOM = (0.5, 1.5)


def write_mosaics(
    folder: Path | str, train: int = 200, val: int = 40, side: int = 160, seed: int = 0
) -> Path:
    """Write mosaics as a data set of masks (`data.truth: masks`); returns the folder.

    `PART/images/N.jpg` with `PART/labels/N.png`, whose pixels are places in `MATERIALS`. A mosaic
    depends on `side`, `seed`, its part and its number alone.

    Args:
        folder: where to write, made if absent.
        train: mosaics to train on.
        val: mosaics to validate on.
        side: of a mosaic, in pixels.
        seed: not negative.

    Raises:
        UserError: the photographs are missing.
    """
    place, pictures = Path(folder), samples.photographs()
    for part, count in enumerate((train, val)):
        name = ("train", "val")[part]
        for kind in ("images", "labels"):
            (place / name / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, mask = mosaic(pictures, side, np.random.default_rng([seed, part, number]))
            Image.fromarray(image).save(place / name / "images" / f"{number:04d}.jpg", quality=92)
            Image.fromarray(mask).save(place / name / "labels" / f"{number:04d}.png")
    return place


def mosaic(
    pictures: dict[str, Image.Image], side: int, chance: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One mosaic, uint8 (side, side, 3), and the material of every pixel, uint8 (side, side).

    No two cells show the same material, so every border between cells is one between materials.
    """
    cells = int(chance.integers(CELLS[0], CELLS[1] + 1))
    chosen = chance.choice(len(MATERIALS), cells, replace=False)
    points = chance.uniform(0, side, (cells, 2))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), axis=-1)[:, :, None]
    nearest = ((grid - points) ** 2).sum(axis=-1).argmin(axis=-1)
    image = np.zeros((side, side, 3), np.uint8)
    for cell, material in enumerate(chosen):
        names = list(MATERIALS.values())[material]
        piece = _piece(pictures[names[chance.integers(len(names))]], side, chance)
        image[nearest == cell] = piece[nearest == cell]
    return image, chosen[nearest].astype(np.uint8)


def _piece(picture: Image.Image, side: int, chance: np.random.Generator) -> NDArray[np.uint8]:
    """A square piece of a photograph at a random place and scale, perhaps mirrored."""
    width = int(min(side / chance.uniform(*ZOOM), *picture.size))
    left, top = (int(chance.integers(0, room - width + 1)) for room in picture.size)
    piece = picture.resize((side, side), box=(left, top, left + width, top + width))
    array = np.asarray(piece)
    return array[:, ::-1] if chance.random() < 0.5 else array
