"""How generators and discriminators go down, and the running average of generators."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def adam(nets: Iterable[nn.Module], rate: float, momentum: float) -> torch.optim.Optimizer:
    """Adam over all parameters of some networks that learn; `momentum` is its first beta."""
    parameters = [p for net in nets for p in net.parameters() if p.requires_grad]
    return torch.optim.Adam(parameters, rate, betas=(momentum, 0.999))


def averaged(nets: nn.Module, decay: float) -> AveragedModel:
    """The exponential running average of networks, in `module` of what is given."""
    return AveragedModel(nets, multi_avg_fn=get_ema_multi_avg_fn(decay))
