"""Two small domains of pictures in CycleGAN's layout, and a small recipe that translates them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imgray.config import validate
from imgray.synthesis.settings import TranslationSettings
from imgray.training.recipe import Recipe

TASK = "imgray.synthesis.translation:Translation"
SMALL = {"width": 4, "blocks": 1, "judge_width": 4, "judge_layers": 1, "load": 20, "crop": 16}

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


def settings(**changes: Any) -> TranslationSettings:
    """Settings of small networks, with some changes."""
    return validate(TranslationSettings, SMALL | changes, "settings")


def recipe(**changes: Any) -> Recipe:
    """A recipe of small networks; changes are of its settings, but those of `recipe`."""
    found = {"batch_size": 2, "steps": 6, "checkpoint_every": 3, "log_every": 1}
    found |= {"evaluate_every": 1000, "data": {"truth": "folders"}} | changes.pop("recipe", {})
    return Recipe.model_validate({"task": TASK, "settings": SMALL | changes, **found})
