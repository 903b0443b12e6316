"""CycleGAN's generator of residual blocks: Zhu et al., ICCV 2017, after Johnson et al., ECCV 2016.

    c7s1-64, d128, d256, R256 x 6 or 9, u128, u64, c7s1-3,

padded by reflection, instance normalised without parameters of its own, as in the authors' code.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from imgray.features.backbones import standardised

STRIDE, LEAST = 4, 8
"""What divides the sides of a picture, and the shortest."""
MEAN = STD = (0.5, 0.5, 0.5)
"""By which pixels from 0 to 1 become numbers from -1 to 1."""
Upsampling = Literal["transposed", "resize"]


class Residual(nn.Module):
    """x + (two convolutions of x), of maps (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            *_convolution(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        found: Tensor = maps + self.body(maps)
        return found


class Generator(nn.Sequential):
    """Maps (N, inputs, H, W) to pictures (N, outputs, H, W) from -1 to 1.

    4 divides H and W, which are 8 at least. A picture of one colour has no variance, so that what
    instance normalisation makes of it is rounding.

    Args:
        width: channels of the first layer; 64 as published.
        blocks: residual blocks: 6 at 128 pixels and 9 from 256 on as published.
        inputs, outputs: channels.
        upsampling: transposed convolutions as published, or `resize`: nearest neighbours and a
            convolution, which leave no checkerboard (Odena et al. 2016).
    """

    def __init__(
        self,
        width: int = 64,
        blocks: int = 9,
        inputs: int = 3,
        outputs: int = 3,
        upsampling: Upsampling = "transposed",
    ) -> None:
        super().__init__(
            *_convolution(inputs, width, 7),
            *_normed(width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            *_normed(2 * width),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            *_normed(4 * width),
            *(Residual(4 * width) for _ in range(blocks)),
            *_upsampled(4 * width, upsampling),
            *_normed(2 * width),
            *_upsampled(2 * width, upsampling),
            *_normed(width),
            *_convolution(width, outputs, 7),
            nn.Tanh(),
        )
        initialise(self)


def initialise(net: nn.Module, std: float = 0.02) -> None:
    """Draw the published initial weights: normal, biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2, padding_mode="reflect")]


def _normed(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels), nn.ReLU()]


def _upsampled(channels: int, how: Upsampling) -> list[nn.Module]:
    """Twice the sides and half the channels."""
    half = channels // 2
    if how == "resize":
        return [nn.Upsample(scale_factor=2), *_convolution(channels, half, 3)]
    return [nn.ConvTranspose2d(channels, half, 3, stride=2, padding=1, output_padding=1)]


def to_range(pictures: Tensor) -> Tensor:
    """Float32 (N, 3, H, W) from -1 to 1 of pictures, uint8 (N, H, W, 3)."""
    return standardised(pictures, MEAN, STD)


def to_pixels(pictures: Tensor) -> Tensor:
    """The inverse of `to_range`."""
    scaled = (pictures.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.round().byte().permute(0, 2, 3, 1)
