"""SwapGAN: terms by hand, poses and masks, triples, runs that stop and go on, and bad input."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import persons
import pytest
import torch
from persons import SIZE, parsing, record, settings
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from trained import check_goes_on

from imgray.artifacts.folder import Folder
from imgray.engine.examples import open_examples
from imgray.errors import UserError
from imgray.synthesis.swapgan import SwapLearner, overlap
from imgray.synthesis.swapping import Swapping
from imgray.training.loop import Run, load_start
from imgray.training.recipe import Recipe
from imgray.training.task import NOT_FINITE, At

pytestmark = pytest.mark.usefixtures("undrawn")
AT = At(0, 9, 0.0)
RECIPE = persons.recipe().model_dump(mode="json", by_alias=True)


def _learner(**changes: Any) -> SwapLearner:
    torch.manual_seed(0)
    return SwapLearner(settings(**changes))


def _batch(count: int = 2, chance: int | None = None) -> dict[str, Tensor]:
    """Of records of which the second shows one person twice."""
    task = Swapping(settings(), ())
    found = []
    for n in range(count):
        one = record(n, n + 1) | {"own": n % 2 == 1}
        random = None if chance is None else np.random.default_rng(chance + n)
        found.append(task.example(one, random))
    return {name: torch.as_tensor(np.stack([one[name] for one in found])) for name in found[0]}


def _range(pictures: Tensor) -> Tensor:
    return pictures.permute(0, 3, 1, 2) / 127.5 - 1


def _conditions(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pose maps, segmentation map, kept pixels and mask, each by a loop over pixels."""
    count, height, width, _ = batch["reference"].shape
    pose = torch.zeros(count, 18, height, width)
    layout, kept = torch.zeros(count, 4, height, width), torch.zeros(count, 3, height, width)
    real = _range(batch["reference"])
    for n in range(count):
        for y in range(height):
            for x in range(width):
                region = [0, 3, 3, 1, 2][int(batch["parsing"][n, y, x])]
                layout[n, region, y, x] = 1
                if region == 3:
                    kept[n, :, y, x] = real[n, :, y, x]
                for k in range(18):
                    px, py, seen = batch["pose"][n, k].tolist()
                    squared = (x + 0.5 - px) ** 2 + (y + 0.5 - py) ** 2
                    pose[n, k, y, x] = math.exp(-squared / (2 * 1.5**2)) if seen >= 0.5 else 0
    return pose, layout, kept, (batch["parsing"] > 0).float()[:, None]


@pytest.mark.parametrize(
    "changes",
    [{}, {"own": 0.5, "reconstruction": 7.0}, {"stages": 1}, {"mask": 0}, {"seen": False}],
)
def test_losses_are_their_definitions(changes: dict[str, Any]) -> None:
    """Each term by hand, from conditions that a loop makes."""
    learner, batch = _learner(**changes), _batch()
    pose, layout, kept, body = _conditions(batch)
    real, target = _range(batch["reference"]), _range(batch["target"])
    net, judge = learner.net, learner.modules["discriminator"]
    given = [layout, kept] if changes.get("seen", True) else [layout]
    with torch.no_grad():
        if changes.get("stages") == 1:
            stages = [net.first(torch.cat([target, pose, *given], 1))]
        else:
            first = net.first(torch.cat([target, pose], 1))
            assert net.second is not None
            stages = [first, net.second(torch.cat([first, *given], 1))]
        verdicts = [judge(torch.cat([stage, pose], 1)) for stage in stages]
        truth = judge(torch.cat([real, pose], 1))
        wanted = {"adversarial": sum(float(((one - 1) ** 2).mean()) for one in verdicts)}
        if net.third is not None:
            mask = net.third(stages[-1]) * 0.5 + 0.5
            wanted["mask"] = 3 * float((mask - body).abs().mean())
        if "own" in changes:
            wanted["reconstruction"] = 7 * float((stages[-1][1] - real[1]).abs().mean()) / 2
        weights = [1 / len(stages)] * len(stages)
        fake = sum(w * float((one**2).mean()) for w, one in zip(weights, verdicts, strict=True))
        wanted["D"] = (float(((truth - 1) ** 2).mean()) + fake) / 2
    learner.optimizers["generators"].param_groups[0]["lr"] = 0.0
    found = {name: float(value.detach()) for name, value in learner.step(batch, AT).items()}
    assert found == pytest.approx(wanted, rel=1e-4)
    assert (net.third is None) == (changes.get("mask") == 0)


def test_each_optimizer_goes_down_once_a_step_its_own_loss() -> None:
    """The discriminator's gradient is that of fakes that are constants."""
    learner, batch = _learner(), _batch()
    conditions, judge = learner.conditions(batch), learner.modules["discriminator"]
    with torch.no_grad():
        fakes = learner.net(_range(batch["target"]), conditions).stages
    real, *false = (
        judge(torch.cat([one, conditions.pose], 1)) for one in (_range(batch["reference"]), *fakes)
    )
    loss = ((real - 1) ** 2).mean() / 2 + sum((one**2).mean() for one in false) / 4
    wanted = torch.autograd.grad(loss, list(judge.parameters()))
    before = {n: [p.clone() for p in net.parameters()] for n, net in learner.modules.items()}
    learner.optimizers["generators"].param_groups[0]["lr"] = 0.0
    learner.step(batch, AT)
    for parameter, gradient in zip(judge.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
    for name, net in learner.modules.items():
        moved = [not torch.equal(p, b) for p, b in zip(net.parameters(), before[name], strict=True)]
        assert any(moved) == (name == "discriminator")
    for optimizer in learner.optimizers.values():
        assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def test_the_mask_loss_reaches_all_generators() -> None:
    """Its gradient of the first and second is not 0; those of a single term are apart."""
    learner, batch = _learner(), _batch()
    conditions = learner.conditions(batch)
    painted = learner.net(_range(batch["target"]), conditions)
    losses = learner._wanted(painted, _range(batch["reference"]), conditions, batch["own"])
    for name in ("first", "second", "third"):
        own = list(learner.net.get_submodule(name).parameters())
        grads = torch.autograd.grad(losses["mask"], own, retain_graph=True)
        assert sum(float(g.abs().sum()) for g in grads) > 0, name


def test_a_mask_is_learnt() -> None:
    learner, batch = _learner(mask=50.0, rate=0.005), _batch()
    losses = [float(learner.step(batch, AT)["mask"]) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_overlap() -> None:
    masks = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool().reshape(3, 1, 2, 2)
    others = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]]).bool().reshape(3, 1, 2, 2)
    assert float(overlap(masks, others)) == pytest.approx(1 / 3 + 1 + 0)


def test_evaluation_is_its_definition() -> None:
    learner, batch = _learner(average=0.5), _batch(3)
    learner.step(batch, AT)
    net = learner.averaged.module
    real, worn = _range(batch["reference"]), batch["parsing"] > 2
    with torch.no_grad():
        found = {name: float(one) for name, one in learner.evaluate(batch).items()}
        conditions = learner.conditions(batch)
        own = net(real, conditions).picture
        swapped = net(_range(batch["target"]), conditions)
        other = net(real.flip(3), conditions).picture
        masks = [(m > 0.5, b > 0) for m, b in zip(swapped.mask, batch["parsing"], strict=True)]

    def bytes_of(picture: Tensor) -> np.ndarray:
        return ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()

    def clothes(pictures: Tensor) -> Tensor:
        return torch.stack([p[:, w].mean(1) for p, w in zip(pictures, worn, strict=True)])

    def ssim(pictures: Tensor) -> float:
        pairs = zip(pictures, real, strict=True)
        return sum(
            structural_similarity(bytes_of(a), bytes_of(b), channel_axis=2) for a, b in pairs
        )

    wanted = {"count": 3, "clothed": 3, "ssim": ssim(own), "ssim_mirrored": ssim(other)}
    wanted["apart"] = 127.5 * 3 * float((own - real).abs().mean())
    wanted["mask_iou"] = sum(float((m & b).sum() / (m | b).sum()) for m, b in masks)
    taken = clothes(_range(batch["target"]))
    for name, one in (("clothes", swapped.picture), ("clothes_before", real)):
        wanted[name] = 127.5 * 3 * float((clothes(one) - taken).abs().mean())
    assert found == pytest.approx(wanted, rel=1e-3)
    metrics = Swapping(settings(), ()).summarize({k: torch.tensor(v) for k, v in found.items()})
    assert metrics["ssim"] == pytest.approx(wanted["ssim"] / 3, rel=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(persons.write(tmp_path_factory.mktemp("people")))


def _run(recipe: Recipe, data: str, folder: Path) -> Run:
    return Run(recipe, open_examples(recipe, data), Folder(str(folder)))


@pytest.mark.parametrize("changes", [{"average": 0.9}, {"own": 0.5, "reconstruction": 5.0}])
def test_a_run_that_stops_goes_on_to_equal_tensors(
    changes: dict[str, Any], data: str, tmp_path: Path
) -> None:
    recipe = persons.recipe(**changes)
    run = partial(_run, recipe, data)
    whole, again = check_goes_on(run, tmp_path, steps=4)  # one after a checkpoint
    optimizers = whole.learner.optimizers
    for name, optimizer in optimizers.items():
        pairs = zip(
            optimizer.state.values(), again.learner.optimizers[name].state.values(), strict=True
        )
        assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in pairs)


def test_validation_goes_by_batches_though_predictions_differ_in_shape(data: str) -> None:
    assert not Swapping.one_shape
    examples = open_examples(persons.recipe({"batch_size": 2}), data)
    assert len(examples.val) > 2
    assert len(examples.validation(0, 0, 1)["reference"]) == 2
    assert examples.validations(0, 1) == -(-len(examples.val) // 2)


def test_a_prediction_has_the_size_of_the_reference() -> None:
    """And of what is kept its pixels, if so wished."""
    found = {}
    for composite in (False, True):
        task = Swapping(settings(composite=composite), ())
        torch.manual_seed(0)
        learner, given = task.learner(), record()
        values = {name: given[name] for name in task.inputs}
        arrays = {n: torch.as_tensor(np.stack([a])) for n, a in task.prepare(values).items()}
        with torch.inference_mode():
            [one] = learner.predict(arrays)
        assert one.picture is not None
        assert one.picture.shape == (*SIZE[::-1], 3)
        found[composite] = one.picture
    worn = parsing() > 2
    assert np.array_equal(found[True][worn], found[False][worn])
    assert np.array_equal(found[True][~worn], persons.photo(0)[~worn])
    assert not np.array_equal(found[False][~worn], persons.photo(0)[~worn])


def test_a_picture_that_is_not_finite_is_none() -> None:
    task = Swapping(settings(), ())
    learner, given = task.learner(), record()
    with torch.no_grad():
        next(learner.modules["generators"].parameters()).fill_(float("nan"))
    arrays = task.prepare({name: given[name] for name in task.inputs})
    with torch.inference_mode():
        [one] = learner.predict({n: torch.as_tensor(np.stack([a])) for n, a in arrays.items()})
    assert one.fault == NOT_FINITE


def test_without_clothes_there_are_no_scores_of_clothes() -> None:
    learner, batch = _learner(), _batch()
    bare = batch["target_parsing"].clamp(max=2)
    with torch.no_grad():
        sums = learner.evaluate({**batch, "target_parsing": bare})
    found = Swapping(settings(kid=None), ()).summarize(sums)
    assert found.keys() == {"ssim", "ssim_mirrored", "apart", "mask_iou"}


def test_an_average_begins_from_a_model_without_one() -> None:
    plain, learner = _learner(), _learner(average=0.9)
    states = {name: net.state_dict() for name, net in plain.modules.items()}
    load_start(learner, states, persons.recipe({"start": "x"}, average=0.9))
    with pytest.raises(UserError, match="but this model has"):
        load_start(learner, {"generators": states["generators"]}, persons.recipe({"start": "x"}))


def test_a_benchmark_paints_each_picture_once() -> None:
    """The third generator sees the swapped pictures alone."""
    learner, batch = _learner(kid=None), _batch()
    third = learner.net.third
    assert third is not None
    seen: list[int] = []
    third.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        learner.benchmark(batch)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"crop": [24, 18]}, "crop 18: sides are divided by 4"),
        ({"judge_layers": 3}, "crop 16: .* 24 at least under judge_layers 3"),
        ({"kept": {}}, "label 'hair' is in none of background, clothes and kept"),
        ({"clothes": {"upper": ["top", "coat"]}}, "'coat' of background, .* is none of labels"),
        ({"background": ["null", "top"]}, "label 'top' is in background, clothes and kept twice"),
        ({"labels": ["null", "null"]}, "label 'null' is in labels twice"),
        ({"kept": {"upper": ["hair", "skin"]}}, "region 'upper' is both in clothes and in kept"),
        ({"skeleton": "coco17"}, "no 'coco17'; choose among mediapipe33, coco18"),
        ({"own": 0.5}, "own and reconstruction need each other"),
        ({"stages": 3}, "stages"),
        ({"sigma": 1e300}, "sigma"),
        ({"sigma": 1e-30}, "sigma"),
        ({"parser": "x", "parser_recipe": {"a": 1}}, "parser_recipe.recipe is required"),
        ({"parser_recipe": {"recipe": RECIPE, "classes": []}}, "parser_recipe without parser"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault) as refused:
        settings(**changes)
    assert "\n" not in str(refused.value)


def test_parameters_of_the_control_are_those_of_one_generator() -> None:
    """Which sees what both see."""

    def count(net: nn.Module | None) -> int:
        return 0 if net is None else sum(p.numel() for p in net.parameters())

    two, one = _learner().net, _learner(stages=1).net
    assert one.second is None
    assert count(one.first) - count(two.first) == 4 * 7 * 7 * (4 + 3)
    assert count(two.third) == count(one.third)
