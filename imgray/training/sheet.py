"""The sheet of fixed samples: what the networks paint for the same few images, as they learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from imgray.data.datasets import Dataset, Record
from imgray.drawing.predictions import Panel, panel_png
from imgray.training.task import Prediction, Task

SAMPLES = "samples.png"
SHOWN = 6


def sample_sheet(task: Task, part: Dataset, predict: Callable[[Record], Prediction]) -> bytes:
    """Some images of a part of the data, evenly spaced, with what is predicted for them, as PNG."""
    places = np.unique(np.linspace(0, len(part) - 1, SHOWN).round().astype(int))
    records = [task.sample(part[int(place)], number) for number, place in enumerate(places)]
    found = [predict(record) for record in records]
    pictures = [None if p.picture is None else Image.fromarray(p.picture) for p in found]
    panels = [
        Panel(record["id"], task.shown(record), task.words(one.row), coloured(picture, task))
        for record, one, picture in zip(records, found, pictures, strict=True)
    ]
    return panel_png(panels, legend(pictures, task), SAMPLES)


def legend(pictures: Sequence[Image.Image | None], task: Task) -> dict[str, str]:
    """The colours of the classes that occur in predicted pictures, by name."""
    if task.palette is None or not task.classes:
        return {}
    values = {int(v) for p in pictures if p is not None for v in np.unique(np.asarray(p))}
    return {task.classes[v]: "#" + bytes(task.palette[v]).hex() for v in sorted(values)}


def coloured(picture: Image.Image | None, task: Task) -> Image.Image | None:
    """A predicted picture as a person is shown it."""
    if picture is None or task.palette is None:
        return picture
    return Image.fromarray(task.palette[np.asarray(picture)])
