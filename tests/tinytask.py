"""A task small enough to train in a second: points of a plane, learnt from tiny pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Label, Picture, Text, Values
from imgray.errors import UserError
from imgray.training.recipe import Settings
from imgray.training.task import Arrays, At, Batch, Learner, Prediction, Task


class TinySettings(Settings):
    rate: float = 0.1
    dropout: float = 0.5
    noise: float = Field(default=0.1, ge=0)
    explode: int = -1
    """Step at which the loss is not a number."""
    overflow: int = -1
    """Step at which the gradient is not a number, though the loss is."""
    bug: int = -1
    """Step at which the code has a bug."""


class TinyTask(Task):
    Settings = TinySettings
    settings: TinySettings
    inputs = {"image": Picture()}
    truth = {"label": Label()}
    outputs = {"label": Text()}

    def check_classes(self, part: Dataset) -> None:
        if len(part.classes) > len(self.classes):
            raise UserError("more classes than the model has")

    def prepare(self, values: Values) -> Arrays:
        return {"point": np.frombuffer(values["image"], np.float32)}

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        point = self.prepare(record)["point"]
        if chance is not None:
            point = point + self.settings.noise * chance.normal(size=2).astype(np.float32)
        return {"point": point, "label": np.array(record["label"])}

    def learner(self, initial: bool = True) -> "TinyLearner":
        return TinyLearner(self.settings, self.classes)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {"error": 1 - float(sums["right"] / sums["count"])}


class TinyLearner(Learner):
    def __init__(self, settings: TinySettings, classes: tuple[str, ...]) -> None:
        hidden = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(settings.dropout))
        self.modules = {"net": nn.Sequential(hidden, nn.Linear(16, len(classes)))}
        parameters = self.modules["net"].parameters()
        self.optimizers = {"net": torch.optim.SGD(parameters, lr=settings.rate, momentum=0.9)}
        self.settings, self.classes = settings, classes

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        loss = F.cross_entropy(self.modules["net"](batch["point"]), batch["label"])
        if at.step + 1 == self.settings.overflow:
            loss = loss + (self.modules["net"][1].bias * 0).sqrt().sum()
        self.descend("net", loss)
        if at.step == self.settings.bug:
            raise KeyError("a plain bug")
        wrong = at.step + 1 == self.settings.explode
        return {"loss": loss * float("nan") if wrong else loss}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        right = self.modules["net"](batch["point"]).argmax(dim=1) == batch["label"]
        return {"right": right.sum(), "count": torch.tensor(len(right))}

    def predict(self, batch: Batch) -> list[Prediction]:
        places = self.modules["net"](batch["point"]).argmax(dim=1).tolist()
        return [Prediction({"label": self.classes[place]}) for place in places]


def write_points(folder: Path, train: int = 70, val: int = 30, seed: int = 0) -> Path:
    """A data set of tables in three classes."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        labels = np.arange(count) % 3
        points = chance.normal(size=(count, 2)) * 0.4 + np.eye(3)[labels, :2] * 2
        images = [point.astype(np.float32).tobytes() for point in points]
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"{part}.parquet")
    return folder


def tiny_recipe(**changes: Any) -> dict[str, Any]:
    """A recipe for this task, with changes."""
    recipe = {
        "task": "tinytask:TinyTask",
        "data": {"truth": "columns"},
        "batch_size": 12,
        "steps": 40,
        "checkpoint_every": 5,
        "log_every": 4,
        "schedule": {"kind": "cosine", "warmup": 3},
    }
    return recipe | changes
