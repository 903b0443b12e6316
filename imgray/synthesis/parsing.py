"""Parsing: a label for every pixel of a person, read, or found by a model of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgray.data.pixels import Rejected, decode_map
from imgray.synthesis.segmenter import Segmenter, picture_input
from imgray.synthesis.swap_settings import SwapSettings
from imgray.training.models import load_model
from imgray.training.task import Task, task_of


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


def open_parser(settings: SwapSettings, initial: bool) -> Segmenter | None:
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
    return Segmenter(learner, _input(task, settings), settings.parser_side)


def parser_recipe(settings: SwapSettings) -> dict[str, Any]:
    """`SwapSettings.parser_recipe` of the parser that settings name. Raises `UserError`."""
    assert settings.parser
    model = load_model(settings.parser)
    _input(model.task, settings)
    recipe = model.recipe.model_dump(mode="json", by_alias=True)
    return {"recipe": recipe, "classes": list(model.task.classes)}


def _input(task: Task, settings: SwapSettings) -> str:
    return picture_input(task, settings.labels, f"settings.parser {settings.parser}")
