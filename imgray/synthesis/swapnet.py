"""SwapGAN's generators: Liu, Chen, Liu and Lew, IEEE TMM 21(9), 2019; thesis chapter 8.

Of the paper the abstract alone is at hand. Found in it: three generators and one discriminator, end
to end; the first generator is conditioned on the pose map, the second on the segmentation map, and
the third preserves the shape of the body. Our reading is

    X_I = G_I(X_t, P_r),    X_II = G_II(X_I, S_r, K_r),    M̂ = G_III(X_II),

with X_t the picture of the person whose clothes are taken, P_r and S_r the pose and segmentation
maps of the reference X_r, and K_r the pixels of X_r that are kept, head and skin, 0 elsewhere: who
the reference is can be told from neither X_t, P_r nor S_r. Our reading is, too, that all three are
residual encoder-decoders (`imgray.synthesis.generator`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from imgray.synthesis.generator import Generator
from imgray.synthesis.pose import COCO18
from imgray.synthesis.swap_settings import SwapSettings


class Conditions(NamedTuple):
    """What is known of the references.

    pose: heat maps (N, 18, H, W); layout: segmentation maps (N, R, H, W) of 0 and 1; kept: their
    pixels (N, 3, H, W) from -1 to 1, 0 where they are not kept.
    """

    pose: Tensor
    layout: Tensor
    kept: Tensor

    @property
    def body(self) -> Tensor:
        """M_r, the masks of the body (N, 1, H, W): 1 where the parsing is not background."""
        return 1 - self.layout[:, :1]


class Painted(NamedTuple):
    """What the generators make.

    stages: the pictures (N, 3, H, W) from -1 to 1 of each, in their order; mask: (N, 1, H, W) from
    0 to 1 of the last, None without the third generator.
    """

    stages: tuple[Tensor, ...]
    mask: Tensor | None

    @property
    def picture(self) -> Tensor:
        """The last picture."""
        return self.stages[-1]


class SwapNet(nn.Module):
    """The three generators, of which settings may leave some out.

    With one stage a single generator sees all that the first two see. Without a weight of mask
    consistency there is no third.
    """

    def __init__(self, settings: SwapSettings) -> None:
        super().__init__()
        self.seen = settings.seen
        pose, layout = len(COCO18), len(settings.regions) + 3 * settings.seen
        single, width = settings.stages == 1, settings.width

        def generator(width: int, inputs: int, outputs: int = 3) -> Generator:
            return Generator(width, settings.blocks, inputs, outputs, settings.upsampling)

        self.first = generator(width, 3 + pose + layout * single)
        self.second = None if single else generator(width, 3 + layout)
        self.third = generator(settings.mask_width, 3, outputs=1) if settings.mask else None

    def forward(self, target: Tensor, conditions: Conditions) -> Painted:
        """Paint the references in the clothes of targets (N, 3, H, W), from -1 to 1."""
        stages = self.paint(target, conditions)
        mask = None if self.third is None else (self.third(stages[-1]) + 1) / 2
        return Painted(stages, mask)

    def paint(self, target: Tensor, conditions: Conditions) -> tuple[Tensor, ...]:
        """The pictures of the stages alone, without the third generator."""
        layout = [conditions.layout, *([conditions.kept] if self.seen else [])]
        if self.second is None:
            return (self.first(torch.cat([target, conditions.pose, *layout], dim=1)),)
        posed = self.first(torch.cat([target, conditions.pose], dim=1))
        return posed, self.second(torch.cat([posed, *layout], dim=1))
