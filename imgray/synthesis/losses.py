"""What pictures and verdicts on them lack: the adversarial loss, and two measures."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from imgray.synthesis.generator import to_pixels


def squares(logits: Tensor, wanted: float) -> Tensor:
    """The mean square of what logits lack: LSGAN, Mao et al., ICCV 2017."""
    return (logits.float() - wanted).square().mean()


def differences(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum over pairs of their mean absolute difference: L1."""
    return torch.stack([(one - other).abs().mean() for one, other in pairs]).sum()


def apart(pictures: Tensor, others: Tensor) -> Tensor:
    """The sum over pictures (N, 3, H, W), from -1 to 1, of their mean absolute difference.

    It is told of 0 to 255.
    """
    return (pictures - others).abs().mean(dim=(1, 2, 3)).sum() * 127.5


def similar(pictures: Tensor, others: Tensor) -> Tensor:
    """The sum over such pictures of their structural similarity (Wang et al. 2004), in colour."""
    pairs = zip(*(to_pixels(some).cpu().numpy() for some in (pictures, others)), strict=True)
    return torch.tensor(sum(structural_similarity(*pair, channel_axis=2) for pair in pairs))
