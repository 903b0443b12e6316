"""Classes: whether a data set's are what a task can use, and how often each is taken for which."""

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
