"""Small models of every task, trained in seconds on pictures that differ by halves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from poison import encoded, halves
from torch import nn

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import WORK, Manifest, publish, scratch
from imgray.engine.train import check_examples, open_examples
from imgray.training.loop import CURVES, Run
from imgray.training.models import load_model, save_model
from imgray.training.recipe import Recipe
from imgray.training.task import task_of

SIZE = 32
RECIPES: dict[str, dict[str, Any]] = {
    "folders": {
        "task": "imgray.classification.images:Classification",
        "settings": {"layout": "cfn7-norm", "width": 0.1, "rate": 0.05, "pad": 2, "mirror": True},
    },
    "masks": {
        "task": "imgray.classification.segmentation:Segmentation",
        "settings": {
            "trunk": "vgg16", "weights": "none", "width": 0.1, "crop": SIZE, "rate": 0.1,
            "classes": ["left", "right"], "void": 7,
        },
    },
    "edges": {
        "task": "imgray.classification.edges:EdgeDetection",
        "settings": {
            "trunk": "vgg16", "weights": "none", "width": 0.1, "crop": SIZE, "rate": 0.01
        },
    },
}  # fmt: skip
TRUTHS = {"folders": "folders", "masks": "masks", "edges": "boundaries"}


def picture(flip: bool, number: int) -> Image.Image:
    image = halves((40, 36)).point(lambda value: min(255, value + 2 * number))
    if not flip:
        return image
    red, green, blue = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).split()
    return Image.merge("RGB", (blue, green, red))


def write(format: str, folder: Path) -> Path:
    """Pictures with an orange left half or a blue right one, laid out and labelled as `format`."""
    mask = np.zeros((36, 40), np.uint8)
    mask[:, 20:] = 1
    mask[:3] = 7
    drawn = np.zeros((3, 36, 40), bool)
    drawn[:, :, 19] = True
    for part, count in (("train", 12), ("val", 5)):
        for number in range(count):
            flip = bool(number % 2)
            files = {"folders": f"{part}/{'right' if flip else 'left'}/{number}.png"}
            files |= {
                "masks": f"{part}/images/{number}.png",
                "edges": f"images/{part}/{number}.png",
            }
            path = folder / files[format]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(flip, number), "PNG"))
            if format == "masks":
                labels = np.where(mask == 7, 7, 1 - mask) if flip else mask
                path = folder / f"{part}/labels/{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels.astype(np.uint8)).save(path)
            if format == "edges":
                path = folder / f"boundaries/{part}/{number}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, boundaries=np.packbits(drawn, axis=-1), shape=drawn.shape)
    return folder


def train(format: str, data: Path, output: Folder, steps: int = 30, **changes: Any) -> Run:
    """Train for some steps by the plain loop, and publish the model. `changes` are of settings."""
    recipe = Recipe.model_validate(
        {
            **RECIPES[format],
            "settings": RECIPES[format]["settings"] | changes,
            "data": {"truth": TRUTHS[format]},
            "batch_size": 6,
            "steps": steps,
            "log_every": 5,
            "schedule": {"kind": "cosine"},
        }
    )
    examples = open_examples(recipe, str(data))
    check_examples(examples)
    with scratch() as work:
        run = Run(recipe, examples, Folder(str(work)))
        run.fit()
    published(output, recipe, examples.task.classes, run.nets, run.lines)
    return run


def untrained(task: str, output: Folder, **settings: Any) -> None:
    """Publish a model of a task without classes as it is before the first step."""
    recipe = recipe_of(task, **settings)
    torch.manual_seed(0)
    published(output, recipe, (), task_of(recipe, ()).learner().modules, [])


def recipe_of(task: str, **settings: Any) -> Recipe:
    """A recipe of a task that names no data."""
    more = {"data": {"truth": "folders"}, "batch_size": 1, "steps": 1}
    return Recipe.model_validate({"task": task, "settings": settings, **more})


def published(output: Folder, recipe: Recipe, classes: Any, nets: Any, lines: Any) -> None:
    states = {name: net.state_dict() for name, net in nets.items()}
    files, about = save_model(output, recipe, classes, states, lines)
    publish(output, Manifest(kind="model", config={}, about=about, files=files))


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def check_goes_on(make: Callable[[Path], Run], folder: Path, steps: int) -> tuple[Run, Run]:
    """A run that ends after some steps, and goes on, has the networks of one that did not end.

    `make` makes it in a folder. Returns both: the whole one, and the one that went on.
    """
    whole, stopped, again = (make(folder / name) for name in ("whole", "stopped", "stopped"))
    whole.fit()
    stopped.steps = steps
    stopped.fit()
    again.fit()
    for name, net in whole.nets.items():
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, again.nets[name].state_dict()[key]), (name, key)
    return whole, again


def check_equal(output: Path, whole: Path) -> None:
    """A model, done, has the tensors and curves of another, to the last bit."""
    found, wanted = (load_model(str(one)).learner.modules for one in (output, whole))
    for net, module in wanted.items():
        tensors = found[net].state_dict()
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, tensors[name]), (net, name)
    assert (output / CURVES).read_bytes() == (whole / CURVES).read_bytes()
    assert not (output / WORK).exists()
