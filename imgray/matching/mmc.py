"""MMC-Net: matching and classification in one. Liu et al., Pattern Recognition 84, 2018; chapter 6.

The matching component gives embeddings of image and text; the classification component fuses them
and names the class, or the classes, of the pair. Both losses are minimised, L = L_match + λ L_class
in the end, in stages. How embeddings are fused, λ and the stages are not at hand; our reading:

* fused by concatenation, or by the product of an affine map of each (as Kim et al., ICLR 2017), and
  behind it one fc, with softmax for one label of a record and sigmoids for several;
* stage 1 learns to match, stage 2 the classifier with all else frozen, stage 3 both at a smaller
  rate;
* an absent image or text has the embedding 0, and in training one of the two is sometimes dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from scipy import sparse
from torch import Tensor, nn

from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Input, Label, Labels, Output, Vector
from imgray.matching.matcher import Matching, MatchingLearner, by_row, told
from imgray.matching.nets import SIDES, joined
from imgray.matching.settings import MatchingSettings
from imgray.retrieval.recall import Ids, category_map, incidence
from imgray.training.classes import check_labelled, check_same
from imgray.training.task import Arrays, At, Batch, Prediction

BEST = 5
SHOWN = {"both": SIDES, "image": ("image",), "text": ("text",)}
"""What a classifier is shown in evaluation."""


class MmcSettings(MatchingSettings):
    """What a recipe may say about MMC-Net: the matching component's settings, and the other's."""

    steps: int | tuple[int | None, ...] | None = Field(default=None, description="T of rrf")
    join: Literal["concatenation", "product"] = "concatenation"
    classes: tuple[str, ...] = Field(
        default=(), description="where records have several: their names, in the order of `labels`"
    )
    matching: float = Field(default=1.0, ge=0, description="weight of the matching loss")
    classification: float = Field(default=1.0, ge=0, description="weight of the other, λ")
    stages: tuple[float, float] = Field(
        default=(0.4, 0.6), description="shares of the run at which stages 2 and 3 begin"
    )
    joint_rate: float = Field(default=0.1, gt=0, description="multiplies the rate in stage 3")
    drop: float = Field(
        default=0.3, ge=0, le=1, description="share of examples without image or without text"
    )

    @model_validator(mode="after")
    def _trainable(self) -> MmcSettings:
        if not 0 <= self.stages[0] <= self.stages[1] <= 1:
            raise ValueError("stages: two shares from 0 to 1, not falling")
        if not self.trained:
            raise ValueError(f"layout: {self.layout} is not trained; `first` begins with it")
        if not self.matching and not self.classification:
            raise ValueError("matching and classification are both 0: there is nothing to learn")
        return self


class Mmc(Matching):
    """Images and texts in one space, and the classes of what is given of a pair.

    A record to learn from has a `label`, or with the setting `classes` the vector `labels`, of 1
    for every class that it has and 0 for the others.
    """

    kind = "classify"
    Settings = MmcSettings
    settings: MmcSettings
    rows = Matching.rows | {"shares", "truth"}

    def __init__(self, settings: MmcSettings, classes: Sequence[str]) -> None:
        super().__init__(settings, settings.classes or classes)

    @property
    def truth(self) -> Mapping[str, Input]:
        several = self.settings.classes
        return {"labels": Vector(len(several))} if several else {"label": Label()}

    @property
    def outputs(self) -> Mapping[str, Output]:
        return {"labels": Labels(), **super().outputs}

    def check_training_data(self, train: Dataset) -> None:
        super().check_training_data(train)
        if not self.settings.classes:
            check_labelled(train, self.classes)

    def check_classes(self, part: Dataset) -> None:
        if not self.settings.classes:
            check_same(part, self.classes)

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        """With `truth`: the number of the class, or 0 and 1 for every class."""
        given = record["labels"] if self.settings.classes else np.array(record["label"])
        return {**super().example(record, chance), "truth": given}

    def learner(self, initial: bool = True) -> MmcLearner:
        return MmcLearner(self.settings, self.joint, self.classes)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """As of matching, with `i2t_map` and `t2i_map`: right items are those of the same class.

        Then of both, of the image and of the text alone the accuracy, or the mean over classes of
        the average precision (`both_accuracy` or `both_map`, and so on).
        """
        truth = sums["truth"].numpy()
        labels = sparse.csr_array(truth > 0) if truth.ndim == 2 else _one_hot(truth, self.classes)
        image, text = (sums[side].numpy() for side in SIDES)
        first = np.unique(sums["image_id"].numpy(), return_index=True)[1]
        found = {
            "i2t_map": category_map([(image[first], text)], labels[first], labels),
            "t2i_map": category_map([(text, image[first])], labels, labels[first]),
        }
        shares = dict(zip(SHOWN, sums["shares"].numpy().transpose(1, 0, 2), strict=True))
        if truth.ndim == 1:
            right = {f"{k}_accuracy": (some.argmax(axis=1) == truth) for k, some in shares.items()}
            found |= {name: float(hits.mean()) for name, hits in right.items()}
        else:
            every = np.eye(len(self.classes), dtype=np.float32)
            for name, some in shares.items():
                parts = [(every, np.ascontiguousarray(some))]
                found[f"{name}_map"] = category_map(parts, sparse.csr_array(every > 0), labels)
        return super().summarize(sums) | found


class MmcLearner(MatchingLearner):
    """The matching component `net` and the `classifier`."""

    settings: MmcSettings

    def __init__(self, settings: MmcSettings, joint: int, names: Sequence[str]) -> None:
        super().__init__(settings)
        self.names = tuple(names)
        self.classifier = Classifier(joint, len(names), settings.join == "product")
        self.modules["classifier"] = self.classifier
        self.optimizers = {"net": settings.optimizer_of(self.modules)}

    def objective(self, batch: Batch, at: At) -> dict[str, Tensor]:
        settings, stage = self.settings, self.stage(at)
        with torch.set_grad_enabled(stage != 2):
            self.net.train(stage != 2)
            terms = self.terms(batch)
        found: dict[str, Tensor] = {}
        if stage != 2 and settings.matching:
            ranked = self.ranked(terms, batch["image_id"]).items()
            found |= {name: settings.matching * loss for name, loss in ranked}
        if stage != 1 and settings.classification:
            parts = terms[: len(self.net.sizes)]
            sides = [joined([p.images for p in parts]), joined([p.texts for p in parts])]
            logits = self.classifier(dict(zip(SIDES, sides, strict=True)), self._shown(batch))
            found["classification"] = settings.classification * _loss(logits, batch["truth"])
        if stage == 3:
            for group in self.optimizers["net"].param_groups:
                group["lr"] *= settings.joint_rate
        return found

    def stage(self, at: At) -> int:
        """From 1 to 3; where one of the losses does not count, there is but the other's."""
        if not self.settings.matching or not self.settings.classification:
            return 3 if self.settings.classification else 1
        return 1 + sum(at.step >= share * at.steps for share in self.settings.stages)

    def _shown(self, batch: Batch) -> dict[str, Tensor]:
        """Which embeddings of a batch count: of some examples one of the two is dropped."""
        image = batch["image"]
        dropped = torch.rand(len(image), 1, device=image.device) < self.settings.drop
        first = torch.rand(len(image), 1, device=image.device) < 0.5
        return {"image": ~(dropped & first), "text": ~(dropped & ~first)}

    def shares(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Probabilities (N, classes) from the embeddings of what is there."""
        logits: Tensor = self.classifier(embeddings)
        return logits.sigmoid() if self.settings.classes else logits.softmax(dim=1)

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        found = super().evaluate(batch)
        shares = [self.shares({s: found[s] for s in sides}) for sides in SHOWN.values()]
        return {**found, "shares": torch.stack(shares, dim=1), "truth": batch["truth"]}

    def predict(self, batch: Batch) -> list[Prediction]:
        """As of matching, and the most probable classes of what is given."""
        found = self.embed(batch)
        scores, labels = self.shares(found).cpu().topk(min(BEST, len(self.names)))
        columns = {
            "labels": [[self.names[place] for place in places] for places in labels.tolist()],
            "labels_scores": scores.tolist(),
        }
        return [Prediction(row) for row in by_row(columns | told(found))]


class Classifier(nn.Module):
    """From the embeddings of an image and of a text to logits.

    Args:
        joint: D of the embeddings, which are scaled to a mean square of 1.
        classes: how many there are.
        product: whether maps of the embeddings are multiplied, at first by 1 of what is absent, or
            the embeddings concatenated.
    """

    def __init__(self, joint: int, classes: int, product: bool) -> None:
        super().__init__()
        self.joint = joint
        maps = [nn.Linear(joint, joint) for _ in SIDES if product]
        for one in maps:
            nn.init.ones_(one.bias)
        self.maps = nn.ModuleList(maps)
        self.fc = nn.Linear(joint if product else len(SIDES) * joint, classes)

    def forward(
        self, embeddings: Mapping[str, Tensor], shown: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Logits (N, classes), float32.

        Args:
            embeddings: of unit length (N, D) by side; one may be absent.
            shown: which of them count, bool (N, 1) by side; by default all.
        """
        zero = torch.zeros_like(next(iter(embeddings.values())))
        found = {side: one * self.joint**0.5 for side, one in embeddings.items()}
        if shown:
            found = {side: one * shown[side] for side, one in found.items()}
        image, text = (found.get(side, zero) for side in SIDES)
        if self.maps:
            fused = self.maps[0](image) * self.maps[1](text)
        else:
            fused = torch.cat([image, text], dim=1)
        logits: Tensor = self.fc(fused)
        return logits.float()


def _loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Of one label (N,) for each, or of several (N, classes)."""
    if truth.dim() == 1:
        return F.cross_entropy(logits, truth)
    return F.binary_cross_entropy_with_logits(logits, truth)


def _one_hot(labels: Ids, names: Sequence[str]) -> sparse.csr_array:
    return incidence(np.arange(len(labels)), labels, len(names))
