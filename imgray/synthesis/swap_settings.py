"""What a recipe may say about the swapping of clothes: labels, networks and losses."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from imgray.synthesis.gan_settings import GanSettings
from imgray.synthesis.generator import LEAST, STRIDE
from imgray.synthesis.pose import SKELETONS
from imgray.training.recipe import Recipe, Settings, one_of

Regions = dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
"""By name the labels of a region."""
Map = TypeVar("Map", NDArray[Any], Tensor)


class ParserRecipe(Settings):
    """What makes a parser's networks without its artifact."""

    recipe: Recipe
    classes: tuple[str, ...]


class SwapSettings(GanSettings):
    """What a recipe may say about SwapGAN.

    Every label of the parsing belongs to the background, or to one region of clothes or of what is
    kept; the segmentation map has a channel for the background and one for each region.
    """

    uris = GanSettings.uris | {"parser"}
    models = frozenset({"parser"})

    labels: tuple[str, ...] = Field(min_length=2, max_length=256, description="of the parsing")
    background: tuple[str, ...] = Field(min_length=1, description="labels that are no person")
    clothes: Regions = Field(min_length=1, description="regions that are swapped, of labels")
    kept: Regions = Field(default={}, description="regions that stay the reference's, of labels")
    skeleton: Annotated[str, one_of(SKELETONS)] = "mediapipe33"
    visible: float = Field(default=0.5, gt=0, le=1, description="least visibility of a point")
    sigma: float = Field(
        default=3.0, ge=0.1, le=4096, description="of heat maps, pixels of the crop"
    )

    parser: str | None = Field(
        default=None, description="URI of a model that fills in the parsing where there is none"
    )
    parser_recipe: ParserRecipe | None = Field(
        default=None, description="of the parser; filled in as a run begins"
    )
    parser_side: int = Field(
        default=192, ge=32, le=2048, description="shorter side of the pictures that it sees"
    )

    crop: tuple[int, int] = Field(default=(128, 128), description="height and width of pictures")
    longest: int = Field(
        default=1024, ge=8, le=2**16, description="longer references are scaled down in prediction"
    )
    composite: bool = Field(
        default=False, description="background and kept regions of predictions are the reference's"
    )

    stages: Literal[1, 2] = Field(default=2, description="generators that paint, in a row")
    seen: bool = Field(default=True, description="the last of them sees the kept regions' pixels")
    blocks: int = Field(default=6, ge=0, le=64, description="residual blocks of generators")
    mask_width: int = Field(default=32, ge=1, le=512, description="as width, of the third")

    mask: float = Field(default=10.0, ge=0, description="weight of mask consistency; 0: no third")
    own: float = Field(default=0.0, ge=0, lt=1, description="share of self-reconstruction pairs")
    reconstruction: float = Field(default=0.0, ge=0, description="weight of the L1 loss of these")

    @model_validator(mode="after")
    def _labelled(self) -> SwapSettings:
        """Each label belongs to one place alone, and there is none beside."""
        twice = [name for name, n in Counter(self.labels).items() if n > 1]
        if twice:
            raise ValueError(f"label {twice[0]!r} is in labels twice")
        both = sorted(self.clothes.keys() & self.kept.keys())
        if both:
            raise ValueError(f"region {both[0]!r} is both in clothes and in kept")
        placed = Counter(label for _, labels in self.regions for label in labels)
        for label, times in placed.items():
            if label not in self.labels:
                raise ValueError(f"{label!r} of background, clothes or kept is none of labels")
            if times > 1:
                raise ValueError(f"label {label!r} is in background, clothes and kept twice")
        if missing := [label for label in self.labels if label not in placed]:
            raise ValueError(f"label {missing[0]!r} is in none of background, clothes and kept")
        return self

    @model_validator(mode="after")
    def _sized(self) -> SwapSettings:
        least = max(LEAST, 3 << self.judge_layers)
        for side in self.crop:
            if side % STRIDE or not least <= side <= 4096:
                raise ValueError(
                    f"crop {side}: sides are divided by {STRIDE}, {least} at least under "
                    f"judge_layers {self.judge_layers}, and 4096 at most"
                )
        if bool(self.own) != bool(self.reconstruction):
            raise ValueError("own and reconstruction need each other: set both, or none")
        if self.parser_recipe and self.parser is None:
            raise ValueError("parser_recipe without parser: it is filled in as a run begins")
        return self

    @property
    def regions(self) -> list[tuple[str, tuple[str, ...]]]:
        """Names and labels of the channels of the segmentation map, the background first."""
        return [("background", self.background), *self.clothes.items(), *self.kept.items()]

    @cached_property
    def region_of(self) -> NDArray[np.uint8]:
        """The region of each label (256,), that of values beyond the labels the background."""
        found = np.zeros(256, np.uint8)
        for place, (_, labels) in enumerate(self.regions):
            found[[self.labels.index(label) for label in labels]] = place
        return found

    def are_clothes(self, regions: Map) -> Map:
        """Where regions, by number, are clothes: bool of their shape."""
        return (regions >= 1) & (regions <= len(self.clothes))

    def are_kept(self, regions: Map) -> Map:
        """Where regions, by number, are kept: bool of their shape."""
        return regions > len(self.clothes)
