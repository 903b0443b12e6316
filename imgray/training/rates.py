"""Learning rates by parameter: the multipliers of Caffe's layers as groups of a torch optimiser."""

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import nn

BIAS_RATE = 2.0


class Group(TypedDict):
    """Parameters that share a learning rate and a weight decay."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def parameter_groups(
    net: nn.Module, lr: float, weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[Group]:
    """Group a network's trainable parameters for `torch.optim.SGD`.

    As in the author's published files, a bias learns at twice the rate of its layer and does not
    decay. (Those of the ImageNet net decay the shifts of batch normalisation; here they are biases
    like any other.)

    Args:
        net: the network.
        lr: the base learning rate.
        weight_decay: of every parameter but biases.
        rates: multipliers of `lr` by the start of a parameter's name, the longest match counts and
            other parameters have 1; by default those of the network, its attribute `rates`.

    Returns:
        Groups in the order of their first parameter.
    """
    known: Mapping[str, float] = getattr(net, "rates", {}) if rates is None else rates
    groups: dict[tuple[float, bool], Group] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        bias = name.endswith("bias")
        start = max((s for s in known if name.startswith(s)), key=len, default="")
        rate = known.get(start, 1.0) * (BIAS_RATE if bias else 1.0)
        group = Group(params=[], lr=lr * rate, weight_decay=0.0 if bias else weight_decay)
        groups.setdefault((rate, bias), group)["params"].append(parameter)
    return list(groups.values())


def sgd(
    net: nn.Module,
    lr: float,
    momentum: float,
    weight_decay: float,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.SGD:
    """Stochastic gradient descent with these groups."""
    groups: list[Any] = list(parameter_groups(net, lr, weight_decay, rates))
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)
