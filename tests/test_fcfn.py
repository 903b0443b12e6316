"""Trunks against the libraries' networks, and class scores of every pixel."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from imgray.classification.fcfn import Fcfn
from imgray.classification.fusion import Fusion, LocalFusion
from imgray.classification.rds import Rds
from imgray.classification.sides import SideScores
from imgray.errors import UserError
from imgray.features.trunk import TRUNKS, Trunk, vgg16_layers
from imgray.training.rates import parameter_groups, sgd


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _small() -> Trunk:
    torch.manual_seed(0)
    return Trunk("vgg16", width=1 / 16)


def _stir(module: nn.Module) -> None:
    """Give parameters that start alike values of their own."""
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = 0.5 * _random(*parameter.shape, seed=seed)


@pytest.mark.parametrize("name", TRUNKS)
def test_a_trunk_has_five_maps_at_doubling_strides(name: str) -> None:
    trunk = Trunk(name)
    first = 1 if name == "vgg16" else 2
    assert trunk.strides == tuple(first * 2**n for n in range(5))
    maps = trunk.eval()(torch.zeros(1, 3, 32, 64))
    shapes = [(c, 32 // s, 64 // s) for c, s in zip(trunk.channels, trunk.strides, strict=True)]
    assert [tuple(m.shape[1:]) for m in maps] == shapes


def test_vgg16_has_the_layers_of_torchvision() -> None:
    with torch.device("meta"):
        published = list(torchvision.models.vgg16().features)[:30]
    ours = vgg16_layers()
    assert [str(layer) for layer in ours] == [str(layer) for layer in published]
    assert Trunk("vgg16").channels == (64, 128, 256, 512, 512)
    assert [str(stage[-1]) for stage in Trunk("vgg16").stages] == ["ReLU(inplace=True)"] * 5


def test_a_trunk_of_timm_gives_the_maps_of_its_features() -> None:
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    features = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    features.load_state_dict(net.state_dict(), strict=False)
    trunk = Trunk("tf_efficientnet_lite0", net.requires_grad_(False)).eval()
    images = _random(1, 3, 64, 96)
    for found, expected in zip(trunk(images), features(images), strict=True):
        torch.testing.assert_close(found, expected)
    assert trunk.channels == tuple(features.feature_info.channels())
    assert all(p.requires_grad for p in trunk.parameters())


def test_a_trunk_of_torchvision_ends_its_stages_where_maps_shrink() -> None:
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2()  # in training: its normalisation keeps values apart
    outputs: list[Tensor] = []
    for layer in net.features[:18]:
        layer.register_forward_hook(lambda _, __, out: outputs.append(out))
    images = _random(2, 3, 64, 64)
    net(images)
    sides = [out.shape[-1] for out in outputs] + [1]
    last = [out for out, after in zip(outputs, sides[1:], strict=True) if after < out.shape[-1]]
    maps = Trunk("mobilenet_v2", net)(images)
    assert len(maps) == len(last) == 5
    for found, expected in zip(maps, last, strict=True):
        torch.testing.assert_close(found, expected)


def test_scores_are_convolutions_upsampled_bilinearly() -> None:
    sides = SideScores(_small(), 3)
    assert not sides(_random(1, 3, 16, 16)).any()  # they start at 0
    _stir(sides.scores)
    images = _random(2, 3, 32, 48)
    scores = sides(images)
    for number, (maps, score) in enumerate(zip(sides.trunk(images), sides.scores, strict=True)):
        weighed = torch.einsum("nkhw,ck->nchw", maps, score.weight[:, :, 0, 0])
        weighed = weighed + score.bias.view(1, -1, 1, 1)
        up = nn.Upsample((32, 48), mode="bilinear")(weighed)
        torch.testing.assert_close(scores[:, number], up, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 40), (33, 15)])
@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2", "tf_efficientnet_lite0"])
def test_any_size_gives_logits_of_that_size(name: str, size: tuple[int, int]) -> None:
    net = Fcfn(_small() if name == "vgg16" else Trunk(name), 4).eval()
    _stir(net.sides.scores)
    logits = net(_random(2, 3, *size))
    assert logits.shape == (2, 4, *size)
    assert torch.isfinite(logits).all()


def test_pixels_beyond_whole_strides_do_not_move_the_others() -> None:
    """Far from the border, the scores of a picture and of its upper left part are the same."""
    net = Fcfn(_small(), 2).eval()
    _stir(net.sides.scores)
    image = _random(1, 3, 405, 16)
    whole, part = net(image), net(image[:, :, :391])
    torch.testing.assert_close(whole[:, :, :200], part[:, :, :200])


@pytest.mark.parametrize("fusion", ["local", "shared", "sum", "max"])
@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2", "tf_efficientnet_lite0"])
def test_every_net_learns_in_all_its_parameters(name: str, fusion: str) -> None:
    net = Fcfn(_small() if name == "vgg16" else Trunk(name), 3, fusion)
    _stir(net.sides.scores)
    truth = torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(net(_random(2, 3, 32, 32)), truth).backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
    assert all(p.grad.abs().sum() > 0 for p in net.sides.scores.parameters())
    assert all(p.grad.abs().sum() > 0 for p in net.fused.parameters())


@pytest.mark.parametrize("fusion", ["local", "shared"])
def test_under_the_mean_scores_learn_as_fast_as_under_the_sum(fusion: Fusion) -> None:
    trunk, images, labels = _small().eval(), _random(2, 3, 16, 32), _random(2, 3, 16, 32, seed=1)
    found = []
    for kind in (fusion, "sum"):
        net = Fcfn(trunk, 3, kind)
        net.fused.requires_grad_(False)
        optimizer = sgd(net, lr=0.1, momentum=0.0, weight_decay=0.0)
        net.sides.trunk.requires_grad_(False)
        (net(images) * labels).mean().backward()
        optimizer.step()
        found.append(net(images).detach())
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1])


def test_fusion_is_a_grouped_convolution_that_starts_as_the_mean() -> None:
    net = Fcfn(_small(), 3)
    _stir(net.sides.scores)
    images = _random(2, 3, 16, 32)
    scores = net.sides(images)
    torch.testing.assert_close(net(images), scores.mean(dim=1))
    _stir(net.fused)
    by_class = scores.transpose(1, 2).flatten(1, 2)  # (N, C x S, H, W)
    kernel = net.fused.weight.T[:, :, None, None]
    grouped = nn.functional.conv2d(by_class, kernel, net.fused.bias, groups=3)
    torch.testing.assert_close(net(images), grouped)
    summed = Fcfn(net.sides.trunk, 3, "sum")
    summed.load_state_dict({k: v for k, v in net.state_dict().items() if "fused" not in k})
    torch.testing.assert_close(summed(images), scores.sum(dim=1))


def test_one_class_is_the_fused_output_of_edge_detection() -> None:
    trunk = _small()
    net, edges = Fcfn(trunk, 1), Rds(trunk)
    _stir(net)
    edges.load_state_dict(net.state_dict())
    images = _random(1, 3, 20, 20)
    assert isinstance(net.fused, LocalFusion)
    torch.testing.assert_close(net(images), edges(images)[1])


def test_the_fusion_learns_slowly() -> None:
    net = Fcfn(_small(), 3)
    groups = parameter_groups(net, 1.0, 0.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(net.fused.weight)] == pytest.approx(0.1)
    assert rates[id(net.sides.trunk.stages[0][0].weight)] == 1.0


def test_unknown_trunks_and_widths_are_refused() -> None:
    with pytest.raises(UserError, match="no trunk 'alexnet'; choose among vgg16, mobilenet_v2"):
        Trunk("alexnet")
    with pytest.raises(UserError, match="mobilenet_v2: only a fresh vgg16 has a width"):
        Trunk("mobilenet_v2", width=0.5)
