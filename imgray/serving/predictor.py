"""The deployment that runs one trained model."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from ray import serve

from imgray.data.fields import Picture, Values
from imgray.data.pixels import Rejected, check_header
from imgray.features.backbones import visible_device
from imgray.serving.metrics import metrics, timed
from imgray.serving.settings import Batching
from imgray.training.models import load_model
from imgray.training.task import Arrays, Prediction


@dataclass(frozen=True)
class Answer:
    """A row of the predictions table, and the picture as PNG, for a task that paints one."""

    row: dict[str, Any]
    size: tuple[int, int] | None = None
    png: bytes | None = None


class Predictor:
    """A verified model artifact.

    Args:
        uri: of the model artifact.
        batching: of forward passes, for pictures that come out at one shape.
        pixels: pictures of more are refused.
    """

    def __init__(self, uri: str, batching: Batching, pixels: int) -> None:
        self.device = visible_device()
        self.model, self.pixels = load_model(uri), pixels
        self.model.to(self.device)
        batching.apply(self._run)

    async def predict(self, values: Values, painted: bool) -> Answer | Rejected:
        """What the model says of a record; of one that cannot be decoded: the reason.

        Args:
            values: its inputs by name, checked.
            painted: whether the picture that the model paints is wanted.
        """
        try:
            with timed("decode"):
                prepared = await asyncio.to_thread(self._prepare, values)
        except Rejected as error:
            return error
        with timed("predict"):
            prediction: Prediction = await self._run(prepared)
        if prediction.picture is None:
            return Answer(prediction.row)
        height, width = prediction.picture.shape[:2]
        png = await asyncio.to_thread(self._png, prediction.picture) if painted else None
        return Answer(prediction.row, (width, height), png)

    def ready(self) -> bool:
        """Answered when this replica can answer."""
        return True

    def _prepare(self, values: Values) -> Arrays:
        for name, value in values.items():
            if isinstance(self.model.task.inputs[name], Picture):
                check_header(value, self.pixels)
        return self.model.task.prepare(values)

    @serve.batch
    async def _run(self, items: list[Arrays]) -> list[Prediction]:
        metrics().batch_size.observe(len(items))
        return await asyncio.to_thread(self.model.predict, items, self.device)

    def _png(self, picture: np.ndarray[Any, Any]) -> bytes:
        """Classes keep their numbers, with the task's palette beside them."""
        image = Image.fromarray(picture)
        if self.model.task.classes and self.model.task.palette is not None:
            image.putpalette(self.model.task.palette.tobytes())
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
