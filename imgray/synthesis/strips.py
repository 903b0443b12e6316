"""A generator over a picture of any size in bounded memory: layer by layer, strip by strip.

Instance normalisation takes its statistics from the whole picture, so tiles that are translated by
themselves differ in colour. Here a layer runs over strips of rows, with what it needs beyond them,
and leaves its maps in a file, and the statistics over all of it; the next layer normalises as it
reads. That is each convolution once, and what it gives is what the whole picture gives, but for
rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from imgray.synthesis.generator import STRIDE, Generator, Residual

STRIP = 2**22
"""Values of a strip: 16 MB in float32."""


class Maps:
    """Maps (C, H, W), float32, in a file without a name, row by row.

    Attributes:
        finish: what is done to rows (1, C, h, W) as they are read.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.shape = channels, height, width
        self.file: IO[bytes] = tempfile.TemporaryFile(prefix="imgray-", buffering=0)
        self.finish: Callable[[Tensor], Tensor] = lambda rows: rows
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def write(self, start: int, rows: Tensor) -> None:
        """Keep rows (1, C, h, W) from a place on, and add them to the statistics."""
        wide = rows[0].double()
        self.sums[0] += wide.sum(dim=(1, 2)).cpu()
        self.sums[1] += wide.square().sum(dim=(1, 2)).cpu()
        data = rows[0].permute(1, 0, 2).contiguous().float().cpu().numpy()
        self.file.seek(start * self._row)
        left = memoryview(data.reshape(-1)).cast("B")
        while left:
            left = left[self.file.write(left) :]

    def read(self, start: int, stop: int) -> Tensor:
        """Rows (1, C, h, W), finished."""
        channels, _, width = self.shape
        self.file.seek(start * self._row)
        data = np.frombuffer(bytearray(self.file.read((stop - start) * self._row)), np.float32)
        rows = torch.from_numpy(data.reshape(stop - start, channels, width))
        return self.finish(rows.permute(1, 0, 2)[None])

    def normalised(self, eps: float) -> None:
        """From now on rows are read as instance normalisation makes them."""
        _, height, width = self.shape
        mean, square = self.sums / (height * width)
        scale = (square - mean.square()).clamp(min=0).add(eps).rsqrt()
        first, (mean, scale) = self.finish, (v.float()[:, None, None] for v in (mean, scale))
        self.finish = lambda rows: (first(rows) - mean) * scale

    @property
    def _row(self) -> int:
        return 4 * self.shape[0] * self.shape[2]
