"""A swap of one file: the reference with the colours of the target, framed where its points lie."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from imgray.data import pixels
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import ClassMap, KeyPoints, Picture, Values
from imgray.training.recipe import Settings
from imgray.training.task import Arrays, At, Batch, Learner, Prediction, Task

SKELETON = ("neck", "left_hip", "right_hip")
SIDE = 32


class Swap(Task):
    kind = "swap"
    Settings = Settings
    inputs = {
        "reference": Picture(),
        "target": Picture(),
        "pose": KeyPoints(SKELETON),
        "parsing": ClassMap(("skin", "shirt"), optional=True),
    }
    outputs = {"picture": Picture()}

    def check_classes(self, part: Dataset) -> None:
        """There are none."""

    def prepare(self, values: Values) -> Arrays:
        pictures = {
            name: pixels.resize(pixels.decode(values[name], SIDE), SIDE)
            for name in ("reference", "target")
        }
        return {**pictures, "pose": values["pose"]}

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        return self.prepare(record)

    def learner(self, initial: bool = True) -> "SwapLearner":
        return SwapLearner()

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {"count": float(sums["count"])}


class SwapLearner(Learner):
    def __init__(self) -> None:
        self.modules = {"net": nn.Linear(1, 1)}
        self.optimizers = {"net": torch.optim.SGD(self.modules["net"].parameters(), 0.1)}

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        self.descend("net", self.modules["net"](torch.ones(1, 1)).sum())
        return {}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        return {"count": torch.tensor(float(len(batch["pose"])))}

    def predict(self, batch: Batch) -> list[Prediction]:
        """The target below the neck's height, the reference above it."""
        found = []
        for reference, target, pose in zip(
            *(batch[name].cpu().numpy() for name in ("reference", "target", "pose")), strict=True
        ):
            below = np.arange(SIDE)[:, None, None] >= pose[0, 1]
            found.append(Prediction({}, np.where(below, target, reference)))
        return found
