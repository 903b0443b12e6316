"""The data of a run: opened as flags and recipe say, frozen when it begins, and checked."""

from __future__ import annotations

import json

import numpy as np

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import WORK, read_manifest
from imgray.artifacts.output import read_object
from imgray.data.joins import Columns
from imgray.data.layout import place_of
from imgray.data.names import FROZEN
from imgray.data.sources import Source
from imgray.engine.progress import say
from imgray.engine.settings import EvaluateModelConfig, TrainConfig
from imgray.training.examples import Examples
from imgray.training.recipe import Recipe
from imgray.training.task import task_of

COMPLETED = "settings.json"
"""Holds, with the work, the settings that the data have decided."""
LOOKED_AT = 64
"""Records of each part that are made examples of before a run."""


def lengths(features: dict[str, str]) -> dict[str, int]:
    """How long the vectors of features artifacts are, by input. Raises `UserError`."""
    return {name: Columns(name, flag).dim for name, flag in features.items()}


def source_of(config: TrainConfig | EvaluateModelConfig) -> Source:
    """The data set of a job, which any process finds. Raises `UserError`."""
    return Source(Folder(config.data).absolute, config.layout, config.joined)


def digests(features: dict[str, str]) -> dict[str, str]:
    """What tells features artifacts from others at their places, by input. Raises `UserError`."""
    places = {name: Folder(place_of(flag)) for name, flag in features.items()}
    return {name: read_manifest(place, "features").digest for name, place in places.items()}


def frozen(source: Source, recipe: Recipe, output: Folder) -> Source:
    """The data as they are now, or as they were when an earlier run began this output.

    Workers and later runs see these, and list nothing again. Raises `UserError`.
    """
    kept = output.below(WORK)
    if not kept.exists(FROZEN):
        open_examples(recipe, source)
        report_skipped(source)
        source.snapshot.save(kept)
    return Source(source.uri, source.layout, source.features, kept)


def report_skipped(source: Source) -> None:
    """Say what was passed over in tars."""
    if source.snapshot.skipped.counts:
        say(f"{source.uri}: passed over {source.snapshot.skipped}")


def completed(recipe: Recipe, data: Source, output: Folder) -> Recipe:
    """A recipe with the settings that the data decide, or decided when an earlier run began.

    Raises `UserError`.
    """
    kept = output.below(WORK)
    if kept.exists(COMPLETED):
        settings = read_object(kept, COMPLETED)
    else:
        examples = open_examples(recipe, data)
        settings = examples.task.completed(examples.train)
        if settings:
            kept.write(COMPLETED, json.dumps(settings).encode())
    return recipe.model_copy(update={"settings": recipe.settings | settings})


def open_examples(recipe: Recipe, data: Source | str) -> Examples:
    """Open both parts of the data. Raises `UserError`."""
    source = Source(data) if isinstance(data, str) else data
    fields = task_of(recipe, ()).fields
    train, val = recipe.data.training(source, fields), recipe.data.validation(source, fields)
    task = task_of(recipe, train.classes)
    parts = task.arranged(train, False), task.arranged(val, True)
    return Examples(task, *parts, recipe.batch_size, recipe.seed)


def check_examples(examples: Examples) -> None:
    """Refuse data that cannot be learnt from. Raises `UserError`."""
    examples.train.check()
    examples.val.check()
    examples.task.check_training_data(examples.train)
    examples.task.check_classes(examples.val)
    for part in (examples.train, examples.val):
        for index in np.unique(np.linspace(0, len(part) - 1, LOOKED_AT).astype(int)):
            examples.example(part[int(index)], None)
