"""Train a model on the workers of a cluster (Ray Train), fed by Ray Data."""

from __future__ import annotations

import os
import threading
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.fs
import ray
import torch
from pydantic import BaseModel, ValidationError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import Identity
from imgray.artifacts.manifest import WORK, Manifest, read_manifest
from imgray.artifacts.output import stored_config
from imgray.config import read_yaml
from imgray.data.sources import Source
from imgray.engine.cluster import cluster, given_device, named_cluster
from imgray.engine.examples import (
    check_examples,
    completed,
    digests,
    frozen,
    lengths,
    open_examples,
    source_of,
)
from imgray.engine.feed import Feed
from imgray.engine.producer import migrated, produce
from imgray.engine.settings import TrainConfig
from imgray.engine.watch import follow, start_watch
from imgray.errors import UserError, cause_of
from imgray.features.memory import keep_freed
from imgray.training import catalog, models, workers
from imgray.training.carried import carry
from imgray.training.checkpoints import Keeper
from imgray.training.loop import Place, Run, States, in_threads, load_start
from imgray.training.models import fingerprint_of, save_model
from imgray.training.recipe import Recipe, with_changes
from imgray.training.sheet import SAMPLES
from imgray.training.task import (
    Task,
    check_names,
    named_models,
    named_places,
    settled_recipe,
    with_dims,
)

CHECKPOINTS = f"{WORK}/checkpoints"
PLACE_SECONDS = 20
"""How long an elastic group waits for the CPUs of a node that Ray has yet to find lost."""


class TrainResult(BaseModel):
    """What a training run has made."""

    output: str
    steps: int
    fingerprint: str
    metrics: dict[str, float]

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"{self.steps:,} steps\nvalidation: {scores}\nmodel: {self.output}"


@dataclass
class LostWorkers(UserCallback):
    """Tells the watch of workers that have gone."""

    watch: Any

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.watch.lose.remote()


def read_recipe(path: str, changes: list[str]) -> Recipe:
    """Read and validate a recipe, with `KEY=VALUE` changes to it. Raises `UserError`.

    Args:
        path: of a YAML file, or the name of a recipe that comes along.
        changes: settings and their values, which are YAML.
    """
    values = read_yaml(catalog.find(path), "--recipe")
    return with_changes(values, changes, f"--recipe {path}")


def check_recipe(recipe: Recipe, task: Task) -> None:
    """Refuse names of no optimizer or network, and weights that do not fit. Raises `UserError`."""
    if recipe.optimizers or recipe.start:
        learner = task.learner(initial=False)
        check_names(recipe, learner)
        if start := _start(recipe):
            load_start(learner, start, recipe)


def train(config: TrainConfig) -> TrainResult:
    """Train, continue a training, or find that it is done."""
    recipe = read_recipe(config.recipe, config.set)
    if recipe.batch_size < config.span[1]:
        raise UserError(
            f"batch_size {recipe.batch_size} is less than {config.span[1]} workers: each needs an "
            "example per step"
        )
    output, source = Folder(config.output), source_of(config)
    if source.features:
        recipe = with_dims(recipe, lengths(source.features))
    identity = config.identity() | {"recipe": recipe.model_dump(mode="json", by_alias=True)}
    if recipe.start:
        prints = {name: _fingerprint(uri) for name, uri in recipe.starts.items()}
        identity["start"] = prints.get("", prints)
    if named := named_models(recipe):
        identity["models"] = _prints(named, output, config.overwrite)
    if config.features:
        identity["joined"] = digests(source.features)
    identity = _migrated(identity)
    manifest = produce(
        output,
        "model",
        identity,
        partial(_train, config, recipe, identity, source),
        sources=[*source.uris, *named_places(recipe)],
        notes=[CHECKPOINTS],
        overwrite=config.overwrite,
        wait=config.wait,
        migrate=_migrated,
    )
    return TrainResult(
        output=output.uri,
        steps=manifest.counts["steps"],
        fingerprint=manifest.about["fingerprint"],
        metrics=manifest.about["metrics"],
    )


def _prints(named: Mapping[str, str], output: Folder, anew: bool) -> dict[str, str]:
    """Fingerprints of models by name; of one that has gone since, what the run began with."""
    found = {}
    for name, uri in named.items():
        try:
            found[name] = _fingerprint(uri)
        except UserError as error:
            kept = {} if anew else stored_config(output, "model").get("models", {})
            if name not in kept:
                raise UserError(f"settings.{name}: {error}") from None
            found[name] = kept[name]
    return found


def _fingerprint(model: str) -> str:
    return fingerprint_of(read_manifest(Folder(model), "model"))


def _migrated(stored: Identity) -> Identity:
    """Settings of a run as they are stored today: the recipe validated, all URIs absolute."""
    stored = migrated(TrainConfig, stored)
    try:
        recipe = settled_recipe(Recipe.model_validate(stored["recipe"]))
    except (KeyError, ValidationError, UserError):  # of another version, and so another recipe
        return stored
    return stored | {"recipe": recipe.model_dump(mode="json", by_alias=True)}


def _train(
    config: TrainConfig, recipe: Recipe, identity: Identity, source: Source, output: Folder
) -> Manifest:
    data = frozen(source, recipe, output)
    recipe = completed(recipe, data, output)
    examples = open_examples(recipe, data)
    check_examples(examples)
    check_recipe(recipe, examples.task)
    inputs = {name: flag for name, flag in source.features.items() if name in examples.task.inputs}
    carried = carry(inputs, output)
    kept = output.below(CHECKPOINTS)
    steps = recipe.length(len(examples.train))
    with cluster():
        _fit(config, settled_recipe(recipe), data, kept, output)
    found = Keeper(kept).newest()
    assert found is not None
    assert found[0] == steps
    state = found[1]
    samples = kept.read(SAMPLES) if kept.exists(SAMPLES) else None
    files, about = save_model(
        output, recipe, examples.task.classes, state["modules"], state["lines"], samples, carried
    )
    counts = {"steps": steps, "train": len(examples.train), "validate": len(examples.val)}
    return Manifest(kind="model", config=identity, counts=counts, about=about, files=files)


def _fit(config: TrainConfig, recipe: Recipe, data: Source, kept: Folder, output: Folder) -> None:
    scaling = _scaling(config)
    if config.span[0] < config.span[1]:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACE_SECONDS))
    watch = start_watch()
    loop = {"recipe": recipe, "data": data, "kept": kept, "watch": watch}
    trainer = TorchTrainer(
        _work,
        train_loop_config={**loop, "feeders": config.feeders},
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            failure_config=FailureConfig(max_failures=config.retries),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[LostWorkers(watch)],  # type: ignore[list-item]
            **_storage(output),
        ),
    )
    failed: list[BaseException] = []
    thread = threading.Thread(target=_fitted, args=(trainer, failed), daemon=True)
    thread.start()  # Ray takes over Ctrl-C where `fit` runs in the main thread
    follow(thread, watch, config.patience)
    if failed:
        raise UserError(f"training failed {config.retries + 1} times: {_reason(failed[0])}")


def _fitted(trainer: TorchTrainer, failed: list[BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as error:
        failed.append(error)


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _scaling(config: TrainConfig) -> ScalingConfig:
    least, most = config.span
    have = ray.cluster_resources()
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) >= 1 else 0.0
    resources = {"CPU": float(config.cpus_per_worker)} | ({"GPU": gpus} if gpus else {})
    lacking = {k: n for k, n in resources.items() if have.get(k, 0.0) < least * n}
    if lacking and (not named_cluster() or not config.patience):
        name, each = lacking.popitem()
        raise UserError(
            f"--workers {config.workers}: {least} workers of {each:g} {name} each, but the cluster "
            f"has {have.get(name, 0.0):g}; ask for fewer, or --{name.lower()}s-per-worker"
        )
    count: Any = least if least == most else (least, most)
    return ScalingConfig(
        num_workers=count,
        use_gpu=bool(gpus),
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=config.grow_every,  # type: ignore[call-arg]
    )


def _storage(output: Folder) -> dict[str, Any]:
    """Where Ray Train keeps its own notes: with the work, and removed with it."""
    path = output.path(f"{WORK}/ray")
    if not output.is_s3:
        return {"storage_path": path}
    handler = pyarrow.fs.FSSpecHandler(output.file_system)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}


def _work(loop: dict[str, Any]) -> None:
    """What every worker of Ray Train runs."""
    watch = loop["watch"]
    if ray.get(watch.look.remote(0)).error:
        return
    keep_freed()
    context = ray.train.get_context()
    place = Place(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=_device(),
        batches=Feed(loop["feeders"]) if loop["feeders"] else in_threads,
        report=lambda done, steps, line: watch.tell.remote(done, steps, line),
    )
    if place.rank == 0:
        watch.begin.remote(place.world)
    try:
        recipe: Recipe = loop["recipe"]
        examples = open_examples(recipe, loop["data"])
        Run(recipe, examples, loop["kept"], place, _start(recipe)).fit()
    except Exception as error:
        if workers.gone(place.world):
            raise  # whatever the error says, it comes of that
        if cause := cause_of(error):
            ray.get(watch.fail.remote(True, str(cause)))
        elif not _lost_another(error):
            ray.get(watch.fail.remote(False, traceback.format_exc()))
        raise


def _device() -> str:
    """The worker's own among the GPUs of its machine, all of which Ray Train shows it."""
    device = given_device()
    return device if device == "cpu" else str(ray.train.torch.get_device())


def _start(recipe: Recipe) -> States | None:
    return models.load_start(recipe.starts) if recipe.start else None


def _lost_another(error: Exception) -> bool:
    """Whether an exception may only say that another worker, node or store has gone."""
    if isinstance(error, ray.exceptions.RayError):
        return not isinstance(error, ray.exceptions.RayTaskError)
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text)
