"""What a theme offers to the training loop (`imgray.training.loop`), and what a recipe says to it.

A `Task` says how a record becomes an example, makes the networks with their optimizers, and sums up
an evaluation; a `Recipe` names a task and everything else that determines a run but its data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from imgray.artifacts.folder import Folder
from imgray.config import class_named, validate
from imgray.data import pixels
from imgray.data.datasets import Dataset, Form, Record, open_dataset, open_share
from imgray.errors import UserError
from imgray.features.backbones import BackboneConfig, Precision

Arrays = dict[str, NDArray[Any]]
Batch = dict[str, Tensor]


class Settings(BaseModel):
    """Base of what a recipe may say to its task. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Schedule(Settings):
    """How learning rates change over a run, as a factor on each optimizer's own."""

    kind: Literal["constant", "step", "cosine", "linear"] = "constant"
    every: int = Field(default=0, ge=0, description="steps between two drops, for `step`")
    at: tuple[int, ...] = Field(default=(), description="steps of single drops, for `step`")
    drop: float = Field(default=0.1, gt=0, description="factor of a drop, for `step`")
    hold: float = Field(default=0.5, ge=0, le=1, description="share before a `linear` fall")
    warmup: int = Field(default=0, ge=0, description="steps of linear rise at the start")

    @model_validator(mode="after")
    def _complete(self) -> Schedule:
        if self.kind == "step" and bool(self.every) == bool(self.at):
            raise ValueError("a step schedule needs either schedule.every or schedule.at")
        return self

    def factor(self, step: int, steps: int) -> float:
        """The factor at a step of a run of so many steps."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, steps - self.warmup)
        if self.kind == "step":
            drops = step // self.every if self.every else sum(step >= at for at in self.at)
            return self.drop**drops
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        if self.kind == "linear":
            return min(1.0, (1 - share) / max(1e-12, 1 - self.hold))
        return 1.0


class DataSettings(Settings):
    """Which parts of the data set at `--data` are read, and how they are laid out."""

    form: Form
    train: str = Field(default="train", description="the part to train on")
    hold_out: float | None = Field(
        default=None, gt=0, lt=1, description="share of that part to validate on instead"
    )
    validate_on: str | None = Field(
        default_factory=lambda data: None if data.get("hold_out") else "val",
        alias="validate",
        description="the part to validate on",
    )

    @model_validator(mode="after")
    def _one_validation(self) -> DataSettings:
        if (self.validate_on is None) == (self.hold_out is None):
            raise ValueError("give either validate or hold_out")
        return self

    def training(self, folder: Folder) -> Dataset:
        """Open what is trained on. Raises `UserError`."""
        if self.hold_out is None:
            return open_dataset(folder, self.form, self.train)
        return open_share(folder, self.form, self.train, self.hold_out, held=False)

    def validation(self, folder: Folder) -> Dataset:
        """Open what is validated on. Raises `UserError`."""
        if self.validate_on is not None:
            return open_dataset(folder, self.form, self.validate_on)
        assert self.hold_out is not None
        return open_share(folder, self.form, self.train, self.hold_out, held=True)


class Recipe(Settings):
    """Everything that determines a trained model but the data themselves."""

    task: str = Field(description="the task's class, as package.module:Class")
    settings: dict[str, Any] = Field(default={}, description="of the task")
    data: DataSettings
    batch_size: int = Field(ge=1, description="examples per step, over all workers")
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    schedule: Schedule = Schedule()
    precision: Precision = "float32"
    seed: int = Field(default=0, ge=0)
    evaluate_every: float = Field(default=1.0, gt=0, description="epochs between evaluations")
    start: str | None = Field(default=None, description="model artifact to take weights from")
    checkpoint_every: int = Field(default=200, ge=1, description="steps a lost worker may cost")
    log_every: int = Field(default=20, ge=1, description="steps per line of the curves")

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self

    def length(self, examples: int) -> int:
        """Steps of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * examples / self.batch_size))


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: a row of the predictions table, and perhaps a picture.

    row: by column of `Task.columns`; picture: uint8 (H, W) or (H, W, 3).
    """

    row: dict[str, Any]
    picture: NDArray[np.uint8] | None = None


class Learner(ABC):
    """The networks of a system with their optimizers.

    Attributes:
        modules: by name; the loop may wrap them, for data parallel training.
        optimizers: by name.
        share: the worker's share of the batch, times the number of workers: 1 but for uneven parts.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    share: float = 1.0

    @abstractmethod
    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from a batch; what it gives, such as the loss, is averaged into the curves."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over a batch, to be added over batches and workers and given to `Task.summarize`."""

    def benchmark(self, batch: Batch) -> dict[str, Tensor]:
        """As `evaluate`, with metrics that are too slow to follow while training."""
        return self.evaluate(batch)

    @abstractmethod
    def predict(self, batch: Batch) -> list[Prediction]:
        """Predictions for a batch of `Task.prepare`."""

    def descend(self, optimizer: str, loss: Tensor) -> None:
        """One step of an optimizer down the gradient of a loss that is a mean over the batch."""
        self.optimizers[optimizer].zero_grad(set_to_none=True)
        (loss * self.share).backward()
        self.optimizers[optimizer].step()


class Task(ABC):
    """A theme's way to train one kind of model.

    Args:
        settings: of the recipe.
        classes: names of the data set's classes, in the order of the labels.
    """

    Settings: ClassVar[type[Settings]]
    one_shape: ClassVar[bool] = True
    """Whether images have one shape when they are not augmented, and so can form batches."""
    columns: ClassVar[pa.Schema]
    """Of the predictions table."""
    kind: ClassVar[str] = ""
    """What a model of this task does over HTTP: POST /v1/KIND; none where it is empty."""

    def __init__(self, settings: Any, classes: Sequence[str]) -> None:
        self.settings, self.classes = settings, tuple(classes)

    @abstractmethod
    def prepare(self, data: bytes) -> Arrays:
        """Decode an encoded image for prediction. Raises `pixels.Rejected`."""

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
        """Metrics from the sums of `Learner.evaluate`."""

    @abstractmethod
    def draw(self, sums: Mapping[str, Tensor], path: Path) -> None:
        """Draw what `summarize` sums up into a PNG."""

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
        """What a row of predictions says to a reader: names with shares (0 to 1), best first."""
        return []

    @property
    def palette(self) -> NDArray[np.uint8] | None:
        """Colours (n, 3) of the values of predicted pictures; None where they are shown as is."""
        return None

    def check(self, train: Dataset) -> None:
        """Refuse data that this task cannot learn from. Raises `UserError`."""
        self.check_classes(train)

    @abstractmethod
    def check_classes(self, part: Dataset) -> None:
        """Refuse data whose labels are not this task's. Raises `UserError`."""


def task_of(recipe: Recipe, classes: Sequence[str]) -> Task:
    """The task that a recipe names, with its settings. Raises `UserError`."""
    kind: type[Task] = class_named(recipe.task, Task, "task")
    settings = validate(kind.Settings, recipe.settings, "recipe: settings")
    return kind(settings, classes)


@dataclass(frozen=True)
class Examples:
    """The batches of a run, each a function of its number alone.

    Examples follow each other in an endless stream, every epoch in an order of its own, and a batch
    is the next piece of it, cut into one part per worker.
    """

    task: Task
    train: Dataset
    val: Dataset
    batch_size: int
    seed: int

    def training(self, step: int, rank: int, world: int) -> Arrays:
        """A worker's part of the batch of a step."""
        first = step * self.batch_size
        part = np.array_split(np.arange(first, first + self.batch_size), world)[rank].tolist()
        return _stacked(
            [
                self.example(self.train[self._at(n)], np.random.default_rng((self.seed, n)))
                for n in part
            ]
        )

    def validation(self, number: int, rank: int, world: int) -> Arrays:
        """The `number`th batch of the validation examples that fall to a worker."""
        first = (number * world + rank) * self._together
        rows = range(first, min(first + self._together, len(self.val)))
        return _stacked([self.example(self.val[row], None) for row in rows])

    def validations(self, rank: int, world: int) -> int:
        """How many batches of validation examples fall to a worker."""
        return len(range(rank * self._together, len(self.val), world * self._together))

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        """`Task.example`. Raises `UserError`, which names the record."""
        try:
            return self.task.example(record, chance)
        except pixels.Rejected as error:
            raise UserError(f"{record['id']}: {error}; mend or remove it") from None

    @property
    def _together(self) -> int:
        return self.batch_size if self.task.one_shape else 1

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, len(self.train))
        return int(_order(self.seed, epoch, len(self.train))[index])


_orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}


def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of an epoch; two are kept, as a batch may reach from one into the next."""
    key = (seed, epoch, count)
    if key not in _orders:
        while len(_orders) >= 4:
            _orders.pop(next(iter(_orders)), None)
        _orders[key] = np.random.default_rng((seed, epoch)).permutation(count)
    return _orders[key]


def _stacked(examples: Sequence[Arrays]) -> Arrays:
    return {name: np.stack([one[name] for one in examples]) for name in examples[0]}
