"""A task of one file: two pictures, a caption and a style in, their blend and two scores out."""

import time
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgray.data import pixels
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Picture, Scores, Text, Values, Vector
from imgray.training.recipe import Settings
from imgray.training.task import Arrays, At, Batch, Learner, Prediction, Task

SIDE, LETTERS, STYLES = 24, 16, 3
POOLED = 5


class PairSettings(Settings):
    rate: float = 0.1
    pause: float = 0.0
    """Seconds that a step waits, so that it can be killed in the middle."""


class Pairs(Task):
    """Learns how much of each picture the target has, and how much the two are alike."""

    Settings = PairSettings
    settings: PairSettings
    inputs = {
        "first": Picture(),
        "second": Picture(optional=True),
        "caption": Text(longest=200),
        "style": Vector(STYLES, optional=True),
    }
    truth = {"target": Picture()}
    outputs = {"blend": Picture(), "verdict": Scores(("alike", "first"))}

    def check_classes(self, part: Dataset) -> None:
        """There are none."""

    def prepare(self, values: Values) -> Arrays:
        """What is absent is black, or zero."""
        codes = [ord(letter) % LETTERS for letter in values["caption"]]
        letters = np.bincount(codes, minlength=LETTERS)
        style = values.get("style", np.zeros(STYLES, np.float32))
        return {
            "first": _small(values["first"]),
            "second": _small(values.get("second")),
            "words": np.concatenate([letters / letters.sum(), style.clip(-9, 9)], dtype=np.float32),
        }

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        return {**self.prepare(record), "target": _small(record["target"])}

    def learner(self, initial: bool = True) -> "PairLearner":
        return PairLearner(self.settings)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {"error": float(sums["error"] / sums["count"])}


class PairLearner(Learner):
    """A network for the blend and one for the verdict, each with its optimizer."""

    def __init__(self, settings: PairSettings) -> None:
        self.modules = {"blender": nn.Linear(LETTERS + STYLES, 1), "judge": nn.Linear(1, 1)}
        self.optimizers = {
            name: torch.optim.SGD(net.parameters(), settings.rate, momentum=0.9)
            for name, net in self.modules.items()
        }
        self.settings, self.pool = settings, torch.zeros(0, 2)

    def blend(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures (N, S, S, 3) from 0 to 1, and the share (N, 1) of the first in each."""
        share = self.modules["blender"](batch["words"]).sigmoid()
        one, other = batch["first"] / 255, batch["second"] / 255
        return other + share[:, :, None, None] * (one - other), share

    def alike(self, batch: Batch) -> Tensor:
        """The logit (N, 1) that the two pictures are alike."""
        found: Tensor = self.modules["judge"](_apart(batch))
        return found

    def state(self) -> dict[str, Tensor]:
        return {"pool": self.pool}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.pool = state["pool"][-POOLED:] if state else self.pool

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        time.sleep(self.settings.pause)
        blend = F.mse_loss(self.blend(batch)[0], batch["target"] / 255)
        self.descend("blender", blend)
        apart = _apart(batch)
        shown = torch.cat([torch.cat([apart, (apart == 0).float()], dim=1), self.pool])
        verdict = F.binary_cross_entropy_with_logits(
            self.modules["judge"](shown[:, :1]), shown[:, 1:]
        )
        self.descend("judge", verdict)
        self.pool = shown[-POOLED:]
        return {"blend": blend, "verdict": verdict}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        found = (self.blend(batch)[0] - batch["target"] / 255).abs().mean(dim=(1, 2, 3))
        return {"error": found.sum(), "count": torch.tensor(len(found))}

    def predict(self, batch: Batch) -> list[Prediction]:
        blends, shares = self.blend(batch)
        pictures = (blends * 255).round().byte().cpu().numpy()
        verdicts = torch.cat([self.alike(batch).sigmoid(), shares], dim=1).tolist()
        return [
            Prediction(dict(zip(("alike", "first"), verdict, strict=True)), picture)
            for verdict, picture in zip(verdicts, pictures, strict=True)
        ]


def _apart(batch: Batch) -> Tensor:
    """How far two pictures are apart (N, 1), from 0 to 1."""
    found = (batch["first"] / 255 - batch["second"] / 255).abs().mean(dim=(1, 2, 3))
    return found[:, None]


def _small(data: bytes | None) -> np.ndarray:
    """Pixels, uint8 (S, S, 3)."""
    if data is None:
        return np.zeros((SIDE, SIDE, 3), np.uint8)
    return pixels.resize(pixels.decode(data, SIDE), SIDE)
