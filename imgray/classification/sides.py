"""Side outputs: scores from every stage of a trunk, as FCFN and RDS have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgray.features.trunk import Trunk


class SideScores(nn.Module):
    """Scores of C classes from every stage of a trunk, upsampled to the size of the images.

    A side is a 1x1 convolution, whose weights and biases start at 0 as in the published RDS, and
    bilinear upsampling. The published deconvolutions start as bilinear and hardly learn (their rate
    is 0.01); here they stay so.
    """

    def __init__(self, trunk: Trunk, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.scores = nn.ModuleList(nn.Conv2d(c, classes, 1) for c in trunk.channels)
        for score in self.scores:
            for parameter in score.parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, S, C, H, W) of images, float32 (N, 3, H, W) of any size.

        The images are continued by their last pixels to whole strides, so that every map lies
        exactly on its pixels.
        """
        height, width = images.shape[-2:]
        stride = self.trunk.strides[-1]
        right, down = -width % stride, -height % stride
        whole = F.pad(images, (0, right, 0, down), mode="replicate")
        sides = [
            F.interpolate(score(maps), whole.shape[-2:], mode="bilinear", align_corners=False)
            for score, maps in zip(self.scores, self.trunk(whole), strict=True)
        ]
        return torch.stack(sides, dim=1)[..., :height, :width]
