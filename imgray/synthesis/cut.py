"""What is learnt from of a picture: a crop of it squashed to a square, perhaps mirrored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgray.data import pixels


@dataclass(frozen=True)
class Cut:
    """A square of `crop` pixels from a picture squashed to one of `side`."""

    side: int
    crop: int
    top: int = 0
    left: int = 0
    mirrored: bool = False

    def of(self, data: bytes) -> NDArray[np.uint8]:
        """That part of an encoded picture, uint8 (crop, crop, 3). Raises `pixels.Rejected`."""
        whole = pixels.resize(pixels.decode(data, self.side), self.side)
        found = whole[self.top : self.top + self.crop, self.left : self.left + self.crop]
        return found[:, :: -1 if self.mirrored else 1]
