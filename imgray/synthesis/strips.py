"""A generator over a picture of any size in bounded memory: layer by layer, strip by strip.

Instance normalisation takes its statistics from the whole picture, so tiles that are translated by
themselves differ in colour. Here a layer runs over strips of rows, with what it needs beyond them,
and leaves its maps in a file with the statistics of all of them; the next one normalises them as it
reads. So every convolution runs once, and what comes out is what the whole picture at once would
give, but for rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from imgray.data.pixels import Rejected
from imgray.data.scratch import read, unnamed_file, write
from imgray.synthesis.generator import Residual, to_pixels, to_range
from imgray.training.task import NOT_FINITE
from imgray.training.wanted import check_wanted

STRIP = 2**20
"""Values of a strip, about: 4 MB in float32, which the allocator keeps, as it does not 16 MB."""


class Source(ABC):
    """Maps of a size that are read by rows.

    Attributes:
        shape: C, H, W.
    """

    shape: tuple[int, int, int]

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Some rows (1, C, h, W), float32."""


class Pixels(Source):
    """A picture, uint8 (H, W, C), from -1 to 1."""

    def __init__(self, picture: NDArray[np.uint8]) -> None:
        self.picture = picture
        height, width, channels = picture.shape
        self.shape = channels, height, width

    def read(self, start: int, stop: int) -> Tensor:
        return to_range(torch.tensor(self.picture[start:stop])[None])


class Maps(Source):
    """Maps in a file without a name, row by row, and what is done to them as they are read."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.shape = channels, height, width
        self.file = unnamed_file()
        self.sums = torch.zeros(2, channels, dtype=torch.float64)
        self.shift: Tensor | None = None
        self.steps: list[Callable[[Tensor], Tensor]] = []  # may change the rows that they are given

    def write(self, start: int, rows: Tensor) -> None:
        """Keep rows from a place on, and add them to the statistics.

        Those are of what lies beyond the mean of the first rows: of a channel whose mean is large
        beside its spread, the squares themselves would leave no digits for the variance.
        """
        if self.shift is None:
            self.shift = rows[0].mean(dim=(1, 2), dtype=torch.float64).float()[:, None, None]
        beyond = rows[0] - self.shift
        sums = [one.sum(dim=2).sum(dim=1, dtype=torch.float64) for one in (beyond, beyond.square())]
        self.sums += torch.stack(sums).cpu()
        data = rows[0].transpose(0, 1).contiguous().float().cpu().numpy()
        self.file.seek(start * self._row)
        write(self.file, data.data)

    def read(self, start: int, stop: int) -> Tensor:
        channels, _, width = self.shape
        data = np.empty((stop - start, channels, width), np.float32)
        self.file.seek(start * self._row)
        read(self.file, data)
        rows = torch.from_numpy(data).transpose(0, 1)[None]
        for step in self.steps:
            rows = step(rows)
        return rows

    def normalise(self, eps: float) -> None:
        """From now on rows are read as instance normalisation makes them."""
        _, height, width = self.shape
        mean, square = self.sums / (height * width)
        factor = (square - mean.square()).clamp(min=0).add(eps).rsqrt().float()[:, None, None]
        assert self.shift is not None
        shift = mean.float()[:, None, None] + self.shift.cpu()
        self.steps.append(lambda rows: rows.sub_(shift).mul_(factor))

    @property
    def _row(self) -> int:
        return 4 * self.shape[0] * self.shape[2]


class Doubled(Source):
    """Maps at twice their height and width, by nearest neighbours."""

    def __init__(self, maps: Source) -> None:
        self.maps = maps
        channels, height, width = maps.shape
        self.shape = channels, 2 * height, 2 * width

    def read(self, start: int, stop: int) -> Tensor:
        first = start // 2
        rows = F.interpolate(self.maps.read(first, -(-stop // 2)), scale_factor=2)
        return rows[:, :, start - 2 * first : stop - 2 * first]


def run(layers: Iterable[nn.Module], maps: Source, device: str = "cpu") -> Source:
    """What layers make of maps, those of a `Generator` or some of them.

    Args:
        layers: in their order.
        maps: a picture, or what other layers have made.
        device: where the layers are.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            maps = _convolved(layer, maps, device)
        elif isinstance(layer, nn.ConvTranspose2d):
            maps = _transposed(layer, maps, device)
        elif isinstance(layer, nn.Upsample):
            maps = Doubled(maps)
        elif isinstance(layer, Residual):
            maps = _summed(maps, run(layer.body, maps, device))
        else:
            assert isinstance(maps, Maps)
            _follow(layer, maps)
    return maps


def picture_of(maps: Source) -> NDArray[np.uint8]:
    """Maps from -1 to 1 as a picture (H, W, C).

    Raises:
        Rejected: numbers among them are not finite.
    """
    channels, height, width = maps.shape
    found = np.empty((height, width, channels), np.uint8)
    for start, stop in _strips(height, channels * width):
        rows = maps.read(start, stop)
        if not rows.isfinite().all():
            raise Rejected(NOT_FINITE)
        found[start:stop] = to_pixels(rows)[0].numpy()
    return found


def _follow(layer: nn.Module, maps: Maps) -> None:
    """What is done as rows are read."""
    if isinstance(layer, nn.InstanceNorm2d):
        maps.normalise(layer.eps)
    elif isinstance(layer, nn.ReLU | nn.Tanh):
        maps.steps.append(torch.relu_ if isinstance(layer, nn.ReLU) else torch.tanh_)
    else:
        raise TypeError(f"no way to run {type(layer).__name__} by strips")


def _convolved(layer: nn.Conv2d, maps: Source, device: str) -> Maps:
    _, height, width = maps.shape
    size, stride, border = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    mode = "reflect" if layer.padding_mode == "reflect" else "constant"
    sides = ((length + 2 * border - size) // stride + 1 for length in (height, width))
    found = Maps(layer.out_channels, *sides)
    for start, stop in _strips(found.shape[1], _values(maps, found, stride)):
        first, last = start * stride - border, (stop - 1) * stride - border + size
        inside = max(first, 0), min(last, height)
        rows = maps.read(*inside).to(device)
        rows = F.pad(rows, (border, border, inside[0] - first, last - inside[1]), mode)
        found.write(start, F.conv2d(rows, layer.weight, layer.bias, stride))
    return found


def _transposed(layer: nn.ConvTranspose2d, maps: Source, device: str) -> Maps:
    """Of size 3, stride 2 and padding 1: two rows are made of one and the next."""
    _, height, width = maps.shape
    found = Maps(layer.out_channels, 2 * height, 2 * width)
    for start, stop in _strips(height, _values(maps, found, 1)):
        rows = maps.read(start, min(stop + 1, height)).to(device)
        made: Tensor = layer(rows)
        found.write(2 * start, made[:, :, : 2 * (stop - start)])
    return found


def _summed(maps: Source, others: Source) -> Maps:
    found = Maps(*maps.shape)
    for start, stop in _strips(found.shape[1], _values(maps, found, 1)):
        found.write(start, maps.read(start, stop).add_(others.read(start, stop)))
    return found


def _values(maps: Source, found: Maps, stride: int) -> int:
    """Of a row of what is made, and of the rows that it is made of."""
    return max(source.shape[0] * source.shape[2] for source in (maps, found)) * stride


def _strips(height: int, values: int) -> Iterator[tuple[int, int]]:
    """Rows that go together, of so many values each."""
    rows = max(1, STRIP // values)
    for start in range(0, height, rows):
        check_wanted()
        yield start, min(start + rows, height)
