"""Fusion of a network's branches, of vectors or of maps: chapter 2 of the thesis."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from imgray.errors import UserError

Fusion = Literal["local", "shared", "sum", "max"]


class LocalFusion(nn.Module):
    """The locally-connected fusion of CFN: a weight per branch and channel, and a bias per channel.

    Chapter 2: g_i = sum over s of W_si g_i^(s) + b_i, over branches (N, S, K) or (N, S, K, H, W).
    It starts as the mean, W = 1/S and b = 0. Of maps it is a 1x1 convolution grouped by channel:
    weights cannot belong to pixels where images differ in size.
    """

    def __init__(self, branches: int, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((branches, channels), 1 / branches))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, branches: Tensor) -> Tensor:
        """Fuse branches (N, S, K, ...) into (N, K, ...)."""
        trailing = (1,) * (branches.ndim - 3)
        fused = (branches * self.weight.view(*self.weight.shape, *trailing)).sum(dim=1)
        return fused if self.bias is None else fused + self.bias.view(-1, *trailing)


class SharedFusion(LocalFusion):
    """A weight per branch and a bias, for all channels: a 1x1 convolution over the branches."""

    def __init__(self, branches: int, bias: bool = True) -> None:
        super().__init__(branches, 1, bias)


class SumFusion(nn.Module):
    """The sum of the branches: local fusion with all weights 1."""

    def forward(self, branches: Tensor) -> Tensor:
        """Fuse branches (N, S, K, ...) into (N, K, ...)."""
        return branches.sum(dim=1)


class MaxFusion(nn.Module):
    """The largest of the branches in every channel."""

    def forward(self, branches: Tensor) -> Tensor:
        """Fuse branches (N, S, K, ...) into (N, K, ...)."""
        return branches.amax(dim=1)


def fusion_of(kind: Fusion, branches: int, channels: int, bias: bool = True) -> nn.Module:
    """Build a fusion of S branches of K channels by its name.

    Raises:
        UserError: no such fusion.
    """
    if kind == "local":
        return LocalFusion(branches, channels, bias)
    if kind == "shared":
        return SharedFusion(branches, bias)
    if kind in get_args(Fusion):
        return SumFusion() if kind == "sum" else MaxFusion()
    raise UserError(f"no fusion {kind!r}; choose among {', '.join(get_args(Fusion))}")
