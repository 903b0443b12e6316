"""RRF-Net: a branch with a recurrent residual fusion block. Liu et al., ICCV 2017; chapter 5.

Layers and initial values are those of the author's published file (RRF-Net_t=3_train_val.prototxt).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

STD = 0.05
"""Of all initial weights, which are normal; biases begin at 0."""


@dataclass(frozen=True)
class BranchPlan:
    """What a branch is made of; the defaults are as published.

    hidden: outputs of fc1; dim: of all later layers; dropout: after fc1; steps: T of the block,
    which applies fc3 T + 1 times, or None where it is left out; residual: whether a step is added
    to what it starts from; fused: whether all steps are fused, or the last is taken; norm, and
    norm_inputs: whether layers, and inputs, are batch normalised.
    """

    hidden: int = 2048
    dim: int = 512
    dropout: float = 0.5
    steps: int | None = 3
    residual: bool = True
    fused: bool = True
    norm: bool = True
    norm_inputs: bool = True


class Branch(nn.Sequential):
    """Vectors (N, d) to embeddings (N, D), which are not yet of unit length.

    BN, fc1, ReLU, dropout, fc2, BN, ReLU, the block, fc4, BN.

    Args:
        inputs: d.
        plan: all else.
    """

    def __init__(self, inputs: int, plan: BranchPlan) -> None:
        block = [] if plan.steps is None else [Block(plan)]
        super().__init__(
            _norm(inputs, plan.norm_inputs),
            nn.Linear(inputs, plan.hidden),
            nn.ReLU(),
            nn.Dropout(plan.dropout),
            nn.Linear(plan.hidden, plan.dim),
            _norm(plan.dim, plan.norm),
            nn.ReLU(),
            *block,
            nn.Linear(plan.dim, plan.dim),
            _norm(plan.dim, plan.norm),
        )
        initialise(self)


class Block(nn.Module):
    """Recurrent residual fusion, of vectors (N, D).

    x_t = x_{t−1} + ReLU(BN_t(W x_{t−1} + b)) for t = 0..T, from the block's input on: one layer is
    shared by all steps, and each has a normalisation of its own. A 1x1 convolution over the steps,
    of T + 1 weights and a bias that all positions share, fuses x_0..x_T; behind it come batch
    normalisation, of one mean and variance for all positions as Caffe's of one channel, and ReLU.

    Args:
        plan: of the branch; `steps` is a number.
    """

    def __init__(self, plan: BranchPlan) -> None:
        super().__init__()
        self.residual = plan.residual
        self.shared = nn.Linear(plan.dim, plan.dim)
        applied = (plan.steps or 0) + 1
        self.norms = nn.ModuleList(_norm(plan.dim, plan.norm) for _ in range(applied))
        fusion = nn.Conv1d(applied, 1, kernel_size=1), _norm(1, plan.norm), nn.ReLU()
        self.fusion = nn.Sequential(*fusion, nn.Flatten()) if plan.fused else None

    def forward(self, vectors: Tensor) -> Tensor:
        """The fused steps (N, D), or the last."""
        steps = []
        for norm in self.norms:
            step = norm(self.shared(vectors)).relu()
            vectors = vectors + step if self.residual else step
            steps.append(vectors)
        fused: Tensor = vectors if self.fusion is None else self.fusion(torch.stack(steps, dim=1))
        return fused


def initialise(net: nn.Module) -> None:
    """Draw the published initial weights."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.normal_(module.weight, std=STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _norm(dim: int, wanted: bool) -> nn.Module:
    return nn.BatchNorm1d(dim) if wanted else nn.Identity()
