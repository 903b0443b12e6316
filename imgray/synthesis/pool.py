"""The pool of earlier fakes that a discriminator is shown: Shrivastava et al., CVPR 2017."""

from __future__ import annotations

import torch
from torch import Tensor


class Pool:
    """Keeps up to `size` pictures. Chance is torch's own generator, which a run seeds by its step.

    Attributes:
        items: those that it keeps (n, C, H, W).
    """

    def __init__(self, size: int) -> None:
        self.size, self.items = size, torch.empty(0)

    def exchange(self, pictures: Tensor) -> Tensor:
        """Pictures (N, C, H, W) of which some are earlier ones, whose places new ones take.

        Until the pool is full all are kept and given back; then each is exchanged for one of the
        pool with a probability of a half.
        """
        if not self.size:
            return pictures
        found = []
        for picture in pictures.detach():
            if len(self.items) < self.size:
                self.items = torch.cat([self.items.to(picture), picture[None]])
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(self.size, ()))
                found.append(self.items[place].clone())
                self.items[place] = picture
                continue
            found.append(picture)
        return torch.stack(found)
