"""A task of one file that takes vectors of an image and of a text, and says how near they are."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Input, Scores, Values, Vector
from imgray.data.pixels import Rejected
from imgray.training.recipe import Settings
from imgray.training.task import Arrays, At, Batch, Learner, Prediction, Task

JOINT = 5


class NearSettings(Settings):
    dims: dict[str, int] = {}
    rate: float = 0.1


class Near(Task):
    """Learns maps into one space, where the two of a record are near each other."""

    Settings = NearSettings
    settings: NearSettings
    outputs = {"score": Scores()}

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {n: Vector(self.settings.dims[n], optional=True) for n in ("image", "text")}

    @property
    def joint(self) -> int:
        return JOINT

    def check_classes(self, part: Dataset) -> None:
        """There are none."""

    def prepare(self, values: Values) -> Arrays:
        found = {name: values[name] for name in self.inputs if name in values}
        if not found:
            raise Rejected("an image or a text is needed")
        return found

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        return self.prepare(record)

    def learner(self, initial: bool = True) -> "NearLearner":
        return NearLearner(self.settings)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {"near": float(sums["near"] / sums["count"])}


class NearLearner(Learner):
    def __init__(self, settings: NearSettings) -> None:
        maps = {name: nn.Linear(dim, JOINT) for name, dim in sorted(settings.dims.items())}
        self.modules = {"maps": nn.ModuleDict(maps)}
        parameters = self.modules["maps"].parameters()
        self.optimizers = {"maps": torch.optim.SGD(parameters, settings.rate)}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.modules["maps"]
        return {name: F.normalize(maps[name](value)) for name, value in batch.items()}

    def near(self, batch: Batch) -> Tensor:
        """Of each record the cosine (N,); without one of the two 0.5 of the first dimension."""
        found = self.embed(batch)
        first = next(iter(found.values()))
        other = found["text"] if len(found) == 2 else torch.eye(JOINT)[:1] / 2
        return (first * other).sum(dim=1)

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        loss = 1 - self.near(batch).mean()
        self.descend("maps", loss)
        return {"loss": loss}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        found = self.near(batch)
        return {"near": found.sum(), "count": torch.tensor(len(found))}

    def predict(self, batch: Batch) -> list[Prediction]:
        return [Prediction({"score": score}) for score in self.near(batch).tolist()]
