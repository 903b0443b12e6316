"""Drawn people with pose and parsing, and a small recipe that swaps their clothes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imgray.config import validate
from imgray.synthesis.pose import COCO18, MEDIAPIPE33
from imgray.synthesis.swap_settings import SwapSettings
from imgray.training.recipe import Recipe

TASK = "imgray.synthesis.swapping:Swapping"
LABELS = ("null", "hair", "skin", "top", "trousers")
SIZE = (24, 36)
"""Width and height."""
SMALL: dict[str, Any] = {
    "labels": LABELS, "background": ["null"], "kept": {"head": ["hair", "skin"]},
    "clothes": {"upper": ["top"], "lower": ["trousers"]}, "skeleton": "coco18",
    "crop": [24, 16], "sigma": 1.5, "width": 4, "blocks": 1, "mask_width": 4, "judge_width": 4,
    "judge_layers": 1, "mask": 3.0, "parser_side": 32,
}  # fmt: skip
PLACES = {
    "nose": (12, 6), "neck": (12, 10), "shoulder": (5, 11), "elbow": (6, 16), "wrist": (6, 20),
    "hip": (3, 21), "knee": (3, 28), "ankle": (3, 34), "eye": (1, 5), "ear": (2, 5),
}  # fmt: skip
"""Of points of both sides x is how far they are from the middle, at 12."""


def settings(**changes: Any) -> SwapSettings:
    return validate(SwapSettings, SMALL | changes, "settings")


def recipe(given: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    data = {"hold_out": 0.4, "validate": None}
    found = {"batch_size": 2, "steps": 6, "checkpoint_every": 3, "log_every": 1, "data": data}
    found |= {"evaluate_every": 1000, **(given or {})}
    return Recipe.model_validate({"task": TASK, "settings": SMALL | changes, **found})


def pose(shift: float = 0.0) -> np.ndarray:
    """The 18 points (18, 3) of a person, in pixels."""
    found = []
    for name in COCO18:
        side, _, part = name.rpartition("_")
        x, y = PLACES[part]
        x = {"left": 12 + x, "right": 12 - x, "": x}[side]
        found.append([x + shift, y, 1.0])
    return np.array(found, np.float32)


def pose33() -> np.ndarray:
    """As many points of MediaPipe, each with numbers of its own."""
    found = np.random.default_rng(0).uniform(2, 20, (len(MEDIAPIPE33), 3)).astype(np.float32)
    found[:, 2] = np.linspace(0.6, 1, len(found))
    return found


def parsing(shift: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Labels (H, W) of a person."""
    found = np.zeros(size[::-1], np.uint8)
    for label, (top, bottom, half) in (
        (1, (2, 4, 3)),
        (2, (4, 10, 3)),
        (3, (10, 21, 6)),
        (4, (21, 35, 4)),
    ):
        found[top:bottom, 12 - half + shift : 12 + half + shift] = label
    return found


def photo(number: int, shift: int = 0) -> np.ndarray:
    """A person, uint8 (H, W, 3), whose colours follow from a number."""
    colours = np.random.default_rng(number).integers(30, 256, (len(LABELS), 3), np.uint8)
    found = colours[parsing(shift)]
    found[::2, ::2] -= 20
    return found


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, count: int = 8, views: int = 1) -> Path:
    """A table of people, `views` photographs of each, with its files: its path."""
    rows = ["id,group,photo,pose,parsing"]
    for n in range(count):
        shift = n % 3 - 1
        for name, one in (("photo", photo(n // views, shift)), ("parsing", parsing(shift))):
            (folder / f"{name}-{n}.png").write_bytes(png(one))
        points = json.dumps(pose(shift).tolist()).replace('"', "")
        rows.append(f'p{n},{n // views},photo-{n}.png,"{points}",parsing-{n}.png')
    (folder / "people.csv").write_text("\n".join(rows) + "\n")
    return folder / "people.csv"


def record(number: int = 0, other: int = 1) -> dict[str, Any]:
    """As a record of `People`."""
    return {
        "id": "p0 in the clothes of p1", "ids": {"reference": "p0", "target": "p1"}, "own": False,
        "reference": png(photo(number)), "pose": pose(), "parsing": png(parsing()),
        "target": png(photo(other)), "target_parsing": png(parsing()),
    }  # fmt: skip
