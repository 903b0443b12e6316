"""Classes of pixels: of pictures that are class maps in colours, and as a trained model sees them.

A translation is scored as in CycleGAN's paper: what it makes of a class map is segmented by a model
trained on real pictures (FCN score), and what it makes of a picture is read as a class map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import ImageColor
from torch import Tensor

from imgray.data.fields import ClassMap, sole_picture
from imgray.data.pixels import encode
from imgray.errors import UserError
from imgray.training.models import load_model
from imgray.training.task import Task


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
    """A trained model that gives every pixel one of some classes.

    Args:
        uri: of the model artifact.
        classes: their names, in the order of their numbers.

    Raises:
        UserError: no such model, or one of other classes.
    """

    def __init__(self, uri: str, classes: Sequence[str]) -> None:
        self.model = load_model(uri)
        self.input = picture_input(self.model.task, classes, f"segmenter {uri}")

    def classes(self, pictures: Tensor) -> Tensor:
        """The class of each pixel, int64 (N, H, W), of pictures, uint8 (N, H, W, 3)."""
        device = str(pictures.device)
        self.model.to(device)
        items = [self.model.prepare({self.input: encode(one)}) for one in pictures.cpu().numpy()]
        maps: list[Any] = [found.picture for found in self.model.predict(items, device)]
        return torch.from_numpy(np.stack(maps)).long().to(device)


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
