"""Edge detection by relaxed deep supervision (RDS): chapter 3 of the thesis.

Liu and Lew, "Learning relaxed deep supervision for better edge detection", CVPR 2016. The network
is HED's; what differs is what its sides are taught, see `imgray.classification.relaxed`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgray.classification.fusion import LocalFusion
from imgray.classification.relaxed import NEGATIVE, POSITIVE
from imgray.classification.sides import SideScores
from imgray.features.trunk import Trunk

ALPHA, BETA = 9.0, 1.0
"""Weights of edge pixels and of others in the loss: about nine pixels in ten are no edge."""


class Rds(nn.Module):
    """A side output from every stage of a trunk, and their weighted fusion.

    With VGG-16 it is the published network: 1x1 convolutions that start at 0, bilinear upsampling,
    and a fusion that starts as the mean, 0.2 for each of the five sides. For detection, take the
    sigmoid of the fused output alone.

    `rates` are the published multipliers for `parameter_groups`: 100 for conv5, 0.01 for sides and
    fusion. They go with a base rate of 1e-9, since the loss is summed over pixels, and with a
    pretrained VGG-16; of another trunk "conv5" is its last stage, which is our reading.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.rates = {"sides.trunk.stages.4.": 100.0, "sides.scores.": 0.01, "fused.": 0.01}
        self.sides = SideScores(trunk, classes=1)
        self.fused = LocalFusion(len(trunk.channels), channels=1)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of each side and of the fusion, (N, 1, H, W), of float32 (N, 3, H, W)."""
        sides = self.sides(images)
        return list(sides.unbind(dim=1)), self.fused(sides)


def edge_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of one output, equation 3.4: a scalar, summed over pixels and divided by N.

    -9 log P of an edge pixel, -log(1 - P) of another, and of a relaxed pixel exactly 0, as is its
    gradient; P is the sigmoid of the logit. (The thesis prints it without the minus signs.)

    Args:
        logits: float32 (N, 1, H, W).
        targets: (N, H, W), of `relaxed_targets` or the bool truth itself.
    """
    edges = targets == POSITIVE
    weights = ALPHA * edges + BETA * (targets == NEGATIVE)
    pixels = F.binary_cross_entropy_with_logits(
        logits[:, 0], edges.to(logits.dtype), weights.to(logits.dtype), reduction="sum"
    )
    return pixels / len(logits)


def rds_loss(sides: Sequence[Tensor], fused: Tensor, targets: Tensor, truth: Tensor) -> Tensor:
    """The loss of all outputs, equation 3.3: a scalar, all outputs weighing the same.

    Args:
        sides: K logits, float32 (N, 1, H, W).
        fused: logits, float32 (N, 1, H, W).
        targets: uint8 (N, K, H, W) of `relaxed_targets`, one for each side.
        truth: bool (N, H, W), for the fused output; it is never relaxed.

    Raises:
        ValueError: as many targets as sides are needed.
    """
    each = [edge_loss(s, t) for s, t in zip(sides, targets.unbind(dim=1), strict=True)]
    return torch.stack([*each, edge_loss(fused, truth)]).sum()
