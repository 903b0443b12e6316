"""Parsing: a label for every pixel of a person, read, or found by a model of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imgray.data.pixels import Rejected, decode_map
from imgray.synthesis.segmenter import picture_input
from imgray.synthesis.swap_settings import Map, SwapSettings
from imgray.training.models import load_model
from imgray.training.task import Learner, Task, task_of

LEAST, LONGER = 32, 4
"""Pixels of the sides of what a parser sees at least, and of the longer one by its `side`."""


def read_parsing(data: bytes, size: tuple[int, int], settings: SwapSettings) -> NDArray[np.uint8]:
    """The labels (H, W) of an encoded class map.

    Args:
        data: a PNG of one channel of 8 bits.
        size: width and height of the photograph.
        settings: its labels.

    Raises:
        Rejected: it is no such PNG, of another size, holds a label that is none, or no person.
    """
    try:
        labels = decode_map(data)
    except Rejected as error:
        raise Rejected(f"parsing: {error}") from None
    if labels.shape[::-1] != size:
        own, other = (" x ".join(map(str, one)) for one in (labels.shape[::-1], size))
        raise Rejected(f"parsing: {own} pixels, for a picture of {other}")
    if labels.max() >= len(settings.labels):
        raise Rejected(
            f"parsing: label {labels.max()}, but the recipe names {len(settings.labels)} labels, "
            "from 0 on; is it of another label set?"
        )
    if not settings.region_of[labels].any():
        raise Rejected("parsing: no pixel of a person, all are background")
    return labels


def nearest(maps: Map, size: tuple[int, int]) -> Map:
    """Maps (..., H, W) brought to a height and width, each pixel as the nearest of before."""
    rows, columns = (
        ((np.arange(length) + 0.5) * own / length).astype(int)
        for length, own in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]


def composed(
    painted: NDArray[np.uint8],
    whole: NDArray[np.uint8],
    parsing: NDArray[np.uint8],
    settings: SwapSettings,
) -> NDArray[np.uint8]:
    """A painted picture whose background and kept regions are those of the whole reference.

    Pictures are uint8 (H, W, 3), the parsing (H, W).
    """
    regions = settings.region_of[parsing]
    return np.where(settings.are_clothes(regions)[:, :, None], painted, whole)


class Parser:
    """A model that finds the parsing of a photograph.

    Args:
        learner: its networks.
        input: what its task calls the photograph.
        side: shorter side in pixels of the pictures that it sees; of those more than four times as
            long as wide it is less, 32 at least.
    """

    def __init__(self, learner: Learner, input: str, side: int) -> None:
        self.learner, self.input, self.side = learner, input, side

    @torch.inference_mode()
    def labels(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The labels (H, W) of a picture, uint8 (H, W, 3)."""
        sides = picture.shape[1::-1]
        scale = self.side / max(min(sides), max(sides) / LONGER)
        width, height = (max(LEAST, round(scale * side)) for side in sides)
        seen = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        device = next(next(iter(self.learner.modules.values())).parameters()).device
        image = torch.tensor(np.asarray(seen), device=device)[None]
        with torch.autocast(device.type, enabled=False):
            [found] = self.learner.predict({self.input: image})
        assert found.picture is not None
        return nearest(found.picture, picture.shape[:2])


def open_parser(settings: SwapSettings, initial: bool) -> Parser | None:
    """The parser that settings name.

    Args:
        settings: with `parser_recipe` it can be made without its artifact.
        initial: with its trained weights, otherwise with some that are to be replaced.

    Raises:
        UserError: it cannot be opened, or finds other labels.
    """
    if settings.parser is None:
        return None
    if settings.parser_recipe and not initial:
        task = task_of(settings.parser_recipe.recipe, settings.parser_recipe.classes)
        learner = task.learner(initial=False)
    else:
        model = load_model(settings.parser)
        task, learner = model.task, model.learner
    return Parser(learner, _input(task, settings), settings.parser_side)


def parser_recipe(settings: SwapSettings) -> dict[str, Any]:
    """`SwapSettings.parser_recipe` of the parser that settings name. Raises `UserError`."""
    assert settings.parser
    model = load_model(settings.parser)
    _input(model.task, settings)
    recipe = model.recipe.model_dump(mode="json", by_alias=True)
    return {"recipe": recipe, "classes": list(model.task.classes)}


def _input(task: Task, settings: SwapSettings) -> str:
    return picture_input(task, settings.labels, f"settings.parser {settings.parser}")
