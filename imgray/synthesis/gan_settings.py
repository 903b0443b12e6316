"""What recipes of translation and of swapping say alike."""

from __future__ import annotations

from pydantic import Field

from imgray.synthesis.generator import Upsampling
from imgray.synthesis.realism import Describer
from imgray.training.recipe import Settings


class GanSettings(Settings):
    """Generators, discriminators, how they learn, and by what their pictures are scored."""

    uris = frozenset({"kid_weights"})

    width: int = Field(default=64, ge=1, le=512, description="channels of generators' first layer")
    upsampling: Upsampling = "transposed"
    judge_width: int = Field(default=64, ge=1, le=512, description="as width, of discriminators")
    judge_layers: int = Field(default=3, ge=1, le=6, description="strided ones of discriminators")
    mirror: bool = True
    average: float = Field(default=0.0, ge=0, lt=1, description="decay of averaged generators")

    kid: str | None = Field(
        default="mobilenet_v2", description="network of KID and FID, in evaluation; null: neither"
    )
    kid_weights: str = Field(default="auto", description="of it: auto, or URI of safetensors")

    rate: float = Field(default=2e-4, gt=0)
    momentum: float = Field(default=0.5, ge=0, lt=1, description="Adam's first beta")

    def describer(self) -> Describer | None:
        """The network of KID and FID, if they are wanted. Raises `UserError` where it lacks."""
        return Describer(self.kid, self.kid_weights) if self.kid else None
