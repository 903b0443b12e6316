"""Classes: whether a data set's are what a task can use, and how well they are told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imgray.data.datasets import Dataset
from imgray.errors import UserError


def check_labelled(train: Dataset, classes: Sequence[str]) -> None:
    """Refuse to learn from fewer than two classes, or from one without a record. `UserError`."""
    if len(classes) < 2:
        raise UserError(f"part {train.part!r}: fewer than two classes")
    counts = np.bincount(train.labels(), minlength=len(classes))
    if not counts.all():
        empty = classes[int(counts.argmin())]
        raise UserError(f"part {train.part!r}: class {empty!r} has no image")


def check_same(part: Dataset, classes: Sequence[str]) -> None:
    """Refuse data whose labels do not mean what a model's do. Raises `UserError`."""
    if tuple(part.classes) != tuple(classes)[: len(part.classes)]:
        raise UserError(
            f"part {part.part!r} has the classes {', '.join(part.classes)}, but the model "
            f"{', '.join(classes)}: labels must mean the same in both"
        )
    part.labels()


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts (C, C), rows the true class, columns the predicted one, of labels (n,), int64."""
    counts = torch.bincount(labels * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def overlaps(counts: Tensor) -> Tensor:
    """Intersection over union by class (C,), of counts (C, C); nan of classes that are nowhere."""
    both = counts.diagonal()
    return both / (counts.sum(dim=0) + counts.sum(dim=1) - both)


def agreement(counts: Tensor) -> dict[str, float]:
    """Scores of a confusion matrix (C, C), rows the truth.

    Per-pixel accuracy; per-class accuracy, the mean over classes that are there; mean IoU over
    classes that are there or predicted.
    """
    truth, by_class = counts.sum(dim=1), overlaps(counts)
    return {
        "pixel_accuracy": float(counts.diagonal().sum() / counts.sum()),
        "class_accuracy": float((counts.diagonal() / truth)[truth > 0].mean()),
        "miou": float(by_class[~by_class.isnan()].mean()),
    }
