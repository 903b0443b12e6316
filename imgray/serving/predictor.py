"""The deployment that runs one trained model."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from ray import serve

from imgray.data.fields import ClassMap, Picture, Values
from imgray.data.pixels import Rejected, check_header, decode
from imgray.features.backbones import visible_device
from imgray.serving.metrics import metrics, timed
from imgray.serving.settings import Batching
from imgray.training.models import Model, Prepared, load_model
from imgray.training.task import Prediction, Task


@dataclass(frozen=True)
class Answer:
    """A row of the predictions table, and of a task that paints what it has painted.

    size: width and height in pixels; labels: of a class map, those that occur; png: the picture.
    """

    row: dict[str, Any]
    size: tuple[int, int] | None = None
    labels: tuple[int, ...] = ()
    png: bytes | None = None


class Predictor:
    """A verified model artifact.

    Args:
        uri: of the model artifact.
        batching: of forward passes, for records that come out at one shape.
        pixels: pictures of more, those of a record together, are refused.
    """

    def __init__(self, uri: str, batching: Batching, pixels: int) -> None:
        self.device = visible_device()
        self.model, self.pixels = load_model(uri), pixels
        self.model.to(self.device)
        batching.apply(self._run)
        batching.apply(self._embed)

    async def predict(self, values: Values, painted: bool) -> Answer | Rejected:
        """What the model says of a record; of one that cannot be decoded: the reason.

        Args:
            values: its inputs by name, checked.
            painted: whether the picture that the model paints is wanted.
        """
        prepared = await self._prepared(values)
        if isinstance(prepared, Rejected):
            return prepared
        with timed("predict"):
            prediction: Prediction = await self._run(prepared)
        return await asyncio.to_thread(answer_of, self.model.task, prediction, painted)

    async def embed(self, values: Values) -> dict[str, NDArray[np.float32]] | Rejected:
        """The joint embeddings (D,) of a record, by input, as `predict` takes and refuses it."""
        prepared = await self._prepared(values)
        if isinstance(prepared, Rejected):
            return prepared
        with timed("predict"):
            found: dict[str, NDArray[np.float32]] = await self._embed(prepared)
        return found

    async def _prepared(self, values: Values) -> Prepared | Rejected:
        try:
            with timed("decode"):
                return await asyncio.to_thread(prepared_of, self.model, values, self.pixels)
        except Rejected as error:
            return error

    def ready(self) -> bool:
        """Answered when this replica can answer."""
        return True

    @serve.batch
    async def _run(self, items: list[Prepared]) -> list[Prediction]:
        metrics().batch_size.observe(len(items))
        return await asyncio.to_thread(self.model.predict, items, self.device)

    @serve.batch
    async def _embed(self, items: list[Prepared]) -> list[dict[str, NDArray[np.float32]]]:
        metrics().batch_size.observe(len(items))
        return await asyncio.to_thread(self.model.embed, items, self.device)


def prepared_of(model: Model, values: Values, pixels: int) -> Prepared:
    """A record as the model takes it.

    Args:
        model: which.
        values: the inputs by name, checked.
        pixels: of all its pictures at most.

    Raises:
        Rejected: the reason, which begins with the name of the input at fault.
    """
    pictures = {n: value for n, value in values.items() if isinstance(model.inputs[n], Picture)}
    for name, data in pictures.items():
        try:
            width, height = check_header(data, pixels)
        except Rejected as error:
            raise Rejected(f"{name}: {error}") from None
        pixels -= width * height
    try:
        return model.prepare(values)
    except Rejected as error:
        if any(str(error).startswith(f"{name}: ") for name in model.inputs):
            raise
        name = _broken(pictures) or next(iter(values), "nothing given")
        raise Rejected(f"{name}: {error}") from None


def _broken(pictures: Mapping[str, bytes]) -> str | None:
    """The first of some pictures that cannot be decoded; of a single one, that."""
    if len(pictures) == 1:
        return next(iter(pictures))
    for name, data in pictures.items():
        try:
            decode(data)
        except Rejected:
            return name
    return None


def answer_of(task: Task, prediction: Prediction, painted: bool) -> Answer:
    """An answer from a prediction, with the picture if it is wanted."""
    picture = prediction.picture
    if picture is None:
        return Answer(prediction.row)
    is_map = task.painted is not None and isinstance(task.outputs[task.painted], ClassMap)
    labels = tuple(np.bincount(picture.ravel()).nonzero()[0].tolist()) if is_map else ()
    png = _png(picture, task.palette if is_map else None) if painted else None
    return Answer(prediction.row, (picture.shape[1], picture.shape[0]), labels, png)


def _png(picture: NDArray[np.uint8], palette: NDArray[np.uint8] | None) -> bytes:
    """Classes keep their numbers, with the palette beside them."""
    image = Image.fromarray(picture)
    if palette is not None:
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
