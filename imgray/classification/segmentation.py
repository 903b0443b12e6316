"""Semantic segmentation (thesis chapter 2): FCN with summed scores, FCFN with learned fusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from imgray.classification.fcfn import Fcfn
from imgray.classification.fusion import Fusion
from imgray.classification.pixelwise import PixelSettings, PixelTask, cut, trunk_of
from imgray.data import fields, pixels
from imgray.data.datasets import Dataset, Record
from imgray.drawing import plots
from imgray.errors import UserError
from imgray.features.backbones import standardised
from imgray.training.classes import agreement, confusion, overlaps
from imgray.training.rates import sgd
from imgray.training.task import Arrays, At, Batch, Learner, Prediction

IGNORED = 255


class SegmentationSettings(PixelSettings):
    """What a recipe may say about semantic segmentation."""

    fusion: Fusion = Field(default="local", description="local: FCFN; sum: FCN")
    classes: tuple[str, ...] = Field(min_length=2, description="names of labels 0, 1, ...")
    void: int | None = Field(default=None, ge=0, le=255, description="label that counts nowhere")


class Segmentation(PixelTask):
    """A class for every pixel."""

    kind = "segment"
    Settings = SegmentationSettings
    settings: SegmentationSettings

    def __init__(self, settings: SegmentationSettings, classes: Sequence[str]) -> None:
        super().__init__(settings, settings.classes)

    @property
    def truth(self) -> Mapping[str, fields.Input]:
        return {"mask": fields.ClassMap(self.classes)}

    @property
    def outputs(self) -> Mapping[str, fields.Output]:
        return {"classes": fields.Labels(scores="shares"), "mask": fields.ClassMap(self.classes)}

    def check_classes(self, part: Dataset) -> None:
        if "mask" not in part[0]:
            raise UserError(f"part {part.part!r}: records without a mask; say data.truth: masks")

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        image, size = pixels.decode_within(record["image"], self.settings.longest)
        mask = mask_of(record)
        same_size(record, mask.size, size)
        labels = np.asarray(mask.resize(image.shape[1::-1], Image.Resampling.NEAREST))
        labels = self._known(labels, record["id"])
        return cut({"image": image, "labels": labels}, self.settings, chance, {"labels": IGNORED})

    def _known(self, labels: np.ndarray, id: str) -> np.ndarray:
        void = labels == self.settings.void if self.settings.void is not None else labels < 0
        wrong = labels[(labels >= len(self.classes)) & ~void]
        if len(wrong):
            raise UserError(
                f"{id}: label {wrong[0]} in its mask, but the recipe names {len(self.classes)} "
                "classes; name more, or say settings.void"
            )
        return np.where(void, IGNORED, labels).astype(np.uint8)

    def learner(self, initial: bool = True) -> SegmentationLearner:
        return SegmentationLearner(self.settings, self.classes, initial)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean IoU over the classes that occur, pixel accuracy, loss, and IoU by class."""
        counts = sums["confusion"]
        scores = agreement(counts)
        by_class = zip(self.classes, overlaps(counts).tolist(), strict=True)
        return {
            "miou": scores["miou"],
            "pixel_accuracy": scores["pixel_accuracy"],
            "loss": float(sums["loss"] / counts.sum()),
            **{f"iou/{name}": one for name, one in by_class if not math.isnan(one)},
        }

    def plot(self, sums: Mapping[str, Tensor], path: Path) -> None:
        """The confusion matrix of pixels."""
        plots.confusion(sums["confusion"].numpy(), self.classes, path)


class SegmentationLearner(Learner):
    """FCN or FCFN under cross-entropy, void pixels left out."""

    def __init__(
        self, settings: SegmentationSettings, classes: Sequence[str], initial: bool
    ) -> None:
        net = Fcfn(trunk_of(settings, initial), len(classes), settings.fusion)
        self.modules = {"net": net.to(memory_format=torch.channels_last)}
        rates = settings.rate, settings.momentum, settings.weight_decay
        self.optimizers = {"net": sgd(net, *rates)}
        self.settings, self.classes = settings, tuple(classes)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) of images, uint8 (N, H, W, 3)."""
        found: Tensor = self.modules["net"](
            standardised(images, self.settings.mean, self.settings.std)
        )
        return found.float()

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        labels = batch["labels"].long()
        loss = F.cross_entropy(self.logits(batch["image"]), labels, ignore_index=IGNORED)
        self.descend("net", loss)
        return {"loss": loss}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self.logits(batch["image"]), batch["labels"].long()
        known, count = labels != IGNORED, len(self.classes)
        counts = confusion(labels[known], logits.argmax(dim=1)[known], count)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return {"confusion": counts, "loss": loss}

    def predict(self, batch: Batch) -> list[Prediction]:
        """Masks, uint8 (H, W), and the share of each class that occurs."""
        found = []
        for labels in self.logits(batch["image"]).argmax(dim=1).cpu():
            places, counts = labels.unique(return_counts=True)
            shares = (counts / labels.numel()).tolist()
            names = [self.classes[place] for place in places.tolist()]
            row = {"classes": names, "shares": shares}
            found.append(Prediction(row, labels.numpy().astype(np.uint8)))
        return found


def mask_of(record: Record) -> Image.Image:
    """A record's mask as a picture of one channel. Raises `UserError`."""
    try:
        return Image.fromarray(pixels.decode_map(record["mask"]))
    except pixels.Rejected as error:
        raise UserError(f"{record['id']}: its mask is {error}") from None


def same_size(record: Record, found: tuple[int, int], image: tuple[int, int]) -> None:
    """Refuse labels of another width and height than their image's. Raises `UserError`."""
    if found != image:
        raise UserError(
            f"{record['id']}: labels of {found[0]} x {found[1]} pixels for an image of "
            f"{image[0]} x {image[1]}"
        )
