"""Classes of pixels: of pictures that are class maps in colours, and as a trained model sees them.

A translation is scored as in CycleGAN's paper: what it makes of a class map is segmented by a model
trained on real pictures (FCN score), and what it makes of a picture is read as a class map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from imgray.data.fields import ClassMap, sole_picture
from imgray.errors import UserError
from imgray.synthesis.swap_settings import Map
from imgray.training.models import load_model
from imgray.training.task import Learner, Task

LEAST, LONGER = 32, 4
"""Pixels of the sides of what a segmenter sees at least, and of the longer one by its `side`."""


class Palette:
    """The colours of classes.

    Args:
        colours: by class, such as `#ff0000`, in the order of their numbers.
    """

    def __init__(self, colours: Mapping[str, str]) -> None:
        self.colours = torch.tensor([ImageColor.getrgb(one)[:3] for one in colours.values()])

    def classes(self, pictures: Tensor) -> Tensor:
        """The nearest class of each pixel, int64 (N, H, W), of pictures, uint8 (N, H, W, 3)."""
        colours = self.colours.to(pictures.device).float()
        flat = pictures.reshape(-1, 3).float()
        return torch.cdist(flat, colours).argmin(dim=1).reshape(pictures.shape[:3])


class Segmenter:
    """A trained model that gives every pixel of a picture one of some classes.

    Args:
        learner: its networks.
        input: what its task calls the picture.
        side: shorter side in pixels of the pictures that it sees; of those more than four times as
            long as wide it is less, 32 at least. None for pictures as they are.
    """

    def __init__(self, learner: Learner, input: str, side: int | None = None) -> None:
        self.learner, self.input, self.side = learner, input, side

    @torch.inference_mode()
    def classes(self, pictures: Tensor) -> Tensor:
        """The class of each pixel, uint8 (N, H, W), of pictures, uint8 (N, H, W, 3)."""
        for net in self.learner.modules.values():
            net.to(pictures.device)
        seen = pictures if self.side is None else _resized(pictures, self.side)
        with torch.autocast(seen.device.type, enabled=False):
            maps: list[Any] = [one.picture for one in self.learner.predict({self.input: seen})]
        found = torch.from_numpy(np.stack(maps)).to(seen.device)
        return nearest(found, (pictures.shape[1], pictures.shape[2]))


def _resized(pictures: Tensor, side: int) -> Tensor:
    height, width = pictures.shape[1:3]
    scale = side / max(min(width, height), max(width, height) / LONGER)
    size = max(LEAST, round(scale * width)), max(LEAST, round(scale * height))
    found = [
        np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC))
        for one in pictures.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(found)).to(pictures.device)


def open_segmenter(uri: str, classes: Sequence[str]) -> Segmenter:
    """A model artifact as a segmenter.

    Args:
        uri: of the artifact.
        classes: their names, in the order of their numbers.

    Raises:
        UserError: no such model, or one of other classes.
    """
    model = load_model(uri)
    return Segmenter(model.learner, picture_input(model.task, classes, f"segmenter {uri}"))


def nearest(maps: Map, size: tuple[int, int]) -> Map:
    """Maps (..., H, W) brought to a height and width, each pixel as the nearest of before."""
    rows, columns = (
        ((np.arange(length) + 0.5) * own / length).astype(int)
        for length, own in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]


def picture_input(task: Task, classes: Sequence[str], place: str) -> str:
    """The input of a task that gives a class map, of these classes, of a mere picture.

    Args:
        task: of a model.
        classes: in the order of their numbers.
        place: where the model was named, for a message.

    Raises:
        UserError: it is another task, or has other classes.
    """
    maps, found = task.outputs.get(task.painted or ""), sole_picture(task.inputs)
    if found is None or not isinstance(maps, ClassMap):
        raise UserError(f"{place}: {type(task).__name__} gives no class of each pixel of a picture")
    own, wanted = tuple(maps.labels), tuple(classes)
    if own != wanted:
        pairs = zip(own, wanted, strict=False)
        odd = next((f"{a!r} for {b!r}" for a, b in pairs if a != b), "")
        counts = f"{len(own)} classes for {len(wanted)}"
        raise UserError(f"{place}: its classes are others than the settings name: {odd or counts}")
    return found
