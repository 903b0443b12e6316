"""Edge detection (thesis chapters 2 and 3): RDS, HED by general supervision, and FCFN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from imgray.classification import edge_metrics
from imgray.classification.fcfn import Fcfn
from imgray.classification.pixelwise import PixelSettings, PixelTask, cut, trunk_of
from imgray.classification.rds import Rds, edge_loss, rds_loss
from imgray.classification.relaxed import (
    canny_maps,
    coarse_edges,
    consensus,
    dilate,
    relaxed_targets,
)
from imgray.classification.ridges import nms
from imgray.classification.segmentation import mask_of, same_size
from imgray.data import pixels
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Boundaries, ClassMap, Picture, Scores
from imgray.drawing import plots
from imgray.errors import UserError
from imgray.features.backbones import standardised
from imgray.training.rates import sgd
from imgray.training.task import Arrays, At, Batch, Learner, Prediction


class EdgeSettings(PixelSettings):
    """What a recipe may say about edge detection."""

    net: Literal["rds", "fcfn"] = Field(
        default="rds", description="rds: supervised sides; fcfn: the fused output alone learns"
    )
    relaxed: Literal["ignore", "positive", "negative"] = Field(
        default="ignore",
        description="pixels that Canny alone marks; negative is general supervision (HED)",
    )
    order: Literal["given", "reversed"] = Field(
        default="given", description="of strictness from side to side; reversed is an ablation"
    )
    annotators: int = Field(default=3, ge=1, le=1000, description="how many must agree on an edge")
    dilation: int = Field(
        default=1, ge=0, le=64, description="radius in pixels by which edges grow"
    )
    void: int | None = Field(
        default=None, ge=0, le=255, description="label of masks without boundaries (CEA)"
    )
    reduction: Literal["sum", "mean"] = Field(
        default="mean", description="of the loss over pixels; published: sum, with a rate of 1e-9"
    )


class EdgeDetection(PixelTask):
    """The probability of an edge at every pixel.

    The truth is what annotators agree on (`data.truth: boundaries`), or the boundaries of a
    segmentation (`masks`): coarse edge annotations (CEA), to pretrain on.
    """

    kind = "edges"
    Settings = EdgeSettings
    settings: EdgeSettings
    truth = {"boundaries": Boundaries(optional=True), "mask": ClassMap((), optional=True)}
    outputs = {"edge_share": Scores(), "edges": Picture()}

    def check_classes(self, part: Dataset) -> None:
        if not {"boundaries", "mask"} & part[0].keys():
            raise UserError(
                f"part {part.part!r}: neither boundaries nor masks; say data.truth: boundaries "
                "or masks"
            )

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        image, size = pixels.decode_within(record["image"], self.settings.longest)
        drawn = self._drawn(record, image.shape[:2], size)
        truth = dilate(consensus(drawn, self.settings.annotators), self.settings.dilation)
        if chance is None:
            return {"image": image, "truth": truth, "boundaries": drawn}
        targets = relaxed_targets(
            truth, canny_maps(image), self.settings.relaxed, self.settings.order
        )
        maps = {"image": image, "truth": truth, "targets": np.moveaxis(targets, 0, -1)}
        return cut(maps, self.settings, chance, {})

    def _drawn(
        self, record: Record, shape: tuple[int, ...], full: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Boundary maps (A, H, W) at the image's shape."""
        if "mask" in record:
            labels = np.asarray(mask_of(record)).astype(np.uint8)
            found = coarse_edges(labels, self.settings.void)[None]
        else:
            found = record["boundaries"]
        if found.shape[1:] == shape:
            return found
        same_size(record, (found.shape[2], found.shape[1]), full)
        size = (shape[1], shape[0])
        smaller = [
            Image.fromarray(one.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
            for one in found
        ]
        return np.stack([np.asarray(one) > 0 for one in smaller])

    def learner(self, initial: bool = True) -> EdgeLearner:
        return EdgeLearner(self.settings, initial)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The loss of the fused output per pixel; ODS, OIS and AP where they were counted."""
        scores = {"loss": float(sums["loss"] / sums["pixels"])}
        if "table" in sums:
            found = edge_metrics.scores(counts_of(sums))
            scores |= {"ods": found.ods, "ois": found.ois, "ap": found.ap}
            scores |= {"threshold": found.threshold}
        return scores

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Edges are black, as in print."""
        return np.arange(255, -1, -1, dtype=np.uint8)[:, None].repeat(3, axis=1)

    def plot(self, sums: Mapping[str, Tensor], path: Path) -> None:
        """Precision over recall."""
        table = counts_of(sums).table
        recall, precision = edge_metrics.rates(table)
        shown = table[:, 3] > 0  # precision of no pixels is no point of the curve
        plots.precision_recall({"model": (recall[shown], precision[shown])}, path)


def counts_of(sums: Mapping[str, Tensor]) -> edge_metrics.Counts:
    """The counts of the benchmark among sums over images."""
    table, best = (sums[name].numpy().astype(np.int64) for name in ("table", "best"))
    return edge_metrics.Counts(table, best)


class EdgeLearner(Learner):
    """RDS, or FCFN with one class.

    The published multipliers of RDS's learning rate go with the summed loss; under the mean all its
    layers learn at one rate, which is our reading.
    """

    def __init__(self, settings: EdgeSettings, initial: bool) -> None:
        trunk = trunk_of(settings, initial)
        net = Rds(trunk) if settings.net == "rds" else Fcfn(trunk, classes=1)
        alike = isinstance(net, Rds) and settings.reduction == "mean"
        self.modules = {"net": net.to(memory_format=torch.channels_last)}
        rates = settings.rate, settings.momentum, settings.weight_decay
        self.optimizers = {"net": sgd(net, *rates, {} if alike else None)}
        self.settings = settings

    def outputs(self, images: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Logits of the sides and of the fusion, (N, 1, H, W), of uint8 (N, H, W, 3)."""
        found = self.modules["net"](standardised(images, self.settings.mean, self.settings.std))
        sides, fused = found if isinstance(found, tuple) else ((), found)
        return [side.float() for side in sides], fused.float()

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        sides, fused = self.outputs(batch["image"])
        if sides:
            targets = batch["targets"].permute(0, 3, 1, 2)
            loss = rds_loss(sides, fused, targets, batch["truth"])
        else:
            loss = edge_loss(fused, batch["truth"])
        pixels_ = fused[0].numel() if self.settings.reduction == "mean" else 1
        self.descend("net", loss / pixels_)
        return {"loss": loss / pixels_}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        return self._loss(self.outputs(batch["image"])[1], batch)

    def _loss(self, fused: Tensor, batch: Batch) -> dict[str, Tensor]:
        loss = edge_loss(fused, batch["truth"]) * len(fused)
        return {"loss": loss, "pixels": torch.tensor(fused.numel())}

    def benchmark(self, batch: Batch) -> dict[str, Tensor]:
        fused = self.outputs(batch["image"])[1]
        maps = fused[:, 0].sigmoid().cpu().numpy()
        drawn = batch["boundaries"].cpu().numpy()
        each = [edge_metrics.count(nms(m), d) for m, d in zip(maps, drawn, strict=True)]
        return {
            **self._loss(fused, batch),
            "table": torch.from_numpy(np.sum([one.table for one in each], axis=0)),
            "best": torch.from_numpy(np.sum([one.best for one in each], axis=0)),
        }

    def predict(self, batch: Batch) -> list[Prediction]:
        """Edge maps, uint8 (H, W): 255 times the probability."""
        found = []
        for probability in self.outputs(batch["image"])[1][:, 0].sigmoid().cpu():
            row = {"edge_share": float((probability > 0.5).float().mean())}
            found.append(Prediction(row, (probability * 255).round().byte().numpy()))
        return found
