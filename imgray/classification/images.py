"""Image-level classification (thesis chapter 2): plain convolutional and fusion networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from imgray.classification.cfn import LAYOUTS, FusionNet, layers_of
from imgray.classification.fusion import Fusion
from imgray.data import pixels
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Label, Labels, Picture, Values
from imgray.drawing import plots
from imgray.features.backbones import BackboneConfig, standardised
from imgray.training.classes import check_labelled, check_same, confusion
from imgray.training.rates import sgd
from imgray.training.recipe import Settings, one_of
from imgray.training.task import Arrays, At, Batch, Learner, Prediction, Task

BEST = 5
MOST_PIXELS = 2**24
"""Of a picture brought to size, 64 MB in Pillow: of a thinner one the ends are left out."""


class ClassificationSettings(Settings):
    """What a recipe may say about image-level classification.

    The published nets take whitened images (CIFAR) or images less the data set's mean (ImageNet);
    here pixels are scaled to 0..1 and standardised per channel by `mean` and `std`.
    """

    layout: Annotated[str, one_of(LAYOUTS)] = "cfn7"
    fusion: Literal[Fusion, "none"] = Field(default="local", description="none: the plain network")
    width: float = Field(default=1.0, gt=0, le=4)
    size: int = Field(default=32, ge=16, le=1024, description="side of the input in pixels")
    resize: int | None = Field(
        default=None, le=2048, description="short side before cropping to size"
    )
    pad: int = Field(
        default=0, ge=0, le=1024, description="black border that training crops reach into"
    )
    mirror: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)

    @model_validator(mode="after")
    def _large_enough(self) -> ClassificationSettings:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} is less than size {self.size}")
        return self

    def network(self, classes: int) -> dict[str, Any]:
        """The arguments of `FusionNet`."""
        fusion = None if self.fusion == "none" else self.fusion
        return {"layout": self.layout, "classes": classes, "fusion": fusion, "width": self.width}


class Classification(Task):
    """One label for an image."""

    kind = "classify"
    Settings = ClassificationSettings
    settings: ClassificationSettings
    inputs = {"image": Picture()}
    truth = {"label": Label()}
    outputs = {"labels": Labels(scores="scores", best=("label", "score"))}

    def check_training_data(self, train: Dataset) -> None:
        super().check_training_data(train)
        check_labelled(train, self.classes)

    def check_classes(self, part: Dataset) -> None:
        check_same(part, self.classes)

    def plot(self, sums: Mapping[str, Tensor], path: Path) -> None:
        """The confusion matrix."""
        plots.confusion(sums["confusion"].numpy(), self.classes, path)

    def portraits(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
        """The weights of a local or shared fusion."""
        weights = states["net"].get("fused.0.weight")
        if weights is None:
            return {}
        sides = [f"side{place}" for place in range(1, len(weights))]
        return {plots.FUSION: plots.fusion(weights.numpy(), [*sides, "main"])}

    def prepare(self, values: Values) -> Arrays:
        return {"image": self._cut(self._decoded(values["image"]), None)}

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        image = self._decoded(record["image"])
        return {"image": self._cut(image, chance), "label": np.array(record["label"])}

    def _decoded(self, data: bytes) -> Image.Image:
        """Upright RGB whose short side has the length wanted, in pixels."""
        short = self.settings.resize or self.settings.size
        image = pixels.decode(data, short)
        image = _middle(image, MOST_PIXELS * min(image.size) // short**2)
        scale = short / min(image.size)
        width, height = (max(short, round(scale * side)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)

    def _cut(self, image: Image.Image, chance: np.random.Generator | None) -> NDArray[np.uint8]:
        """The centre, or with `chance` any crop of a picture with a border, perhaps mirrored."""
        pixels_ = np.asarray(image, dtype=np.uint8)
        size = self.settings.size
        if chance is None:
            top, left = ((length - size) // 2 for length in pixels_.shape[:2])
            return pixels_[top : top + size, left : left + size]
        border = (self.settings.pad,) * 2
        pixels_ = np.pad(pixels_, (border, border, (0, 0)))
        top, left = (int(chance.integers(length - size + 1)) for length in pixels_.shape[:2])
        crop = pixels_[top : top + size, left : left + size]
        return crop[:, ::-1] if self.settings.mirror and chance.random() < 0.5 else crop

    def learner(self, initial: bool = True) -> ClassificationLearner:
        return ClassificationLearner(self.settings, self.classes)

    def extractor(self) -> BackboneConfig:
        arguments = self.settings.network(len(self.classes))
        return BackboneConfig(
            library="imgray",
            net=f"{FusionNet.__module__}:{FusionNet.__name__}",
            arguments=arguments,
            layers=layers_of(arguments["layout"], arguments["fusion"]),
            size=self.settings.size,
            mean=self.settings.mean,
            std=self.settings.std,
        )

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Errors at 1 and 5 (share of images), and the mean loss."""
        images = float(sums["images"])
        return {
            "top1_error": 1 - float(sums["top1"]) / images,
            "top5_error": 1 - float(sums["top5"]) / images,
            "loss": float(sums["loss"]) / images,
        }


class ClassificationLearner(Learner):
    """A CFN or its plain counterpart under cross-entropy."""

    def __init__(self, settings: ClassificationSettings, classes: Sequence[str]) -> None:
        net = FusionNet(**settings.network(len(classes)))
        self.modules = {"net": net.to(memory_format=torch.channels_last)}
        rates = settings.rate, settings.momentum, settings.weight_decay
        self.optimizers = {"net": sgd(net, *rates)}
        self.settings, self.classes = settings, classes

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images, uint8 (N, size, size, 3)."""
        maps = standardised(images, self.settings.mean, self.settings.std)
        found: Tensor = self.modules["net"](maps)
        return found.float()

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        loss = F.cross_entropy(self.logits(batch["image"]), batch["label"])
        self.descend("net", loss)
        return {"loss": loss}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self.logits(batch["image"]), batch["label"]
        count = len(self.classes)
        best = logits.topk(min(BEST, count)).indices
        right = best == labels[:, None]
        return {
            "images": torch.tensor(len(labels)),
            "top1": right[:, 0].sum(),
            "top5": right.sum(),
            "loss": F.cross_entropy(logits, labels, reduction="sum"),
            "confusion": confusion(labels, best[:, 0], count),
        }

    def predict(self, batch: Batch) -> list[Prediction]:
        """The most probable classes of each image, with their probabilities."""
        shares = self.logits(batch["image"]).softmax(dim=1).cpu()
        scores, labels = shares.topk(min(BEST, len(self.classes)))
        rows = [
            {"labels": [self.classes[i] for i in places], "scores": values}
            for places, values in zip(labels.tolist(), scores.tolist(), strict=True)
        ]
        return [
            Prediction({"label": row["labels"][0], "score": row["scores"][0], **row})
            for row in rows
        ]


def _middle(image: Image.Image, longest: int) -> Image.Image:
    """Of a picture longer than so many pixels the middle, both ends cut alike."""
    if max(image.size) <= longest:
        return image
    left, top = (max(0, length - longest + 1) // 2 for length in image.size)
    return image.crop((left, top, image.width - left, image.height - top))
