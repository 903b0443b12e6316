"""Convolutional fusion networks (CFN) and their plain counterparts: chapter 2 of the thesis.

Side branches, 1x1 convolutions with global average pooling, are fused early with the main branch by
a locally-connected module, and one classifier predicts: Liu, Guo and Lew, "On the exploration of
convolutional fusion networks for visual recognition", MMM 2017. Layers, initial values and learning
rates are those of the author's published Caffe files, branches in the order shallow to deep.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from imgray.classification.fusion import Fusion, fusion_of
from imgray.errors import UserError

CONVOLUTION_STD, CLASSIFIER_STD = 0.05, 0.1
FIRST_BIAS = 0.2


class Stage(NamedTuple):
    """Convolutions with ReLU, then pooling of 3x3 pixels and stride 2; a side may branch off."""

    channels: tuple[int, ...]
    pool: Literal["max", "average"] | None = None
    side: bool = False
    kernel: int = 3
    stride: int = 1


class Layout(NamedTuple):
    """A network: its stages, the width K of the fused vector, and what its layers are made of.

    `norm`: batch normalisation after every convolution and the fusion; no biases but those of the
    first convolution and the classifier. `dropout`: before every side branch and the classifier.
    `rates`: multipliers of the learning rate, for `parameter_groups`.
    """

    stages: tuple[Stage, ...]
    features: int
    rates: dict[str, float]
    norm: bool = False
    dropout: float = 0.0
    side_kernel: int = 1


_CFN7 = Layout(
    (
        Stage((96, 96), "max", side=True),
        Stage((192, 192), "average", side=True),
        Stage((192, 192)),
    ),
    features=192,
    rates={"fused.": 0.1},
    dropout=0.5,
)

LAYOUTS = {
    "cfn7": _CFN7,
    "cfn7-wide": _CFN7._replace(
        stages=(Stage((192, 192), "max", side=True), *_CFN7.stages[1:]), side_kernel=3
    ),
    "cfn11": Layout(
        (
            Stage((64,), "max", kernel=7, stride=2),
            Stage((64, 64), "max", side=True),
            Stage((128, 128), "max", side=True),
            Stage((256, 256), "max", side=True),
            Stage((512, 512)),
        ),
        features=1024,
        rates={"main.0.": 10.0},
        norm=True,
    ),
    "cfn7-norm": _CFN7._replace(norm=True, rates={}, dropout=0.0),
}
"""`cfn7` for CIFAR-10 and `cfn7-wide` as published for CIFAR-100 take 32x32 pixels, `cfn11` for
ImageNet 224x224; by global pooling each also takes others. `cfn7-norm` is ours: cfn7 with the
normalisation and rates of cfn11's fusion, which learns in far fewer steps on a small collection,
and without dropout, after which a normalisation meets other variances in evaluation."""


class FusionNet(nn.Module):
    """A CFN, or without fusion the plain network of the same depth.

    Args:
        layout: a name in `LAYOUTS`.
        classes: C of the logits.
        fusion: how the branches are fused; None is the plain network, of the main branch alone. Its
            file is not published: the other layers, dropout too, are taken to stay.
        width: multiplies the channels of every layer. Initial deviations of a narrower net grow by
            1 / sqrt(width), which keeps the scale of its activations: our reading, as the published
            nets have width 1.

    Layers to tap for features, each (N, K): `side1`, `side2` (and `side3` of cfn11), `main`, all
    after global average pooling, and `fused`, after ReLU and before dropout. Parameters count as
    those of the published files: every convolution of cfn7 has a bias; cfn11 has one on its first
    convolution only, a scale and a shift per channel in batch normalisation, and one of each for
    the whole fused vector, which Caffe normalises as a single channel.

    Raises:
        UserError: no such layout or fusion.
    """

    def __init__(
        self, layout: str, classes: int, fusion: Fusion | None = "local", width: float = 1.0
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise UserError(f"no layout {layout!r}; choose among {', '.join(LAYOUTS)}")
        plan = LAYOUTS[layout]
        self.rates = plan.rates
        features = _scaled(plan.features, width)
        self.stages = nn.ModuleList()
        self.sides: dict[int, str] = {}
        channels = 3
        for index, stage in enumerate(plan.stages):
            self.stages.append(_stage(plan, stage, channels, width))
            channels = _scaled(stage.channels[-1], width)
            if stage.side and fusion:
                self.sides[index] = f"side{len(self.sides) + 1}"
                branch = _branch(plan, channels, features, plan.side_kernel)
                self.add_module(self.sides[index], branch)
        self.main = _branch(plan, channels, features, kernel=1)
        if fusion:
            self.fused = _fused(plan, fusion, len(self.sides) + 1, features)
        self.dropout = nn.Dropout(plan.dropout)
        self.classifier = nn.Linear(features, classes)
        _initialise(self, plan, width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images, float32 (N, 3, H, W)."""
        branches = []
        maps = images
        for index, stage in enumerate(self.stages):
            maps = stage(maps)
            if index in self.sides:
                branches.append(self.get_submodule(self.sides[index])(maps))
        feature = self.main(maps)
        if self.sides:
            feature = self.fused(torch.stack([*branches, feature], dim=1))
        logits: Tensor = self.classifier(self.dropout(feature))
        return logits


def layers_of(layout: str, fusion: Fusion | None) -> dict[str, str]:
    """The layers that `high` and `mid` stand for: the feature that is classified, the middle stage.

    At 224 pixels the middle stage of cfn11 has stride 16, as that of other networks has; cfn7 ends
    at stride 4, that of its own.
    """
    middle = len(LAYOUTS[layout].stages) // 2
    return {"high": "fused" if fusion else "main", "mid": f"stages.{middle}"}


class VectorNorm(nn.BatchNorm1d):
    """Batch normalisation of vectors (N, K) as one channel: one mean and variance for all of K."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Normalise vectors (N, K)."""
        return super().forward(vectors[:, None])[:, 0]


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _convolution(norm: bool, layer: nn.Conv2d) -> list[nn.Module]:
    """A convolution, batch normalisation if wanted, and ReLU."""
    return [layer, *([nn.BatchNorm2d(layer.out_channels)] if norm else []), nn.ReLU(inplace=True)]


def _stage(plan: Layout, stage: Stage, channels: int, width: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in stage.channels:
        out = _scaled(wide, width)
        bias = not plan.norm or (stage is plan.stages[0] and not layers)
        padding = stage.kernel // 2
        layer = nn.Conv2d(channels, out, stage.kernel, stage.stride, padding, bias=bias)
        layers += _convolution(plan.norm, layer)
        channels = out
    if stage.pool:
        # Caffe rounds the size of a pooled map up.
        pool = nn.MaxPool2d if stage.pool == "max" else nn.AvgPool2d
        layers.append(pool(3, 2, ceil_mode=True))
    if stage.side and plan.dropout:
        layers.append(nn.Dropout(plan.dropout))
    return nn.Sequential(*layers)


def _branch(plan: Layout, channels: int, features: int, kernel: int) -> nn.Sequential:
    layer = nn.Conv2d(channels, features, kernel, padding=kernel // 2, bias=not plan.norm)
    return nn.Sequential(*_convolution(plan.norm, layer), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _fused(plan: Layout, fusion: Fusion, branches: int, features: int) -> nn.Sequential:
    module = fusion_of(fusion, branches, features, bias=not plan.norm)
    return nn.Sequential(module, *([VectorNorm()] if plan.norm else []), nn.ReLU())


def _initialise(net: FusionNet, plan: Layout, width: float) -> None:
    """Draw weights: normal with the published deviations, or of a normalised net Xavier's uniform.

    Caffe's Xavier has the variance 1 / inputs. Biases are 0, but 0.2 before a normalisation.
    """
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if plan.norm:
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
        else:
            std = CLASSIFIER_STD if isinstance(module, nn.Linear) else CONVOLUTION_STD
            takes_images = name == "stages.0.0"
            nn.init.normal_(module.weight, std=std if takes_images else std / math.sqrt(width))
        if module.bias is not None:
            first = plan.norm and isinstance(module, nn.Conv2d)
            nn.init.constant_(module.bias, FIRST_BIAS if first else 0.0)
