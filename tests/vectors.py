"""Tables of vectors of images and of their texts, which a few hidden numbers make."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imgray.artifacts.folder import Folder
from imgray.data.sources import Source
from imgray.training.examples import Examples
from imgray.training.loop import Place, Run
from imgray.training.recipe import Recipe
from imgray.training.task import task_of

IMAGE, TEXT, TEXTS = 12, 9, 3
"""Lengths of the vectors, and texts of each image."""
TASK = "imgray.matching.matcher:Matching"


def write_pairs(
    path: Path, images: int = 60, held: int = 20, seed: int = 0, classes: int = 0
) -> Path:
    """A Parquet table of vectors: `image`, `text`, `group` and `split`, and of classes `label`."""
    chance = np.random.default_rng(seed)
    hidden = chance.normal(size=(images + held, 4))
    labels = np.arange(images + held) % max(1, classes)
    if classes:
        hidden += 4 * chance.normal(size=(classes, 4))[labels]
    maps = [chance.normal(size=(4, dim)) for dim in (IMAGE, TEXT)]
    rows = []
    for n, own in enumerate(hidden):
        image = np.tanh(own @ maps[0] / 3) + 0.2 * chance.normal(size=IMAGE)
        for k in range(TEXTS):
            text = own @ maps[1] / 3 + 0.3 * chance.normal(size=TEXT)
            vectors = {"image": image.astype(np.float32), "text": text.astype(np.float32)}
            split = "train" if n < images else "val"
            rows.append({"id": f"{n}-{k}", "group": f"g{n}", "split": split, **vectors})
            if classes:
                rows[-1]["label"] = f"class {labels[n]}"
    order = chance.permutation(len(rows))
    pq.write_table(pa.Table.from_pylist([rows[place] for place in order]), path)
    return path


def recipe_of(task: str = TASK, dims: bool = True, **changes: Any) -> Recipe:
    """A recipe for such a table, small; `changes` beside `recipe` are settings."""
    recipe = {"batch_size": 40, "steps": 60, "checkpoint_every": 1000, "evaluate_every": 1000}
    recipe |= {"data": {}, "schedule": {"kind": "cosine"}} | changes.pop("recipe", {})
    settings = {"dims": {"image": IMAGE, "text": TEXT}} if dims else {}
    settings |= {"dim": 6, "hidden": 24, "rate": 0.05, "negatives": 10} | changes
    return Recipe.model_validate({"task": task, "settings": settings, **recipe})


def run_of(recipe: Recipe, data: Path, folder: Path, place: Place | None = None) -> Run:
    """A run that has not begun."""
    source = Source(str(data))
    train = recipe.data.training(source, task_of(recipe, ()).fields)
    val = recipe.data.validation(source, task_of(recipe, ()).fields)
    task = task_of(recipe, train.classes)
    examples = Examples(task, train, val, recipe.batch_size, recipe.seed)
    return Run(recipe, examples, Folder(str(folder)), place)
