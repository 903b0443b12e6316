"""Score a trained model on the labelled part of a data set, in Ray tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ray
import torch
from torch import Tensor

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest, sha256
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import first_picture
from imgray.data.pixels import Rejected
from imgray.data.sources import Source
from imgray.engine.cluster import TASK_RETRIES, cluster, given_device, plan_pool
from imgray.engine.evaluate_index import Scores
from imgray.engine.examples import report_skipped, source_of
from imgray.engine.progress import Progress
from imgray.engine.settings import EvaluateModelConfig
from imgray.errors import UserError
from imgray.features.memory import keep_freed
from imgray.training.carried import check_same, fields_of
from imgray.training.examples import Examples
from imgray.training.loop import Loader, add_up, in_threads, precision
from imgray.training.models import Model, load_model, load_task
from imgray.training.recipe import Recipe, with_changes
from imgray.training.task import Plots, Task, settled_recipe
from imgray.training.workers import merged

SCORED_BY = ("settings", "data", "batch_size", "precision")
"""Of a recipe."""


def evaluate_model(config: EvaluateModelConfig) -> Scores:
    """Sum over the part in parallel tasks, and sum up."""
    folder = Folder(config.model)
    source = source_of(config)
    recipe = _recipe(folder, config.set)
    examples = _open(folder, recipe, source, config.part)
    report_skipped(source)
    plots = _plots(examples.task) if config.figure else None
    examples.val.check()
    with cluster():
        pool = plan_pool(config.workers, config.cpus_per_worker, config.gpus_per_worker)
        world = min(pool.workers, examples.validations(0, 1))
        task = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=TASK_RETRIES)(_sums)
        found = ray.put(source)  # its snapshot may be large
        waiting = tasks = [
            task.remote(
                config.cpus_per_worker, rank, world, folder.absolute, recipe, found, config.part
            )
            for rank in range(world)
        ]
        progress = Progress("evaluate", len(examples.val))
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done[0])  # raises at once what it has met
            progress.add(min(-(-len(examples.val) // world), progress.total - progress.done))
        parts: list[dict[str, Tensor]] = [ray.get(one) for one in tasks]
    sums = merged(parts, examples.task.rows)
    if plots and config.figure:
        plots.plot(sums, Path(config.figure))
    return Scores(examples.task.summarize(sums))


def _recipe(model: Folder, changes: Sequence[str]) -> Recipe | None:
    """That of the model with changes of what scores depend on; None without. `UserError`."""
    if not changes:
        return None
    recipe, _ = load_task(model, read_manifest(model, "model"))
    for change in changes:
        if change.partition("=")[0].partition(".")[0] not in SCORED_BY:
            raise UserError(f"--set {change}: scores depend on {', '.join(SCORED_BY)} alone")
    values = recipe.model_dump(mode="json", by_alias=True)
    return settled_recipe(with_changes(values, changes, f"{model.uri}: the recipe"))


def _plots(task: Task) -> Plots:
    """The task, which must plot. Raises `UserError`."""
    if not isinstance(task, Plots):
        raise UserError(f"--figure: evaluation of {type(task).__name__} draws none")
    return task


def _open(model: Folder, recipe: Recipe | None, source: Source, part: str | None) -> Examples:
    """The part, of which a table holds what the model takes, and the truth. Raises `UserError`."""
    manifest = read_manifest(model, "model")
    recipe, task = load_task(model, manifest, recipe)
    check_same(manifest, source.features)
    fields = fields_of(manifest, task, source.features)
    val = recipe.data.part(source, part, fields) if part else recipe.data.validation(source, fields)
    task.check_classes(val)
    val = task.arranged(val, scored=True)
    return Examples(task, val, val, recipe.batch_size, recipe.seed)


class Embedded(Dataset):
    """A part whose records have the vectors that a model makes of pictures and texts itself.

    The same picture may come out in other last digits in another batch, so the records of one
    picture are told to be a group by its bytes, unless they name their group.
    """

    def __init__(self, part: Dataset, model: Model) -> None:
        self.whole, self.model = part, model
        self.part, self.names, self.classes = part.part, part.names, part.classes
        self.picture = first_picture(model.inputs) or ""

    def __getitem__(self, index: int) -> Record:
        [found] = self.records([index])
        return found

    def records(self, rows: Sequence[int]) -> list[Record]:
        return self.model.embedded([self._decoded(one) for one in self.whole.records(rows)])

    def _decoded(self, record: Record) -> Record:
        picture = record.get(self.picture) if self.picture in self.model.extractors else None
        group = {} if picture is None else {"group": sha256(picture)}
        try:
            return group | self.model.decoded(record)
        except Rejected as error:
            raise UserError(f"{record['id']}: {error}; mend or remove it") from None


def _sums(
    cpus: int,
    rank: int,
    world: int,
    model: str,
    recipe: Recipe | None,
    source: Source,
    part: str | None,
) -> dict[str, Tensor]:
    """Sums over a worker's share of the examples."""
    torch.set_num_threads(cpus)
    keep_freed()
    device = given_device()
    loaded = load_model(model, source.features, recipe)
    loaded.to(device)
    examples = _open(Folder(model), recipe, source, part)
    if loaded.extractors:
        examples = replace(examples, val=Embedded(examples.val, loaded))
    load = Loader(examples.validation, rank, world)
    batches = in_threads(load, range(examples.validations(rank, world)))
    with precision(loaded.recipe, device):
        return add_up(loaded.learner.benchmark, loaded.learner, batches, device, loaded.task.rows)
