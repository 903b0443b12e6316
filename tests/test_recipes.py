"""The recipes that come along: each is valid, builds its networks, and says what was published."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from trained import count_parameters

from imgray.classification.cfn import LAYOUTS
from imgray.classification.fusion import Fusion
from imgray.config import validate
from imgray.engine.train import read_recipe
from imgray.errors import UserError
from imgray.features.trunk import TRUNKS
from imgray.training.catalog import FOLDER, find, listing
from imgray.training.recipe import Recipe, Settings
from imgray.training.task import Task, task_of, with_dims

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
RRF = {
    "layout": "rrf", "dims": {"image": 2048, "text": 6000}, "dim": 512, "hidden": 2048, "steps": 3,
    "dropout": 0.5, "alphas": (1.0, 0.5, 2.0, 1.0), "margin": 0.1, "negatives": 50, "memory": 0,
    "first": "none", "loss": "bi-rank", "optimizer": "sgd", "rate": 0.1, "momentum": 0.9,
    "weight_decay": 5e-4,
}  # fmt: skip
CAFFE = {"momentum": 0.9, "weight_decay": 1e-4}
SIDES = {
    "trunk": "vgg16", "net": "rds", "reduction": "sum", "rate": 1e-9, "momentum": 0.9,
    "weight_decay": 2e-4, "annotators": 3, "dilation": 1, "order": "given",
}  # fmt: skip

PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cfn-cifar10": (
        {"batch_size": 100, "steps": 120_000},
        {"layout": "cfn7", "rate": 0.1, "mirror": False, "pad": 0, "size": 32, **CAFFE},
    ),
    "cfn-cifar100": (
        {"batch_size": 100, "steps": 120_000},
        {"layout": "cfn7-wide", "rate": 0.1, "mirror": False, "pad": 0, "size": 32, **CAFFE},
    ),
    "cfn11-imagenet": (
        {"batch_size": 64, "steps": 200_000},
        {"layout": "cfn11", "rate": 0.01, "mirror": True, "size": 224, "pad": 0, **CAFFE},
    ),
    "rds-bsds": ({"batch_size": 8, "steps": 500}, {**SIDES, "relaxed": "ignore"}),
    "hed-bsds": ({"batch_size": 8, "steps": 500}, {**SIDES, "relaxed": "negative"}),
    "rds-cea": ({"batch_size": 8}, {**SIDES, "relaxed": "ignore"}),
    "rrf-flickr30k": ({"batch_size": 1500, "steps": 6500, "precision": "float32"}, RRF),
    "rrf-coco": ({"batch_size": 1500, "steps": 16_500, "precision": "float32"}, RRF),
}
TRANSLATION = {
    "width": 64, "blocks": 9, "judge_width": 64, "judge_layers": 3, "load": 286, "crop": 256,
    "mirror": True, "cycle": 10.0, "identity": 0.0, "pool": 50, "rate": 2e-4, "momentum": 0.5,
    "average": 0.0, "upsampling": "transposed",
}  # fmt: skip
PUBLISHED |= {
    "cyclegan": ({"batch_size": 1, "epochs": 200}, {**TRANSLATION, "stages": 1, "inner": False}),
    "long-cyclegan": ({"batch_size": 1}, {**TRANSLATION, "stages": 2, "inner": False}),
    "nest-cyclegan": ({"batch_size": 1}, {**TRANSLATION, "stages": 2, "inner": True}),
}
SWAP = {
    "stages": 2, "width": 64, "blocks": 6, "judge_width": 64, "judge_layers": 3, "crop": (128, 128),
    "mask": 10.0, "own": 0.0, "reconstruction": 0.0, "composite": False, "average": 0.0,
    "rate": 2e-4, "momentum": 0.5, "skeleton": "mediapipe33", "upsampling": "transposed",
}  # fmt: skip
"""Our reading of what is published of SwapGAN."""
PUBLISHED |= {"swapgan": ({"batch_size": 8}, SWAP)}
RATES = {
    "cyclegan": {0: 2e-4, 100: 2e-4, 150: 1e-4, 199: 2e-6},
    "cfn-cifar10": {0: 0.1, 39_999: 0.1, 40_000: 0.01, 80_000: 1e-3, 119_999: 1e-3},
    "cfn-cifar100": {0: 0.1, 39_999: 0.1, 40_000: 0.01, 80_000: 1e-3, 119_999: 1e-3},
    "cfn11-imagenet": {0: 0.01, 99_999: 0.01, 100_000: 1e-3, 150_000: 1e-4, 199_999: 1e-4},
    "rds-bsds": {0: 1e-9, 499: 1e-9},
    "hed-bsds": {0: 1e-9, 499: 1e-9},
    "rrf-flickr30k": {0: 0.1, 1999: 0.1, 2000: 0.01, 4000: 1e-3, 6000: 1e-4, 6499: 1e-4},
    "rrf-coco": {0: 0.1, 5499: 0.1, 5500: 0.01, 11_000: 1e-3, 16_499: 1e-3},
}
PARAMETERS = {"cfn-cifar10": (10, 1_343_146), "cfn-cifar100": (100, 2_386_276)}
PARAMETERS |= {"cfn11-imagenet": (1000, 6_752_362)}


def _read(name: str, *changes: str) -> Recipe:
    return read_recipe(name, list(changes))


def _task(name: str, classes: int = 2) -> Task:
    """The task of a recipe, which takes lengths of vectors from features that are joined."""
    recipe = _read(name)
    joined = {"image": 2560} if "words" in recipe.settings else {"image": 2560, "text": 384}
    recipe = with_dims(recipe, joined)
    return task_of(recipe, [str(label) for label in range(classes)])


def _net(task: Task) -> tuple[torch.nn.Module, Any]:
    with torch.device("meta"):
        learner = task.learner(initial=False)
    return learner.modules["net"], learner.optimizers.get("net")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_builds_its_networks(name: str) -> None:
    assert _read(name).length(10_000) >= 1
    with torch.device("meta"):
        learner = _task(name).learner(initial=False)
    assert all(p.is_meta for net in learner.modules.values() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "setting", "names"),
    [
        ("cfn-digits", "layout", LAYOUTS),
        ("cfn-digits", "fusion", [*get_args(Fusion), "none"]),
        ("fcfn-mosaics", "fusion", get_args(Fusion)),
        ("fcfn-mosaics", "trunk", TRUNKS),
        ("rds-mosaics", "trunk", TRUNKS),
    ],
)
def test_a_setting_takes_the_names_of_its_table_and_no_other(
    name: str, setting: str, names: Collection[str]
) -> None:
    recipe = _read(name)

    def settings(value: str) -> Any:
        changed = recipe.settings | {setting: value}
        return task_of(recipe.model_copy(update={"settings": changed}), ["a", "b"]).settings

    for known in names:
        assert getattr(settings(known), setting) == known
    with pytest.raises(UserError) as error:
        settings("cfn8")
    assert str(error.value).startswith(f"recipe: settings: {setting}: ")
    assert "\n" not in str(error.value)
    assert all(known in str(error.value) for known in names)


def test_the_listing_says_a_sentence_of_each() -> None:
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.endswith(".") and len(line) < 120 for line in lines)


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert find("cfn-digits") == FOLDER / "cfn-digits.yaml"
    assert find("./cfn-digits") == Path("cfn-digits")
    assert find("cfn-digits.yaml") == Path("cfn-digits.yaml")
    with pytest.raises(UserError, match=r"did you mean 'cfn-digits'.*imgray train --list"):
        find("cfn-digit")
    with pytest.raises(UserError, match="no such recipe; `imgray train --list`"):
        find("zebra")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    recipe, settings = PUBLISHED[name]
    found = _read(name), _task(name).settings
    assert {key: getattr(found[0], key) for key in recipe} == recipe
    assert {key: getattr(found[1], key) for key in settings} == settings


@pytest.mark.parametrize("name", RATES)
def test_published_rates(name: str) -> None:
    recipe, task = _read(name), _task(name)
    for step, rate in RATES[name].items():
        factor = recipe.schedule.factor(step, recipe.length(1))
        assert task.settings.rate * factor == pytest.approx(rate)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameters(name: str) -> None:
    classes, count = PARAMETERS[name]
    net, _ = _net(_task(name, classes))
    assert count_parameters(net) == count


@pytest.mark.parametrize("name", ["rds-bsds", "hed-bsds", "rds-cea"])
def test_published_multipliers(name: str) -> None:
    """Of RDS' files: conv5 100, the others of the trunk 1, sides and fusion 0.01; biases double."""
    net, optimizer = _net(_task(name))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = {
        names[id(parameter)]: group["lr"] / 1e-9
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, rate in found.items():
        layer = 100.0 if ".trunk.stages.4." in name else 1.0 if ".trunk." in name else 0.01
        assert rate == pytest.approx(layer * (2 if name.endswith("bias") else 1)), name
    assert len(found) == 2 * (13 + 5 + 1)


def test_caffes_pixels_are_less_their_mean_and_no_more() -> None:
    for name in ("cfn11-imagenet", "rds-bsds", "hed-bsds", "rds-cea"):
        settings: Any = _task(name).settings
        assert [255 * value for value in settings.std] == pytest.approx([1] * 3, abs=1e-3)
        assert [255 * value for value in settings.mean] == pytest.approx([123, 117, 104], abs=0.5)


def test_the_supervised_upper_bound_differs_in_its_losses_alone() -> None:
    bound, plain = (_read(name) for name in ("pix2pix-64", "cyclegan-64"))
    own = {"cycle": 0, "supervised": 100, "paired": True}
    assert bound == plain.model_copy(update={"settings": plain.settings | own})


def test_edges_are_fine_tuned_from_coarse_ones() -> None:
    recipe = _read("rds-bsds", "start=out/rds-cea")
    assert recipe.start == "out/rds-cea"
    coarse, fine = (_net(_task(name))[0].state_dict() for name in ("rds-cea", "rds-bsds"))
    assert {k: v.shape for k, v in coarse.items()} == {k: v.shape for k, v in fine.items()}


@pytest.mark.parametrize(
    "change", ["x=[1", "seed=2024-13-45", "settings.rate=!!python/name:os.system", "x=a: b: c"]
)
def test_a_change_that_is_not_yaml_is_refused_in_one_line(change: str) -> None:
    with pytest.raises(UserError) as error:
        _read("cfn-digits", change)
    assert str(error.value).startswith(f"--set {change}: not YAML: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("epochs=.inf", "epochs"), ("settings.rate=.nan", "rate"), ("seed=1" + "0" * 40, "seed"),
        ("settings.resize=8", "resize 8 is less than size"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused(change: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        task_of(read_recipe("cfn-digits", [change]), ["a", "b"])


def _kinds(annotation: Any) -> Iterator[Any]:
    """A type, and all of which it is made."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


def _counted() -> Iterator[tuple[type[Settings], str]]:
    """All settings of all tasks that hold whole numbers, or widths."""
    waiting: list[Any] = [type(_task(name).settings) for name in NAMES]
    found = {Recipe: {"batch_size"}}
    while waiting:
        if (kind := waiting.pop()) in found:
            continue
        parts = {n: list(_kinds(field.annotation)) for n, field in kind.model_fields.items()}
        found[kind] = {name for name, kinds in parts.items() if int in kinds or name == "width"}
        nested = (one for kinds in parts.values() for one in kinds if isinstance(one, type))
        waiting += [one for one in nested if issubclass(one, Settings)]
    yield from ((kind, name) for kind, names in found.items() for name in sorted(names))


@pytest.mark.parametrize(("kind", "name"), _counted())
def test_no_number_asks_for_more_than_any_memory(kind: type[Settings], name: str) -> None:
    for value in (10**9, [10**9], {"image": 10**9, "text": 10**9}):
        with pytest.raises(UserError, match=f"recipe: {name}") as error:
            validate(kind, {name: value}, "recipe")
        assert "\n" not in str(error.value)


def test_a_wrong_format_is_one_fault() -> None:
    with pytest.raises(UserError) as error:
        read_recipe("cfn-digits", ["data.format=tar"])
    assert ";" not in str(error.value)
