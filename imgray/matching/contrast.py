"""A contrastive loss to compare the bi-rank loss with; it is no part of the thesis.

InfoNCE (van den Oord et al. 2018) in both directions, as CLIP's (Radford et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imgray.matching.bi_rank import Pairs, with_others


@dataclass(frozen=True)
class Contrast:
    """The mean cross-entropy of finding a text's image, and an image's text, among all others.

    temperature: by which scores are divided. Pairs of one image are not others of each other.
    """

    temperature: float = 0.07

    def __call__(self, pairs: Pairs, others: Pairs | None = None) -> Tensor:
        """The loss of a batch, a scalar, as `BiRank` takes it."""
        with torch.autocast(pairs.images.device.type, enabled=False):
            near, both = with_others(pairs, others)
            places = torch.arange(len(near.ids), device=near.ids.device)
            siblings = near.ids[:, None] == both.ids
            siblings[places, places] = False
            losses = [
                F.cross_entropy(
                    (of @ among.T / self.temperature).masked_fill(siblings, -torch.inf), places
                )
                for of, among in ((near.images, both.texts), (near.texts, both.images))
            ]
            return torch.stack(losses).mean()
