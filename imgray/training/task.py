"""What a theme offers to the training loop (`imgray.training.loop`).

A `Task` declares what a model takes and gives (`imgray.data.fields`), says how a record becomes an
example, makes the networks with their optimizers, and sums up an evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import places, settled
from imgray.config import class_named, validate
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import ClassMap, Input, Labels, Output, Values, first_picture
from imgray.drawing.canvas import distinct
from imgray.errors import UserError
from imgray.features.backbones import BackboneConfig
from imgray.training.recipe import Recipe, Settings
from imgray.training.workers import averaged

Arrays = dict[str, NDArray[Any]]
Batch = dict[str, Tensor]


NOT_FINITE = "numbers that are not finite"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one record: a row of the predictions table, and perhaps a picture.

    row: by column of `Task.columns`; picture: uint8 (H, W) or (H, W, 3); fault: why what the model
    has found is no answer, if it is none.
    """

    row: dict[str, Any]
    picture: NDArray[np.uint8] | None = None
    fault: str = ""


@dataclass(frozen=True)
class At:
    """Where a run is: steps done, steps of the whole run, epochs done."""

    step: int
    steps: int
    epoch: float


class Learner(ABC):
    """The networks of a system with their optimizers.

    Attributes:
        modules: by name; all are saved and published, also those that no optimizer changes, such
            as a running average of another.
        optimizers: by name.
        derived: networks that training makes of others, such as a running average: a model to start
            from may lack them.
        loss_weight: the worker's share of the batch times the number of workers, by which its mean
            loss counts among theirs: 1 but for uneven parts.
        clips: by optimizer the largest norm of its gradient, None where it is not clipped.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    derived: frozenset[str] = frozenset()
    loss_weight: float = 1.0
    clips: Mapping[str, float | None] = MappingProxyType({})

    @abstractmethod
    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        """Learn from a batch: means over it, such as the loss, for the curves.

        One that is not given at every step is averaged over the steps that give it.
        """

    @abstractmethod
    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over a batch, to be added over batches and workers and given to `Task.summarize`.

        Those that are `Task.rows` are kept one after another instead: float32 or int64 (N, ...).
        """

    def benchmark(self, batch: Batch) -> dict[str, Tensor]:
        """As `evaluate`, with metrics that are too slow to follow while training."""
        return self.evaluate(batch)

    @abstractmethod
    def predict(self, batch: Batch) -> list[Prediction]:
        """Predictions for a batch of `Task.prepare`."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """The joint embedding of what a batch of `Task.prepare` holds, by the input's name.

        For each of `image` and `text` that is present float32 (B, `Task.joint`) of unit length; the
        dot product of an image's and a text's is the score of the pair.

        Raises:
            UserError: this model has none.
        """
        raise UserError(f"{type(self).__name__} has no joint embedding of images and texts")

    def state(self) -> dict[str, Tensor]:
        """What this worker keeps beside the networks, items along the first axis: an image pool."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back a `state`, on the worker's device.

        It is this worker's own, or, where the number of workers has changed, a share of what all
        had: perhaps more items than before, or none.
        """
        assert not state, "a learner with a state takes it back"

    def descend(self, optimizer: str, loss: Tensor, keep_graph: bool = False) -> None:
        """One step of an optimizer down the gradient, over all workers, of a loss.

        Only parameters of that optimizer are given gradients.

        Args:
            optimizer: its name.
            loss: a mean over the batch.
            keep_graph: for another descent from the same forward pass.
        """
        own = self.optimizers[optimizer]
        own.zero_grad(set_to_none=True)
        parameters = [p for group in own.param_groups for p in group["params"] if p.requires_grad]
        with averaged(parameters):
            (loss * self.loss_weight).backward(inputs=parameters, retain_graph=keep_graph)
        if clip := self.clips.get(optimizer):
            nn.utils.clip_grad_norm_(parameters, clip)
        own.step()


@runtime_checkable
class Plots(Protocol):
    """A task that draws, too, what it sums up."""

    def plot(self, sums: Mapping[str, Tensor], path: Path) -> None:
        """Plot what `Task.summarize` sums up into a PNG."""


class Task(ABC):
    """A theme's way to train one kind of model.

    Args:
        settings: of the recipe.
        classes: names of the data set's classes, in the order of the labels.
    """

    Settings: ClassVar[type[Settings]]
    one_shape: ClassVar[bool] = True
    """Whether records of prediction come out at one shape, and so can form batches."""
    alike: ClassVar[bool | None] = None
    """Whether examples have one shape when they are not augmented; as `one_shape` if not said."""
    rows: ClassVar[frozenset[str]] = frozenset()
    """What of `Learner.evaluate` are rows to be kept, in any order, rather than sums."""
    kind: ClassVar[str] = ""
    """POST /v1/KIND asks a model of this task as POST /v1/models/NAME does; none where empty."""

    def __init__(self, settings: Any, classes: Sequence[str]) -> None:
        self.settings, self.classes = settings, tuple(classes)

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Input]:
        """What `prepare` takes, by name."""

    @property
    def truth(self) -> Mapping[str, Input]:
        """What a record to learn from has beside the inputs, by name."""
        return {}

    @property
    def fields(self) -> Mapping[str, Input]:
        """What a row of a table to learn from holds, by name."""
        return {**self.inputs, **self.truth}

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, Output]:
        """What a `Prediction` holds, by name."""

    @property
    def joint(self) -> int | None:
        """Dimensions of the joint embedding (`Learner.embed`); None where there is none."""
        return None

    @property
    def columns(self) -> pa.Schema:
        """Of the predictions table, as the outputs have them."""
        return pa.schema([f for name, one in self.outputs.items() for f in one.columns(name)])

    @property
    def painted(self) -> str | None:
        """The output that is the picture of a prediction, if there is one."""
        return next((name for name, one in self.outputs.items() if one.painted), None)

    @abstractmethod
    def prepare(self, values: Values) -> Arrays:
        """Decode the inputs of a record, of which optional ones may lack, for prediction.

        Raises:
            pixels.Rejected: what cannot be decoded.
        """

    @abstractmethod
    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        """Decode, and with `chance` augment, a record.

        Raises:
            pixels.Rejected: an image that cannot be decoded.
            UserError: a record that is not what the task needs, named by its id.
        """

    @abstractmethod
    def learner(self, initial: bool = True) -> Learner:
        """The networks. Raises `UserError` where pretrained weights cannot be had.

        Args:
            initial: with the weights that training starts from, pretrained or drawn from torch's
                generator; otherwise some weights, to be replaced by trained ones.
        """

    @abstractmethod
    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from the sums, and the rows, of `Learner.evaluate` over all examples."""

    def extractor(self) -> BackboneConfig:
        """How the learner's network `net` gives features: its class, preprocessing and `layers`.

        `layers` are the names that the task gives to layers, `high` at least. Images are squashed
        to a square as for every other extractor, not brought to size as `prepare` does.

        Raises:
            UserError: models of this task are no extractors.
        """
        raise UserError(f"a model of {type(self).__name__} gives no features")

    def portraits(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
        """Pictures of what trained networks have learnt, PNG by file name, from their tensors."""
        return {}

    def words(self, row: Mapping[str, Any]) -> list[tuple[str, float]]:
        """What a row of predictions says to a reader: names with scores (0 to 1), best first."""
        found = ((name, one) for name, one in self.outputs.items() if isinstance(one, Labels))
        return next((one.pairs(name, row) for name, one in found), [])

    @property
    def palette(self) -> NDArray[np.uint8] | None:
        """Colours (n, 3) of the values of predicted pictures; None where they are shown as is."""
        maps = (one for one in self.outputs.values() if isinstance(one, ClassMap))
        return next((distinct(len(one.labels)) for one in maps), None)

    def arranged(self, part: Dataset, scored: bool) -> Dataset:
        """A part whose records are as `example` takes them; `scored` to validate on it.

        Raises:
            UserError: records cannot be arranged so.
        """
        return part

    def sample(self, record: Record, number: int) -> Record:
        """A record with the inputs of prediction, as the `number`th of the sheet of samples."""
        return record

    def shown(self, record: Record) -> bytes | None:
        """The picture, encoded, that stands for a record of `sample` on the sheet of samples."""
        return record.get(first_picture(self.inputs) or "")

    def completed(self, train: Dataset) -> dict[str, Any]:
        """Settings that the data to train on decide, by name, as a recipe has them: a vocabulary.

        Asked once, as a run begins, before any example is made; then they are in the recipe, which
        all workers, a run that goes on, and the model have. As a part of the recipe they need no
        file, and no way to a worker, of their own; the run is still known by the recipe as given.

        Args:
            train: what is trained on, its records in their order.

        Raises:
            UserError: the data do not do.
        """
        return {}

    def check_training_data(self, train: Dataset) -> None:
        """Refuse data that this task cannot learn from. Raises `UserError`."""
        self.check_classes(train)

    @abstractmethod
    def check_classes(self, part: Dataset) -> None:
        """Refuse data whose labels are not this task's. Raises `UserError`."""


def task_of(recipe: Recipe, classes: Sequence[str]) -> Task:
    """The task that a recipe names, with its settings. Raises `UserError`."""
    kind: type[Task] = class_named(recipe.task, Task, "task")
    settings = validate(kind.Settings, recipe.settings, "recipe: settings")
    task = kind(settings, classes)
    _check_declared(task)
    return task


def longest_of(task: Task) -> int | None:
    """Pixels to which a task scales longer pictures down; None where it brings all to one size."""
    return getattr(task.settings, "longest", None)


def set_longest(task: Task, longest: int) -> None:
    """Have a task take images of another size. Raises `UserError` where it has no such setting."""
    if longest_of(task) is None:
        raise UserError(f"--longest: {type(task).__name__} brings all images to one size")
    task.settings = task.settings.model_copy(update={"longest": longest})


def with_dims(recipe: Recipe, dims: Mapping[str, int]) -> Recipe:
    """A recipe whose task knows how long the vectors of inputs are.

    Args:
        recipe: its setting `dims`, by input, stays where it says something.
        dims: of inputs that are joined; for a task without that setting they mean nothing.

    Raises:
        UserError: there is no such task.
    """
    kind: type[Task] = class_named(recipe.task, Task, "task")
    said = recipe.settings.get("dims", {})
    if "dims" not in kind.Settings.model_fields or not isinstance(said, dict):
        return recipe
    return recipe.model_copy(update={"settings": recipe.settings | {"dims": {**dims, **said}}})


RESERVED = frozenset({"id", "group", "split", "class", "picture", "sha256"})
"""Columns of tables that are no inputs, and of predictions that are no outputs."""


def _check_declared(task: Task) -> None:
    """Refuse a declaration of which tables or forms cannot be made. Raises `UserError`."""
    name = type(task).__name__
    taken = [*task.inputs, *task.truth]
    columns = task.columns.names
    for kind, names in (("input", taken), ("column of an output", columns)):
        if wrong := sorted(RESERVED.intersection(names) | {n for n in names if names.count(n) > 1}):
            raise UserError(f"{name}: {kind} {wrong[0]!r}: declared twice, or a name of ours")
    if sum(one.painted for one in task.outputs.values()) > 1:
        raise UserError(f"{name}: more than one output is a picture")


def settled_recipe(recipe: Recipe) -> Recipe:
    """A recipe whose URIs are absolute: a worker elsewhere finds the same. Raises `UserError`."""
    settings = settled(recipe.settings, _settings_of(recipe).uris)
    start = recipe.start
    if isinstance(start, dict):
        start = settled(start, start.keys())
    elif start is not None:
        start = Folder(start).absolute
    return recipe.model_copy(update={"settings": settings, "start": start})


def named_places(recipe: Recipe) -> list[str]:
    """The URIs of all that a recipe has read. Raises `UserError` for settings that are none."""
    return [*recipe.starts.values(), *places(recipe.settings, _settings_of(recipe).uris).values()]


def named_models(recipe: Recipe) -> dict[str, str]:
    """By setting the URIs of `Settings.models`. Raises `UserError` for settings that are none."""
    return places(recipe.settings, _settings_of(recipe).models)


def _settings_of(recipe: Recipe) -> type[Settings]:
    """The kind of a recipe's settings, which are valid. Raises `UserError`."""
    kind: type[Task] = class_named(recipe.task, Task, "task")
    validate(kind.Settings, recipe.settings, "recipe: settings")
    return kind.Settings


def check_names(recipe: Recipe, learner: Learner) -> None:
    """Refuse names of optimizers and networks that a learner lacks. Raises `UserError`."""
    _check_known("optimizers", recipe.optimizers, learner.optimizers, recipe.task)
    if isinstance(recipe.start, dict):
        _check_known("start", recipe.start, learner.modules, recipe.task)


def _check_known(setting: str, names: Iterable[str], own: Iterable[str], task: str) -> None:
    if unknown := sorted(set(names) - set(own)):
        raise UserError(
            f"recipe: {setting}.{unknown[0]}: {task} has {', '.join(own)}, no {unknown[0]!r}"
        )
