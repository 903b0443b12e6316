"""Fused networks against the published files: parameters, layers, initial values, rates."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trained import count_parameters

from imgray.classification.cfn import LAYOUTS, FusionNet
from imgray.classification.fusion import LocalFusion, SharedFusion, SumFusion, fusion_of
from imgray.errors import UserError
from imgray.features.backbones import layer_paths
from imgray.training.rates import parameter_groups

FUSIONS = ("local", "shared", "sum", "max")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("layout", "classes", "plain", "extra"),
    [
        ("cfn7", 10, 1_286_698, 1_343_146 - 1_286_698),
        ("cfn7", 100, 1_304_068, 1_360_516 - 1_304_068),
        ("cfn7-wide", 100, 1_721_572, 664_704),
        ("cfn11", 1000, 6_283_368, 6_752_362 - 6_283_368),
    ],
)
def test_parameters_count_as_published(layout: str, classes: int, plain: int, extra: int) -> None:
    assert count_parameters(FusionNet(layout, classes, fusion=None)) == plain
    assert count_parameters(FusionNet(layout, classes)) == plain + extra


def test_local_fusion_is_a_loop_over_branches_and_channels() -> None:
    fusion = LocalFusion(3, 5)
    fusion.weight.data, fusion.bias.data = _random(3, 5), _random(5, seed=1)
    branches = _random(4, 3, 5, 2, 6, seed=2)
    weight, bias = fusion.weight.detach().numpy(), fusion.bias.detach().numpy()
    expected = np.zeros((4, 5, 2, 6))
    for image, channel, y, x in np.ndindex(expected.shape):
        expected[image, channel, y, x] = bias[channel] + sum(
            weight[s, channel] * branches[image, s, channel, y, x] for s in range(3)
        )
    np.testing.assert_allclose(fusion(branches).detach(), expected, atol=1e-5)
    vectors = fusion(branches[..., 1, 3]).detach()
    np.testing.assert_allclose(vectors, expected[..., 1, 3], atol=1e-5)


@pytest.mark.parametrize("branches", [2, 3, 4])
@pytest.mark.parametrize("kind", ["local", "shared"])
def test_a_learnt_fusion_starts_as_the_mean(kind: str, branches: int) -> None:
    maps = _random(2, branches, 7, 3, 3)
    torch.testing.assert_close(fusion_of(kind, branches, 7)(maps), maps.mean(dim=1))


def test_simpler_fusions_are_special_cases_of_the_local_one() -> None:
    branches, local = _random(6, 3, 8), LocalFusion(3, 8)
    shared = SharedFusion(3)
    assert (count_parameters(local), count_parameters(shared), count_parameters(SumFusion())) == (
        3 * 8 + 8,
        3 + 1,
        0,
    )
    shared.weight.data, shared.bias.data = _random(3, 1, seed=1), _random(1, seed=2)
    local.weight.data = shared.weight.data.expand(3, 8)
    local.bias.data = shared.bias.data.expand(8)
    torch.testing.assert_close(shared(branches), local(branches))
    local.weight.data, local.bias.data = torch.ones(3, 8), torch.zeros(8)
    torch.testing.assert_close(SumFusion()(branches), local(branches))
    largest = fusion_of("max", 3, 8)(branches)
    torch.testing.assert_close(largest, torch.from_numpy(branches.numpy().max(axis=1)))


@pytest.mark.parametrize("fusion", [*FUSIONS, None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_net_learns_in_all_its_parameters(layout: str, fusion: str | None) -> None:
    torch.manual_seed(0)
    net = FusionNet(layout, 4, fusion, width=0.1)
    size = 64 if layout == "cfn11" else 32
    logits = net(_random(4, 3, size, size))
    assert logits.shape == (4, 4)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if not (LAYOUTS[layout].norm and name == "stages.0.0.bias"):  # normalised away
            assert parameter.grad.abs().sum() > 0, name


def test_maps_have_the_sizes_of_caffe() -> None:
    """Its poolings round up: 32 pixels give 16 and 8, and 224 give 112, 56, 28, 14 and 7."""
    for layout, size, sides in [("cfn7", 32, (16, 8, 8)), ("cfn11", 224, (56, 28, 14, 7, 7))]:
        maps, found = torch.zeros(1, 3, size, size), []
        for stage in FusionNet(layout, 10, width=0.05).eval().stages:
            maps = stage(maps)
            found.append(maps.shape[-1])
        assert tuple(found) == sides


def test_the_second_pooling_averages_and_dropout_comes_before_the_sides() -> None:
    first, second, third = FusionNet("cfn7", 10, width=0.1).stages
    names = [[type(layer).__name__ for layer in stage] for stage in (first, second, third)]
    convolutions = ["Conv2d", "ReLU"] * 2
    assert names[0] == [*convolutions, "MaxPool2d", "Dropout"]
    assert names[1] == [*convolutions, "AvgPool2d", "Dropout"]
    assert names[2] == convolutions
    assert (first[-1].p, second[-1].p) == (0.5, 0.5)


@pytest.mark.parametrize("layout", ["cfn7", "cfn11"])
def test_branches_and_the_fused_feature_are_layers_to_tap(layout: str) -> None:
    torch.manual_seed(0)
    net = FusionNet(layout, 10, width=0.1).eval()
    names = [*net.sides.values(), "main", "fused"]
    assert layer_paths(net, names, 32) == {name: name for name in names}
    found: dict[str, Tensor] = {}
    for name in names:
        module = net.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    logits = net(_random(3, 3, 32, 32))
    width = net.classifier.in_features
    assert {v.shape for v in found.values()} == {(3, width)}
    torch.testing.assert_close(net.classifier(found["fused"]), logits)
    branches = torch.stack([found[name] for name in names[:-1]])
    assert branches.min() >= 0  # rectified before their pooling
    if layout == "cfn7":
        torch.testing.assert_close(found["fused"], branches.mean(dim=0))


def test_the_fused_vector_of_the_large_net_is_normalised_as_one_channel() -> None:
    torch.manual_seed(0)
    net = FusionNet("cfn11", 10, width=0.1)
    fused: list[Tensor] = []
    net.fused[1].register_forward_hook(lambda _, __, out: fused.append(out.detach()))
    net(_random(8, 3, 64, 64))
    assert fused[0].mean() == pytest.approx(0, abs=1e-5)
    assert fused[0].var(unbiased=False) == pytest.approx(1, abs=1e-2)
    assert fused[0].mean(dim=0).abs().max() > 0.1  # each of its elements is not


@pytest.mark.parametrize(("layout", "width"), [("cfn11", 0.05), ("cfn7-norm", 0.1)])
def test_normalised_nets_have_biases_at_their_ends_only(layout: str, width: float) -> None:
    net = FusionNet(layout, 10, width=width)
    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    biased = [name for name, layer in layers if layer.bias is not None]
    assert biased == ["stages.0.0", "classifier"]
    assert net.fused[0].bias is None
    assert count_parameters(net.fused[1]) == 2


@pytest.mark.parametrize("width", [1.0, 0.25])
def test_initial_weights_are_as_published(width: float) -> None:
    torch.manual_seed(0)
    small = FusionNet("cfn7", 10, width=width)
    expected = 0.05 / math.sqrt(width)
    assert small.stages[0][0].weight.detach().std() == pytest.approx(0.05, rel=0.1)
    for layer in (small.stages[1][2], small.side1[0], small.main[0]):
        assert layer.weight.detach().std() == pytest.approx(expected, rel=0.1)
    assert small.classifier.weight.detach().std() == pytest.approx(0.1 / math.sqrt(width), rel=0.1)
    assert all((b == 0).all() for n, b in small.named_parameters() if n.endswith("bias"))
    large = FusionNet("cfn11", 10, width=width)
    assert (large.stages[0][0].bias == 0.2).all()
    weight = large.stages[3][3].weight.detach()
    assert weight.abs().max() == pytest.approx(math.sqrt(3 / weight[0].numel()), rel=0.01)
    assert weight.std() == pytest.approx(math.sqrt(1 / weight[0].numel()), rel=0.05)


def test_learning_rates_are_the_multipliers_of_the_published_files() -> None:
    for layout, special in [
        ("cfn7", {"fused.0.weight": 0.1, "fused.0.bias": 0.2}),
        ("cfn11", {"main.0.weight": 10.0}),
        ("cfn7-norm", {}),
    ]:
        net = FusionNet(layout, 10, width=0.1)
        groups = parameter_groups(net, lr=0.1, weight_decay=1e-4)
        of = {id(p): group for group in groups for p in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(of)
        for name, parameter in net.named_parameters():
            bias = name.endswith("bias")
            rate = special.get(name, 2.0 if bias else 1.0)
            assert of[id(parameter)]["lr"] == pytest.approx(0.1 * rate), name
            assert of[id(parameter)]["weight_decay"] == (0.0 if bias else 1e-4), name
        torch.optim.SGD(groups, momentum=0.9).step()


def test_frozen_parameters_are_in_no_group() -> None:
    net = FusionNet("cfn7", 10, width=0.1)
    net.stages.requires_grad_(False)
    groups = parameter_groups(net, 0.1, 0.0, rates={"side": 3.0, "side2": 5.0})
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert not rates.keys() & {id(p) for p in net.stages.parameters()}
    assert rates[id(net.side1[0].weight)] == pytest.approx(0.3)
    assert rates[id(net.side2[0].weight)] == pytest.approx(0.5)
    assert rates[id(net.fused[0].weight)] == pytest.approx(0.1)


def test_a_narrow_net_fits_a_few_images() -> None:
    torch.manual_seed(0)
    net = FusionNet("cfn7", 2, width=0.1)
    images, truth = _random(8, 3, 16, 16), torch.arange(8) % 2
    images[truth == 1] += 1
    optimiser = torch.optim.SGD(parameter_groups(net, 0.02, 0.0), momentum=0.9)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(images), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_unknown_layouts_and_fusions_are_refused() -> None:
    with pytest.raises(
        UserError, match="no layout 'cfn8'; choose among cfn7, cfn7-wide, cfn11, cfn7-norm"
    ):
        FusionNet("cfn8", 10)
    with pytest.raises(UserError, match="no fusion 'mean'; choose among local, shared, sum, max"):
        FusionNet("cfn7", 10, "mean")
