"""Two small domains of pictures in CycleGAN's layout."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"trainA": 7, "trainB": 5, "valA": 3, "valB": 3}
"""Domains of unequal size, and test parts that are pairs."""


def picture(seed: int, width: int = 24, height: int = 20, suffix: str = "PNG") -> bytes:
    """A soft pattern, encoded."""
    shape = (height // 4, width // 4, 3)
    values = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR).save(buffer, suffix)
    return buffer.getvalue()


def write_domains(folder: Path) -> Path:
    """Both parts of both domains."""
    for place, (part, count) in enumerate(COUNTS.items()):
        (folder / part).mkdir(parents=True)
        for n in range(count):
            (folder / part / f"{n}.png").write_bytes(picture(10 * place + n))
    return folder
