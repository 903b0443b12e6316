"""Trunks: a classification network's convolutions, tapped where their stride is about to grow."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from imgray.errors import UserError
from imgray.features.vision import torchvision

VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
"""Convolutions and channels of its five stages."""

TRUNKS = {
    "vgg16": (4, 9, 16, 23, 30),
    "mobilenet_v2": (2, 4, 7, 14, 18),
    **{f"tf_efficientnet_lite{n}": (3, 4, 5, 7, 9) for n in range(3)},
}
"""Where each stage ends among a network's layers. Of VGG-16 these are the ReLU of conv1_2, conv2_2,
conv3_3, conv4_3 and conv5_3, at strides 1 to 16; of the others the last block at each stride of 2
to 32."""


class Trunk(nn.Module):
    """The five stages of a network, which give maps at growing strides.

    Args:
        name: a name in `TRUNKS`.
        net: the network of timm or torchvision with its weights, say of
            `imgray.features.weights.load`; its layers are taken over and made trainable. By
            default its layers with random weights.
        width: multiplies the channels of a fresh VGG-16, for nets that train on a CPU.

    Attributes:
        channels: of each stage's map.
        strides: of each stage's map, in pixels of the input.

    Raises:
        UserError: no such trunk, or a width for a network that has none.
    """

    def __init__(self, name: str, net: nn.Module | None = None, width: float = 1.0) -> None:
        super().__init__()
        if name not in TRUNKS:
            raise UserError(f"no trunk {name!r}; choose among {', '.join(TRUNKS)}")
        if width != 1.0 and (net is not None or name != "vgg16"):
            raise UserError(f"{name}: only a fresh vgg16 has a width; leave it at 1")
        layers = vgg16_layers(width) if net is None and name == "vgg16" else _layers(name, net)
        ends = TRUNKS[name]
        self.stages = nn.ModuleList(
            nn.Sequential(*layers[start:end]) for start, end in zip((0, *ends), ends, strict=False)
        )
        self.requires_grad_(True)
        self.channels, self.strides = _measure(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The map (N, C_s, H / stride_s, W / stride_s) of every stage, of float32 (N, 3, H, W)."""
        return list(self._maps(images))

    def _maps(self, maps: Tensor) -> Iterator[Tensor]:
        for stage in self.stages:
            maps = stage(maps)
            yield maps


def vgg16_layers(width: float = 1.0) -> list[nn.Module]:
    """The convolutions of VGG-16 with ReLU and the four poolings between them, weights by He."""
    layers: list[nn.Module] = []
    channels = 3
    for number, (count, wide) in enumerate(VGG16):
        if number:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            out = max(1, round(wide * width))
            layer = nn.Conv2d(channels, out, 3, padding=1)
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU(inplace=True)]
            channels = out
    return layers


def _layers(name: str, net: Any) -> list[nn.Module]:
    """A network's layers in order, without its classifier; a fresh one's if there is no network."""
    if name.startswith("tf_"):
        import timm  # takes a second

        net = net or timm.create_model(name)
        return [net.conv_stem, net.bn1, *net.blocks]
    return list((net or torchvision().models.get_model(name)).features)


def _measure(trunk: Trunk) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of a trunk's maps, by a forward pass over an empty picture."""
    side = 64
    with torch.inference_mode():
        maps = trunk.eval()(torch.zeros(1, 3, side, side))
    trunk.train()
    return tuple(m.shape[1] for m in maps), tuple(side // m.shape[2] for m in maps)
