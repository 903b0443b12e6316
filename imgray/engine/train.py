"""Train a model on the workers of a cluster (Ray Train), fed by Ray Data."""

from __future__ import annotations

import os
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.fs
import ray
import torch
import yaml
from pydantic import BaseModel, Field, model_validator
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imgray.checkpoints import Keeper
from imgray.config import JobConfig, read_yaml, validate
from imgray.engine.cluster import cluster
from imgray.engine.progress import Progress, say
from imgray.errors import UserError, cause_of
from imgray.loop import Line, Loader, Place, Run, States
from imgray.manifest import WORK, Manifest, begin, nothing_left_before, publish, read_manifest
from imgray.models import fingerprint_of, load_states, save_model
from imgray.plots import PLACES
from imgray.storage import Folder
from imgray.training import Arrays, Examples, Recipe, task_of

CHECKPOINTS = f"{WORK}/checkpoints"
LOOKED_AT = 64
POLL_SECONDS = 0.5
BLOCK = 8
PLACE_SECONDS = 20
"""How long an elastic group waits for the CPUs of a node that Ray has yet to find lost."""


class TrainConfig(JobConfig):
    """Train a model by a recipe, and publish it as an artifact."""

    runtime: ClassVar[frozenset[str]] = frozenset(
        {"output", "recipe", "set", "workers", "cpus_per_worker", "gpus_per_worker", "feeders"}
        | {"grow_every", "retries", "patience", "overwrite"}
    )

    recipe: str = Field(description="YAML file that says what to train, and how")
    data: str = Field(description="folder or s3://bucket/prefix of the data set")
    output: str = Field(description="folder or s3://bucket/prefix for the model artifact")
    set: list[str] = Field(
        default=[],
        description="settings of the recipe to change, such as batch_size=64 settings.rate=0.01",
        json_schema_extra={"metavar": "KEY=VALUE"},
    )
    workers: str = Field(
        default="1",
        pattern=r"^\d+(-\d+)?$",
        description="worker processes, or the least and the most that a changing cluster may give",
        json_schema_extra={"metavar": "N or LEAST-MOST"},
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="CPUs that each worker holds")
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs that each worker holds (default: 1 if there are any)"
    )
    feeders: int = Field(default=1, ge=1, description="processes that load data for each worker")
    grow_every: float = Field(
        default=60, gt=0, description="seconds between looks for room for more workers, up to MOST"
    )
    retries: int = Field(
        default=20, ge=0, description="how often lost workers are replaced before giving up"
    )
    patience: float = Field(
        default=600, ge=0, description="seconds to wait for the machines that workers need"
    )
    overwrite: bool = Field(default=False, description="remove what is at --output first")

    @property
    def span(self) -> tuple[int, int]:
        """The least and the most workers."""
        least, _, most = self.workers.partition("-")
        return int(least), int(most or least)

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if not 1 <= self.span[0] <= self.span[1]:
            raise ValueError(f"--workers {self.workers}: at least one, and LEAST not above MOST")
        return self


class TrainResult(BaseModel):
    """What a training run has made."""

    output: str
    steps: int
    fingerprint: str
    metrics: dict[str, float]

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"{self.steps:,} steps\nvalidation: {scores}\nmodel: {self.output}"


def read_recipe(path: str, changes: list[str]) -> Recipe:
    """Read and validate a recipe, with `KEY=VALUE` changes to it. Raises `UserError`."""
    values = read_yaml(Path(path), "--recipe")
    for change in changes:
        key, equals, text = change.partition("=")
        if not (key and equals):
            raise UserError(f"--set {change}: expected KEY=VALUE")
        place = values
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {change}: {parent} holds no settings")
        place[last] = yaml.safe_load(text)
    return validate(Recipe, values, f"--recipe {path}")


def open_examples(recipe: Recipe, data: str) -> Examples:
    """Open both parts of the data. Raises `UserError`."""
    folder = Folder(data)
    train, val = recipe.data.training(folder), recipe.data.validation(folder)
    return Examples(task_of(recipe, train.classes), train, val, recipe.batch_size, recipe.seed)


def check(examples: Examples) -> None:
    """Refuse data that cannot be learnt from. Raises `UserError`."""
    examples.task.check(examples.train)
    examples.task.check_classes(examples.val)
    for part in (examples.train, examples.val):
        for index in np.unique(np.linspace(0, len(part) - 1, LOOKED_AT).astype(int)):
            examples.example(part[int(index)], None)


def train(config: TrainConfig) -> TrainResult:
    """Train, continue a training, or find that it is done."""
    recipe = read_recipe(config.recipe, config.set)
    if recipe.batch_size < config.span[1]:
        raise UserError(
            f"batch_size {recipe.batch_size} is less than {config.span[1]} workers: each needs an "
            "example per step"
        )
    output = Folder(config.output)
    identity = {**config.identity(), "recipe": recipe.model_dump(mode="json", by_alias=True)}
    if recipe.start:
        identity["start"] = fingerprint_of(read_manifest(Folder(recipe.start), "model"))
    manifest = begin(output, "model", identity, config.overwrite)
    if manifest is None:
        with nothing_left_before(output, CHECKPOINTS):
            manifest = _train(config, recipe, identity, output)
    else:
        say(f"{output.uri}: already trained, nothing to do")
    return TrainResult(
        output=output.uri,
        steps=manifest.counts["steps"],
        fingerprint=manifest.about["fingerprint"],
        metrics=manifest.about["metrics"],
    )


def _train(
    config: TrainConfig, recipe: Recipe, identity: dict[str, Any], output: Folder
) -> Manifest:
    examples = open_examples(recipe, config.data)
    check(examples)
    kept = Folder(f"{output.uri.rstrip('/')}/{CHECKPOINTS}")
    steps = recipe.length(len(examples.train))
    with cluster():
        _fit(config, recipe, kept, output)
    found = Keeper(kept).newest()
    assert found is not None
    assert found[0] == steps
    state = found[1]
    files, about = save_model(
        output, recipe, examples.task.classes, state["modules"], state["lines"]
    )
    counts = {"steps": steps, "train": len(examples.train), "validate": len(examples.val)}
    return publish(
        output, Manifest(kind="model", config=identity, counts=counts, about=about, files=files)
    )


@dataclass(frozen=True)
class Seen:
    """Steps done and to do, what is new to tell, and an error: whether ours, and its text."""

    done: int | None
    steps: int
    news: list[str]
    error: tuple[bool, str] | None


class Watch:
    """An actor that worker 0 tells of its progress, and any worker of an error that no retry mends.

    Ray Train restarts all workers after any exception. A restarted worker finds the error here and
    ends at once, so that a plain bug does not come back `retries` times.
    """

    def __init__(self) -> None:
        self.done: int | None = None
        self.steps = 0
        self.news: list[str] = []
        self.error: tuple[bool, str] | None = None

    def begin(self, workers: int) -> None:
        """A group of workers, the first or one that replaces another, is there."""
        count = f"{workers} worker{'s' if workers > 1 else ''}"
        self.news.append(f"train: goes on with {count}" if self.news else f"train: {count}")

    def lose(self) -> None:
        """A worker has gone, or failed; the others end, and a new group begins when it can."""
        if self.done is not None and not self.error:
            self.done = None
            self.news.append("train: lost a worker")

    def tell(self, done: int, steps: int, line: Line | None) -> None:
        self.done, self.steps = done, steps
        if line and line["part"] == "validate":
            self.news.append(_told(line))

    def fail(self, ours: bool, text: str) -> None:
        self.error = self.error or (ours, text)

    def look(self, known: int) -> Seen:
        """What there is to see, news from number `known` on."""
        return Seen(self.done, self.steps, self.news[known:], self.error)


@dataclass
class Losses(UserCallback):
    """Tells the watch of workers that have gone."""

    watch: Any

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.watch.lose.remote()


def _fit(config: TrainConfig, recipe: Recipe, kept: Folder, output: Folder) -> None:
    scaling = _scaling(config)
    if config.span[0] < config.span[1]:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACE_SECONDS))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    watch: Any = ray.remote(Watch).options(num_cpus=0, scheduling_strategy=here).remote()
    loop = {"recipe": recipe, "data": config.data, "kept": kept, "watch": watch}
    trainer = TorchTrainer(
        _work,
        train_loop_config={**loop, "feeders": config.feeders},
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            failure_config=FailureConfig(max_failures=config.retries),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[Losses(watch)],  # type: ignore[list-item]
            **_storage(output),
        ),
    )
    failed: list[BaseException] = []
    thread = threading.Thread(target=_fitted, args=(trainer, failed), daemon=True)
    thread.start()  # Ray takes over Ctrl-C where `fit` runs in the main thread
    _follow(thread, watch, config.patience)
    if failed:
        raise UserError(f"training failed {config.retries + 1} times: {_reason(failed[0])}")


def _fitted(trainer: TorchTrainer, failed: list[BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as error:
        failed.append(error)


def _follow(thread: threading.Thread, watch: Any, patience: float) -> None:
    """Show progress until training ends. Raises the error that a worker has met."""
    progress, active, told = None, time.monotonic(), 0
    while True:
        ended = not thread.is_alive()
        seen: Seen = ray.get(watch.look.remote(told))
        if seen.error:
            thread.join()
            raise UserError(seen.error[1]) if seen.error[0] else RuntimeError(seen.error[1])
        active = active if seen.done is None else time.monotonic()
        if time.monotonic() - active > patience:
            raise UserError(
                f"no worker started within {patience:g} s: the cluster cannot give so many, or "
                "not yet; ask for fewer --workers, or wait longer with --patience"
            )
        for news in seen.news:
            say(news)
        told += len(seen.news)
        if seen.done is not None:
            progress = progress or Progress("train", seen.steps, seen.done, "steps")
            if seen.done != progress.done:
                progress.add(seen.done - progress.done)
        if ended:
            return
        thread.join(POLL_SECONDS)


def _told(line: Line) -> str:
    named = (item for item in line.items() if item[0] not in PLACES and "/" not in item[0])
    values = [f"{name} {value:.4g}" for name, value in named]
    return f"train: epoch {line['epoch']:g}, validation: {', '.join(values)}"


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
    if lacking and (not os.environ.get("RAY_ADDRESS") or not config.patience):
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
    context = ray.train.get_context()
    gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
    place = Place(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=str(ray.train.torch.get_device()) if gpu else "cpu",
        batches=Feed(loop["feeders"]),
        report=lambda done, steps, line: watch.tell.remote(done, steps, line),
    )
    if place.rank == 0:
        watch.begin.remote(place.world)
    try:
        recipe: Recipe = loop["recipe"]
        examples = open_examples(recipe, loop["data"])
        Run(recipe, examples, loop["kept"], place, _start(recipe)).fit()
    except Exception as error:
        if cause := cause_of(error):
            ray.get(watch.fail.remote(True, str(cause)))
        elif not _lost_another(error):
            ray.get(watch.fail.remote(False, traceback.format_exc()))
        raise


def _start(recipe: Recipe) -> States | None:
    if not recipe.start:
        return None
    folder = Folder(recipe.start)
    return load_states(folder, read_manifest(folder, "model"))


def _lost_another(error: Exception) -> bool:
    """Whether an exception may only say that another worker, node or store has gone."""
    if isinstance(error, ray.exceptions.RayError):
        return not isinstance(error, ray.exceptions.RayTaskError)
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text)


class Feed:
    """`Batches` by Ray Data: processes anywhere on the cluster load ahead of each worker.

    They hold no CPU: where workers hold all that there are, as on a cluster that has shrunk, a
    process that waits for one waits for ever.
    """

    def __init__(self, feeders: int) -> None:
        self.feeders = feeders

    def __call__(self, load: Loader, numbers: range) -> Iterator[Arrays]:
        if not numbers:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        blocks = max(1, len(numbers) // BLOCK)
        loaded = ray.data.from_items(list(numbers), override_num_blocks=blocks).map_batches(
            Feeder,
            fn_constructor_kwargs={"load": load},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self.feeders),
            num_cpus=0,
        )
        for batch in loaded.iter_batches(batch_size=1, prefetch_batches=2):
            yield {name: array[0] for name, array in batch.items()}


class Feeder:
    """A Ray Data actor that loads batches by number."""

    def __init__(self, load: Loader) -> None:
        self.load = load

    def __call__(self, batch: dict[str, np.ndarray]) -> Arrays:
        arrays = self.load(int(batch["item"][0]))
        return {name: array[None] for name, array in arrays.items()}
