"""Pretrained networks as extractors of several layers, their preprocessing with them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from imgray.config import Precision
from imgray.errors import UserError

PROBE = 224
MID_STRIDE = 16


class Colours(BaseModel):
    """The mean and deviation by which a network standardises RGB from 0 to 1, per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class BackboneConfig(BaseModel):
    """Everything but the tensors that determines a network's features.

    `layers` maps the name that a user gave (`mid`, `high`, or a module's dotted path) to the path
    of the module whose output is taken. `size` is the side of the square input in pixels; `mean`
    and `std` are per RGB channel of values scaled to 0..1. With the library `imgray`, `net` is a
    class, as `package.module:Class`, that is called with `arguments`; other nets have none. `space`
    is that of a dual encoder's picture tower, as `TextNet.space` of its text tower.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: Literal["timm", "torchvision", "imgray"]
    net: str
    arguments: dict[str, Any] = {}
    layers: dict[str, str]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: Precision = "float32"
    space: str = ""
    fingerprint: str = ""

    @model_serializer(mode="wrap")
    def _known_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a space that is none, as versions that know of none read it."""
        found: dict[str, Any] = dump(self)
        return found if self.space else {k: v for k, v in found.items() if k != "space"}


class Backbone(nn.Module):
    """A network that gives pooled features of several of its layers from one forward pass."""

    def __init__(self, net: nn.Module, config: BackboneConfig) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.config = config
        self.prefix_tokens = int(getattr(net, "num_prefix_tokens", 1))
        self.to(memory_format=torch.channels_last)
        found = fingerprint(config, net.state_dict())
        if config.fingerprint and config.fingerprint != found:
            raise UserError(
                f"{config.net}: these weights have fingerprint {found[:12]}, but "
                f"{config.fingerprint[:12]} is expected; use the weights that made the features"
            )
        self.config = config.model_copy(update={"fingerprint": found})

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.net.parameters()).device

    @torch.inference_mode()
    def forward(self, images: Tensor, grids: Sequence[int] = (1,)) -> dict[str, Tensor]:
        """Features of a batch.

        Args:
            images: uint8 (B, size, size, 3).
            grids: the levels of the spatial pyramid; a level g splits the map into g x g regions.

        Returns:
            For every layer float32 (B, R, C), R the sum of the squared grids, each vector of
            unit length: average-pooled over its region of the layer's output.
        """
        batch = standardised(images.to(self.device), self.config.mean, self.config.std)
        batch = batch.contiguous(memory_format=torch.channels_last)
        bf16 = self.config.precision == "bfloat16"
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
            return self._tap(batch, grids)

    def _tap(self, batch: Tensor, grids: Sequence[int]) -> dict[str, Tensor]:
        """Pool each layer inside its hook: a later in-place operation cannot change the result."""
        found: dict[str, Tensor] = {}
        handles = []
        for name, path in self.config.layers.items():

            def hook(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                try:
                    found[name] = pool(as_map(output, self.prefix_tokens), grids)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from None

            handles.append(self.net.get_submodule(path).register_forward_hook(hook))
        try:
            self.net(batch)
        finally:
            for handle in handles:
                handle.remove()
        return {name: found[name] for name in self.config.layers}


def visible_device() -> str:
    """Where networks run in this process: on the GPU that it sees, else on the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def as_map(output: Any, prefix_tokens: int = 1) -> Tensor:
    """View a layer's output as a map (B, C, H, W).

    Convolutional maps stay; tokens (B, N, C) of a transformer lose their prefix tokens and are
    laid out as the square they came from; a vector (B, C) is a map of one cell.
    """
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        raise UserError("the layer's output is neither a map, nor tokens, nor a vector")
    if output.ndim == 4:
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.permute(0, 3, 1, 2) if channels_last else output
    if output.ndim == 2:
        return output[:, :, None, None]
    for prefix in (prefix_tokens, 0, 1):
        side = math.isqrt(max(0, output.shape[1] - prefix))
        if side and side * side == output.shape[1] - prefix:
            tokens = output[:, prefix:].transpose(1, 2)
            return tokens.reshape(output.shape[0], -1, side, side)
    raise UserError(f"{output.shape[1]} tokens do not form a square")


def pool(maps: Tensor, grids: Sequence[int]) -> Tensor:
    """Average-pool maps (B, C, H, W) over the regions of a pyramid: unit float32 (B, R, C)."""
    if maps.shape[-1] == maps.shape[-2] == 1 and max(grids) > 1:
        raise UserError("a layer without spatial extent has no regions; use --crop-regions")
    levels = [F.adaptive_avg_pool2d(maps.float(), g).flatten(2) for g in grids]
    return F.normalize(torch.cat(levels, dim=2).transpose(1, 2), dim=2)


def regions_of(image: Image.Image, size: int, grids: Sequence[int]) -> NDArray[np.uint8]:
    """The regions of a pyramid cut from the picture itself: uint8 (R, size, size, 3)."""
    crops = []
    for g in grids:
        width, height = image.width / g, image.height / g
        for row in range(g):
            for column in range(g):
                box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
                crop = image.resize(
                    (size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0
                )
                crops.append(np.asarray(crop, dtype=np.uint8))
    return np.stack(crops)


def fingerprint(config: BackboneConfig, state: dict[str, Tensor]) -> str:
    """SHA-256 over a network's architecture, preprocessing, precision and every tensor.

    The layers are left out: features of one net carry one fingerprint, and a layer its name; and so
    are arguments where there are none, and the space, which the tensors tell.
    """
    without = {"fingerprint", "layers", "space"} | (set() if config.arguments else {"arguments"})
    settings = config.model_dump(mode="json", exclude=without)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Misfit(NamedTuple):
    """A tensor whose shape in a network is not the one given; None where it is missing."""

    name: str
    own: tuple[int, ...] | None
    given: tuple[int, ...] | None


def misfits(net: nn.Module, state: Mapping[str, Tensor]) -> list[Misfit]:
    """The tensors of a network's state and of a given one that differ in shape, by name."""
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    pairs = [Misfit(n, own.get(n), given.get(n)) for n in sorted(own.keys() | given.keys())]
    return [pair for pair in pairs if pair.own != pair.given]


def standardised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Float32 (B, 3, H, W) of images, uint8 (B, H, W, 3), scaled to 0..1 and per channel."""
    centre = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    spread = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return (images.permute(0, 3, 1, 2).float() / 255 - centre) / spread


def layer_paths(
    net: nn.Module, names: Sequence[str], size: int = PROBE, own: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Find the modules behind layer names by one forward pass over an empty picture.

    `high` is the last map before pooling, of a whole stage rather than of a part of one; `mid`
    the last stage whose stride is 16 pixels; any other name is a module's dotted path. `own` has
    the paths of names that mean something else in this network. Raises `UserError` with the stages
    that exist.
    """
    shapes = _trace(net, size)
    maps = [path for path, (_, height) in shapes.items() if height > 1]
    if not maps:
        raise UserError("the network has no spatial map")
    last = [path for path in maps if shapes[path][1] <= shapes[maps[-1]][1]]
    high = [path for path in last if path.count(".") == min(p.count(".") for p in last)][-1]
    known = {"high": high, **(own or {})}

    def stage(path: str) -> int:
        return round(math.log2(size / shapes[path][1]))

    def find(name: str) -> str:
        if name in known:
            return known[name]
        if name == "mid":
            at_stride = [p for p in maps if stage(p) == int(math.log2(MID_STRIDE))]
            depth = min((p.count(".") for p in at_stride), default=0)
            found = [p for p in at_stride if p.count(".") == depth]
            if found and stage(high) != stage(found[-1]):
                return found[-1]
        elif name in shapes:
            return name
        stages = ", ".join(p for p in shapes if p.count(".") <= 1)
        raise UserError(f"no layer {name!r}; choose among {', '.join(known)}, {stages}")

    return {name: find(name) for name in names}


def _trace(net: nn.Module, size: int) -> dict[str, tuple[int, int]]:
    """Channels and height of every module's output, in order of execution."""
    shapes: dict[str, tuple[int, int]] = {}
    prefix = int(getattr(net, "num_prefix_tokens", 1))

    def record(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            try:
                maps = as_map(output, prefix)
            except UserError:
                return
            shapes.pop(path, None)
            shapes[path] = (maps.shape[1], maps.shape[2])

        return hook

    handles = [m.register_forward_hook(record(p)) for p, m in net.named_modules() if p]
    try:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:
        raise UserError(f"the network does not take {size} x {size} pixels: {error}") from None
    finally:
        for handle in handles:
            handle.remove()
    return shapes
