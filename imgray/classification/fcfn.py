"""Fully convolutional fusion networks (FCFN): segments or edges of every pixel, chapter 2.

FCN sums the upsampled class scores of its branches; FCFN weighs them. The abstract of the paper
(Liu, Guo, Georgiou and Lew, "Fusion that matters: convolutional fusion networks for visual
recognition", Multimedia Tools and Applications, 2018) has no more than that; the layers are our
reading.
"""

from torch import Tensor, nn

from imgray.classification.fusion import Fusion, fusion_of
from imgray.classification.sides import SideScores
from imgray.features.trunk import Trunk


class Fcfn(nn.Module):
    """Scores of C classes for every pixel, from all stages of a trunk.

    Every stage gives class scores by a 1x1 convolution and bilinear upsampling. `fusion` "local"
    is FCFN: a weight per class and branch, which starts as the mean; weights per pixel, as in CFN,
    would fix the size of the images. "sum" is FCN. With one class it detects edges, and "local" is
    the weighted fusion of `imgray.classification.rds`.

    `rates` are multipliers for `parameter_groups`. The fusion learns at CFN's 0.1. Under weights of
    1/S the scores of S stages learn at S squared times the rate, as fast as those of a sum: else
    FCFN would lag far behind FCN at an equal budget. Both are our reading.

    Raises:
        UserError: no such fusion.
    """

    def __init__(self, trunk: Trunk, classes: int, fusion: Fusion = "local") -> None:
        super().__init__()
        learnt = fusion in ("local", "shared")
        self.rates = {"fused.": 0.1, "sides.scores.": len(trunk.channels) ** 2} if learnt else {}
        self.sides = SideScores(trunk, classes)
        self.fused = fusion_of(fusion, len(trunk.channels), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) of images, float32 (N, 3, H, W) of any size."""
        logits: Tensor = self.fused(self.sides(images))
        return logits
