"""The 70x70 PatchGAN: Isola et al., CVPR 2017, as CycleGAN has it, with instance normalisation."""

from __future__ import annotations

from torch import nn

from imgray.synthesis.generator import initialise


class PatchDiscriminator(nn.Sequential):
    """Whether each patch of a picture is real: (N, inputs, H, W) to logits (N, 1, h, w).

    C64, C128, C256, C512 and one more convolution, all of 4x4; the last two have stride 1. With
    three strided layers a logit sees 70 x 70 pixels.

    Args:
        width: channels of the first layer; 64 as published.
        layers: strided ones; 3 as published.
        inputs: channels.
    """

    def __init__(self, width: int = 64, layers: int = 3, inputs: int = 3) -> None:
        body: list[nn.Module] = [nn.Conv2d(inputs, width, 4, stride=2, padding=1)]
        body.append(nn.LeakyReLU(0.2))
        before = width
        for layer in range(1, layers + 1):
            after = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            body += [
                nn.Conv2d(before, after, 4, stride, padding=1),
                nn.InstanceNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        super().__init__(*body, nn.Conv2d(before, 1, 4, padding=1))
        initialise(self)
