"""CycleGAN, Long and Nest: published nets, terms by hand, pools, and runs that stop and go on."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from domains import recipe, settings, write_domains
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from trained import check_goes_on, count_parameters

from imgray.artifacts.folder import Folder
from imgray.engine.examples import open_examples
from imgray.errors import UserError
from imgray.synthesis.discriminator import PatchDiscriminator
from imgray.synthesis.generator import Generator
from imgray.synthesis.pool import Pool
from imgray.synthesis.translation import Translation
from imgray.synthesis.translator import TranslationLearner
from imgray.synthesis.wiring import wiring
from imgray.training.loop import Run, load_start
from imgray.training.recipe import Recipe
from imgray.training.task import At

pytestmark = pytest.mark.usefixtures("undrawn")
AT = At(0, 9, 0.0)


def _batch(count: int = 2, side: int = 16, seed: int = 0) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    shape = (count, side, side, 3)
    return {n: torch.randint(256, shape, generator=chance, dtype=torch.uint8) for n in "xy"}


def _range(pictures: Tensor) -> Tensor:
    return pictures.permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_domains(tmp_path_factory.mktemp("domains"))


def _run(recipe: Recipe, data: Path, folder: Path) -> Run:
    return Run(recipe, open_examples(recipe, str(data)), Folder(str(folder)))


def test_the_published_nets_have_the_published_parameters() -> None:
    with torch.device("meta"):
        assert count_parameters(Generator()) == 11_378_179
        assert count_parameters(Generator(blocks=6)) == 7_837_699
        assert count_parameters(PatchDiscriminator()) == 2_764_737


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers: int, field: int) -> None:
    """Without normalisation, through which all of a picture is seen."""
    net = PatchDiscriminator(2, layers)
    plain = nn.Sequential(*(m for m in net if not isinstance(m, nn.InstanceNorm2d))).double()
    for module in plain:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0)
    pictures = torch.ones(1, 3, 160, 160, dtype=torch.double, requires_grad=True)
    logits = plain(pictures)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert pictures.grad is not None
    seen = pictures.grad[0].abs().sum(dim=0) > 0
    assert (int(seen.any(dim=0).sum()), int(seen.any(dim=1).sum())) == (field, field)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("size", [(8, 12), (16, 16), (40, 8)])
def test_a_generator_keeps_every_size(upsampling: Any, size: tuple[int, int]) -> None:
    made = Generator(4, 2, upsampling=upsampling)(torch.rand(2, 3, *size) * 2 - 1)
    assert made.shape == (2, 3, *size)
    assert made.abs().max() <= 1


def _said(reading: Any, stages: int, inner: bool, judged: bool = False) -> set[str]:
    found = wiring(reading, stages, inner, judged)
    judges = {f"{'.'.join(t.route)} by {t.domain}" for t in found.adversarial}
    return judges | {f"{c.name} {'.'.join(c.route)} = {'.'.join(c.target)}" for c in found.cycles}


CYCLEGAN = {"x.G1 by y", "y.F1 by x", "long x.G1.F1 = x", "long y.F1.G1 = y"}
LONG = {"x.G1.G2 by y", "y.F2.F1 by x", "long x.G1.G2.F2.F1 = x", "long y.F2.F1.G1.G2 = y"}
NEST = LONG | {"inner x.G1.G2.F2 = x.G1", "inner y.F2.F1.G1 = y.F2"}
ALTERNATING = {
    "x.G1 by y", "x.G1.F1 by x", "x.G1.F1.G2 by y", "long x.G1.F1.G2.F2 = x",
    "y.F1 by x", "y.F1.G1 by y", "y.F1.G1.F2 by x", "long y.F1.G1.F2.G2 = y",
}  # fmt: skip
INNER = {
    "inner x.G1.F1 = x", "inner x.G1.F1.G2 = x.G1",
    "inner y.F1.G1 = y", "inner y.F1.G1.F2 = y.F1",
}  # fmt: skip


def test_terms() -> None:
    for reading in ("cascaded", "alternating"):
        assert _said(reading, 1, False) == _said(reading, 1, True) == CYCLEGAN
    assert _said("cascaded", 2, False) == LONG
    assert _said("cascaded", 2, True) == NEST
    assert _said("cascaded", 2, False, True) == LONG | {"x.G1 by y", "y.F2 by x"}
    assert _said("alternating", 2, False) == ALTERNATING
    assert _said("alternating", 2, True) == ALTERNATING | INNER
    three = {c for c in _said("cascaded", 3, True) if c.startswith("inner x")}
    assert three == {"inner x.G1.G2.G3.F3.F2 = x.G1", "inner x.G1.G2.G3.F3 = x.G1.G2"}


@pytest.mark.parametrize("name", ["cascaded", "alternating"])
def test_losses_are_their_definitions(name: str) -> None:
    """Of two stages with inner cycles and identities, each term by hand."""
    given = settings(stages=2, inner=True, reading=name, identity=0.5, cycle=3, inner_cycle=7)
    torch.manual_seed(0)
    learner, batch = TranslationLearner(given), _batch()
    nets, pictures = learner.modules, {n: _range(one) for n, one in batch.items()}

    def made(route: str) -> Tensor:
        start, *generators = route.split(".")
        found = pictures[start]
        for one in generators:
            found = nets[one](found)
        return found

    said = NEST if name == "cascaded" else ALTERNATING | INNER
    wanted = dict.fromkeys(("adversarial", "long", "inner", "identity"), 0.0)
    with torch.no_grad():
        for one in said:
            if " by " in one:
                route, _, domain = one.partition(" by ")
                wanted["adversarial"] += float(((nets[f"D{domain}"](made(route)) - 1) ** 2).mean())
            else:
                kind, route, _, target = one.split()
                apart = float((made(route) - made(target)).abs().mean())
                wanted[kind] += {"long": 3, "inner": 7}[kind] * apart
        there = {"cascaded": ("y.G1.G2", "x.F2.F1"), "alternating": ("y.G1.F1.G2", "x.F1.G1.F2")}
        for route in there[name]:
            wanted["identity"] += 0.5 * 3 * float((made(route) - pictures[route[0]]).abs().mean())
        judged = {}
        for domain in "xy":
            routes = [one.partition(" by ")[0] for one in said if one.endswith(f" by {domain}")]
            fakes = torch.cat([nets[f"D{domain}"](made(route)) for route in routes])
            real = nets[f"D{domain}"](pictures[domain])
            judged[domain] = float((((real - 1) ** 2).mean() + (fakes**2).mean()) / 2)
    torch.manual_seed(1)
    learner.optimizers["generators"].param_groups[0]["lr"] = 0.0
    found = {key: float(value.detach()) for key, value in learner.step(batch, AT).items()}
    assert found == pytest.approx(
        wanted | {f"D{d}": value for d, value in judged.items()}, rel=1e-4
    )


def test_supervision_is_the_distance_to_the_true_partner() -> None:
    """In the place of cycles, which then cost no pass of a generator."""
    torch.manual_seed(0)
    learner = TranslationLearner(settings(paired=True, cycle=0, supervised=100))
    nets, batch = learner.modules, _batch()
    x, y = (_range(batch[name]) for name in "xy")
    passes: list[None] = []
    nets["G1"].register_forward_hook(lambda *_: passes.append(None))
    found = learner.step(batch, AT)
    assert found.keys() == {"adversarial", "supervised", "Dx", "Dy"}
    assert len(passes) == 1
    torch.manual_seed(0)
    nets = TranslationLearner(settings()).modules
    with torch.no_grad():
        wanted = (nets["G1"](x) - y).abs().mean() + (nets["F1"](y) - x).abs().mean()
    torch.testing.assert_close(found["supervised"], 100 * wanted)


def test_each_optimizer_goes_down_once_a_step_its_own_loss() -> None:
    """The discriminators' gradients are those of fakes that are constants."""
    torch.manual_seed(0)
    learner, batch = TranslationLearner(settings(pool=0)), _batch()
    fake = learner.modules["G1"](_range(batch["x"])).detach()
    judge = learner.modules["Dy"]
    real, false = judge(_range(batch["y"])), judge(fake)
    loss = (((real - 1) ** 2).mean() + (false**2).mean()) / 2
    wanted = torch.autograd.grad(loss, list(judge.parameters()))
    before = {n: [p.clone() for p in net.parameters()] for n, net in learner.modules.items()}
    learner.optimizers["generators"].param_groups[0]["lr"] = 0.0
    learner.step(batch, AT)
    for parameter, gradient in zip(judge.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
    for name, net in learner.modules.items():
        moved = [not torch.equal(p, b) for p, b in zip(net.parameters(), before[name], strict=True)]
        assert any(moved) == name.startswith("D")
    for optimizer in learner.optimizers.values():
        assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def test_a_pool_fills_then_exchanges_half() -> None:
    torch.manual_seed(0)
    pool, given = Pool(10), torch.arange(400.0).reshape(-1, 1, 1, 1)
    assert torch.equal(pool.exchange(given[:10]), given[:10])
    assert torch.equal(pool.items, given[:10])
    shown = pool.exchange(given[10:])
    held = set(pool.items.flatten().tolist())
    old = shown != given[10:]
    assert 0.4 < old.float().mean() < 0.6
    assert len(held) == 10
    assert sorted([*shown.flatten().tolist(), *held]) == given.flatten().tolist()
    assert torch.equal(Pool(0).exchange(given), given)


def test_a_pool_keeps_no_graph() -> None:
    pool, given = Pool(2), torch.rand(3, 1, 2, 2, requires_grad=True)
    assert not pool.exchange(given).requires_grad
    assert not pool.items.requires_grad


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": 3, "average": 0.9},
        {"stages": 2, "inner": True},
        {
            "judge": "projected",
            "weights": "none",
            "judge_width": 2,
            "judge_layers": 3,
            "recipe": {"batch_size": 1},
        },
    ],
)
def test_a_run_that_stops_goes_on_to_equal_tensors(
    changes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    changed = recipe(**changes)
    run = partial(_run, changed, data)
    whole, again = check_goes_on(run, tmp_path, steps=4)  # one after a checkpoint
    for name, items in whole.learner.state().items():
        assert torch.equal(items, again.learner.state()[name])


def test_an_average_begins_with_the_generators_of_a_model_that_has_none(
    data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    other = TranslationLearner(settings()).modules
    start = {name: net.state_dict() for name, net in other.items()}
    changed = recipe(average=0.9, rate=1e-9, recipe={"start": "elsewhere", "steps": 2})
    run = Run(changed, open_examples(changed, str(data)), Folder(str(tmp_path)), None, start)
    run.fit()
    averaged = run.nets["averaged"].state_dict()
    assert int(averaged["n_averaged"]) == 2
    for name in ("G1", "F1"):
        for key, tensor in start[name].items():
            torch.testing.assert_close(averaged[f"module.{name}.{key}"], tensor, atol=1e-6, rtol=0)
    del start["Dx"]
    with pytest.raises(UserError, match="the model to start from of G1, F1, Dy, but this model"):
        load_start(run.learner, start, changed)


def test_averaged_generators_translate() -> None:
    torch.manual_seed(0)
    learner, decay, batch = TranslationLearner(settings(average=0.5)), 0.5, _batch()
    wanted = [p.detach().clone() for p in learner.modules["G1"].parameters()]
    for step in range(3):
        learner.step(batch, AT)
        now = [p.detach() for p in learner.modules["G1"].parameters()]
        wanted = [
            new.clone() if step == 0 else decay * old + (1 - decay) * new
            for old, new in zip(wanted, now, strict=True)
        ]
    found = list(learner.averaged.module["G1"].parameters())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    picture = {"image": batch["x"][:1], "to": torch.tensor([1])}
    [painted] = learner.predict(picture)
    with torch.no_grad():
        made = learner.averaged.module["G1"](_range(batch["x"][:1]))
    np.testing.assert_allclose(painted.picture, ((made[0] + 1) * 127.5).permute(1, 2, 0), atol=0.51)


def test_settings_are_checked() -> None:
    for changes, fault in (
        ({"crop": 40}, "crop 40 is more than load 20"),
        ({"crop": 18}, "crop 18 is not divided by 4"),
        ({"judge_layers": 3}, "crop 16 is too small for judge_layers 3: at least 24"),
        ({"trunk": "vgg16"}, "trunk: means nothing to judge patch"),
        ({"weights": "none"}, "weights: means nothing to judge patch"),
        ({"judge": "projected"}, "judge_layers: means nothing to judge projected"),
        ({"inner": True}, "inner and judged need stages above 1"),
        ({"supervised": 1}, "supervised learns from true pairs: set paired to true"),
        ({"cycle": 0, "identity": 1}, "identity is weighted as a share of cycle, which is 0"),
        ({"stages": 2, "judged": True, "reading": "alternating"}, "judges all pictures as it is"),
    ):
        with pytest.raises(UserError, match=fault):
            settings(**changes)
    assert isinstance(Translation(settings(), ("A", "B")).learner(), TranslationLearner)


def test_scores_of_pairs_are_their_definitions() -> None:
    torch.manual_seed(0)
    learner, batch = TranslationLearner(settings(paired=True)), _batch(3)
    new = {f"new_{domain}": torch.ones(3, dtype=torch.bool) for domain in "xy"}
    with torch.inference_mode():
        found = {name: float(value) for name, value in learner.evaluate(batch | new).items()}
        nets = learner.modules
        made = {"x": nets["G1"](_range(batch["x"])), "y": nets["F1"](_range(batch["y"]))}
        back = {"x": nets["F1"](made["x"]), "y": nets["G1"](made["y"])}
    wanted = {"count_x": 3.0, "count_y": 3.0}
    for domain, mate in ("xy", "yx"):
        painted = ((made[domain] + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        true = batch[mate].numpy().astype(float)
        wanted[f"apart_{mate}"] = np.abs(painted - true).mean(axis=(1, 2, 3)).sum()
        returned = ((back[domain] + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        own = batch[domain].numpy().astype(float)
        wanted[f"cycle_{domain}"] = np.abs(returned - own).mean(axis=(1, 2, 3)).sum()
        wanted[f"ssim_{mate}"] = sum(
            structural_similarity(a.round().astype(np.uint8), b, channel_axis=2, data_range=255)
            for a, b in zip(painted, batch[mate].numpy(), strict=True)
        )
    assert found == pytest.approx(wanted, rel=1e-3)
