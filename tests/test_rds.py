"""Relaxed deep supervision against its definition, pixel by pixel."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data
from skimage.feature import canny
from torch import Tensor

from imgray.classification.rds import Rds, edge_loss, rds_loss
from imgray.classification.relaxed import (
    canny_maps,
    coarse_edges,
    consensus,
    dilate,
    relaxed_targets,
)
from imgray.errors import UserError
from imgray.features.trunk import Trunk
from imgray.training.rates import parameter_groups

H, W, K = 6, 7, 5


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _bools(*shape: int, seed: int = 0, share: float = 0.3) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(shape) < share


def _labels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


@pytest.mark.parametrize("order", ["given", "reversed"])
@pytest.mark.parametrize(("relaxed", "label"), [("ignore", 2), ("positive", 1), ("negative", 0)])
def test_targets_are_a_loop_over_sides_and_pixels(relaxed: str, label: int, order: str) -> None:
    truth, marked = _bools(H, W), _bools(K, H, W, seed=1)
    targets = relaxed_targets(truth, marked, relaxed, order)
    assert (targets.dtype, targets.shape) == (np.uint8, (K, H, W))
    for k, y, x in np.ndindex(targets.shape):
        detected = marked[k if order == "given" else K - 1 - k, y, x]
        assert targets[k, y, x] == (1 if truth[y, x] else label if detected else 0)


def test_negative_relaxed_pixels_are_general_supervision() -> None:
    truth = _bools(H, W)
    targets = relaxed_targets(truth, _bools(K, H, W, seed=1), "negative")
    np.testing.assert_array_equal(targets, np.broadcast_to(truth, (K, H, W)))


def _loss_of_a_pixel(logit: float, target: int) -> float:
    p = 1 / (1 + math.exp(-logit))
    return {0: -math.log(1 - p), 1: -9 * math.log(p), 2: 0.0}[target]


def test_the_loss_is_a_sum_over_outputs_and_pixels() -> None:
    sides = [3 * _random(2, 1, H, W, seed=k) for k in range(K)]
    fused, truth = 3 * _random(2, 1, H, W, seed=9), _bools(2, H, W, seed=3)
    targets = _labels(2, K, H, W)
    expected = 0.0
    for image, y, x in np.ndindex(2, H, W):
        for k in range(K):
            expected += _loss_of_a_pixel(
                float(sides[k][image, 0, y, x]), int(targets[image, k, y, x])
            )
        expected += _loss_of_a_pixel(float(fused[image, 0, y, x]), int(truth[image, y, x]))
    found = rds_loss(sides, fused, torch.from_numpy(targets), torch.from_numpy(truth))
    assert float(found) == pytest.approx(expected / 2, rel=1e-5)


def test_gradients_are_zero_on_relaxed_pixels_and_ninefold_on_edges() -> None:
    logits, targets = (4 * _random(3, 1, H, W)).requires_grad_(), _labels(3, H, W)
    edge_loss(logits, torch.from_numpy(targets)).backward()
    p = torch.sigmoid(logits.detach())[:, 0].double().numpy()
    expected = np.select([targets == 1, targets == 0], [9 * (p - 1), p]) / 3
    np.testing.assert_allclose(logits.grad[:, 0], expected, rtol=1e-4)
    assert not logits.grad[:, 0][torch.from_numpy(targets == 2)].any()


def test_large_logits_give_a_finite_loss() -> None:
    logits = torch.tensor([-500.0, 500.0, -500.0, 500.0]).view(1, 1, 2, 2).requires_grad_()
    loss = edge_loss(logits, torch.tensor([[[1, 0], [0, 2]]], dtype=torch.uint8))
    loss.backward()
    assert loss.item() == pytest.approx(9 * 500 + 500)
    assert logits.grad.flatten().tolist() == [-9, 1, 0, 0]


def test_as_many_targets_as_sides_are_needed() -> None:
    logits, targets = _random(1, 1, H, W), torch.zeros(1, 4, H, W)
    with pytest.raises(ValueError, match="shorter"):
        rds_loss([logits] * 5, logits, targets, targets[:, 0])


def _net() -> Rds:
    torch.manual_seed(0)
    return Rds(Trunk("vgg16", width=1 / 16))


def test_the_net_starts_at_zero_with_the_mean_of_its_sides() -> None:
    net = _net()
    sides, fused = net(_random(2, 3, 20, 30))
    assert [tuple(s.shape) for s in [*sides, fused]] == [(2, 1, 20, 30)] * 6
    assert not torch.stack(sides).any()
    assert net.fused.weight.flatten().tolist() == pytest.approx([0.2] * 5)
    for score in net.sides.scores:
        torch.nn.init.normal_(score.weight)
    sides, fused = net(_random(2, 3, 20, 30))
    torch.testing.assert_close(fused, torch.stack(sides).mean(dim=0))


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2", "tf_efficientnet_lite0"])
def test_every_net_learns_in_all_its_parameters(name: str) -> None:
    torch.manual_seed(0)
    net = _net() if name == "vgg16" else Rds(Trunk(name))
    for score in net.sides.scores:
        torch.nn.init.normal_(score.weight)
    sides, fused = net(_random(2, 3, 40, 33))
    targets = torch.from_numpy(_labels(2, K, 40, 33))
    rds_loss(sides, fused, targets, torch.from_numpy(_bools(2, 40, 33))).backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
    assert all(s.weight.grad.abs().sum() > 0 for s in net.sides.scores)


def test_relaxed_pixels_of_a_side_change_nothing_the_net_learns() -> None:
    """Their logits may be anything; here the first side's targets are relaxed everywhere."""
    net, targets = _net(), torch.full((1, K, 16, 16), 2, dtype=torch.uint8)
    targets[:, 1:] = torch.from_numpy(_labels(1, K - 1, 16, 16))
    sides, _ = net(_random(1, 3, 16, 16))
    sum(edge_loss(s, t) for s, t in zip(sides, targets.unbind(1), strict=True)).backward()
    assert not net.sides.scores[0].weight.grad.any()
    assert net.sides.scores[1].weight.grad.any()


def test_learning_rates_are_the_multipliers_of_the_published_file() -> None:
    net = _net()
    groups = parameter_groups(net, lr=1e-9, weight_decay=2e-4)
    of = {id(p): group for group in groups for p in group["params"]}
    for module, rate in [
        *((stage, 1.0) for stage in net.sides.trunk.stages[:4]),
        (net.sides.trunk.stages[4], 100.0),
        (net.sides.scores, 0.01),
        (net.fused, 0.01),
    ]:
        for name, parameter in module.named_parameters():
            bias = name.endswith("bias")
            assert of[id(parameter)]["lr"] == pytest.approx(1e-9 * rate * (2 if bias else 1))
            assert of[id(parameter)]["weight_decay"] == (0.0 if bias else 2e-4)


@pytest.mark.parametrize(("annotators", "least"), [(5, 3), (6, 4), (3, 3), (2, 2), (1, 1)])
def test_consensus_counts_annotators(annotators: int, least: int) -> None:
    marks = _bools(annotators, H, W, share=0.6)
    found = consensus(marks, least=4 if annotators == 6 else 3)
    for y, x in np.ndindex(H, W):
        assert found[y, x] == (sum(bool(m[y, x]) for m in marks) >= least)
    with pytest.raises(UserError, match="no annotations"):
        consensus(marks[:0])


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_dilation_marks_squares(radius: int) -> None:
    masks = _bools(2, 9, 8, share=0.05)
    found = dilate(masks, radius)
    for n, y, x in np.ndindex(masks.shape):
        rows = slice(max(0, y - radius), y + radius + 1)
        assert found[n, y, x] == masks[n, rows, max(0, x - radius) : x + radius + 1].any()
    agreed = consensus(np.repeat(masks[:1], 3, axis=0), dilation=radius)
    np.testing.assert_array_equal(agreed, found[0])


@pytest.mark.parametrize("dilation", [0, 1])
def test_cannys_detections_shrink_from_side_to_side(dilation: int) -> None:
    photograph = data.chelsea()[50:250, 100:300]
    marked = canny_maps(photograph, dilation=dilation)
    assert (marked.dtype, marked.shape) == (np.bool_, (K, 200, 200))
    for earlier, later in itertools.pairwise(marked):
        assert not (later & ~earlier).any()
        assert later.sum() < 0.95 * earlier.sum()
    assert 0.01 < marked[-1].mean() < marked[0].mean() < 0.6
    targets = relaxed_targets(marked[-1], marked)
    relaxed = (targets == 2).sum(axis=(1, 2))
    assert (np.diff(relaxed) < 0).all()
    assert relaxed[-1] == 0


@pytest.mark.parametrize("window", [(0, 300), (40, 120)])
def test_each_side_has_what_canny_finds_at_its_thresholds(window: tuple[int, int]) -> None:
    top, left = window
    photograph = data.chelsea()[top : top + 200, left : left + 150]
    gray = photograph @ np.array([0.299, 0.587, 0.114]) / 255
    smooth = ndimage.gaussian_filter(gray, 2)
    mean = np.hypot(ndimage.sobel(smooth, axis=0), ndimage.sobel(smooth, axis=1)).mean()
    for k, found in enumerate(canny_maps(photograph, dilation=0), start=1):
        high = 0.5 * k * mean
        np.testing.assert_array_equal(
            found, canny(gray, 2, low_threshold=0.4 * high, high_threshold=high, mode="reflect")
        )


def test_canny_finds_an_edge_and_nothing_in_a_blank_picture() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    assert not canny_maps(image).any()
    image[:, 20:] = 200
    found = canny_maps(image, dilation=0)
    columns = np.flatnonzero(found.any(axis=(0, 1)))
    assert set(columns) <= {19, 20}
    assert found[:, 10:30].any(axis=2).all()


@pytest.mark.parametrize("void", [None, 2])
def test_coarse_edges_lie_between_labels(void: int | None) -> None:
    labels = np.kron(_labels(4, 5), np.ones((2, 3), np.uint8))
    found = coarse_edges(labels, void)
    for y, x in np.ndindex(labels.shape):
        here = labels[y, x]
        others = [labels[b, a] for b, a in [(y, x + 1), (y + 1, x)] if b < 8 and a < 15]
        edge = any(o != here and void not in (o, here) for o in others)
        assert found[y, x] == edge
    assert 0 < found.mean() < 1
    np.testing.assert_array_equal(coarse_edges(labels, void, 1), dilate(found, 1))
