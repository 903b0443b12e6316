"""The deployment that runs one trained model."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from imgray.config import Encoding
from imgray.data.fields import ClassMap, Input, Picture, Values, sole_picture
from imgray.data.pixels import Rejected, check_header, decode, encode, encoded, scaled
from imgray.errors import NoRoom, UserError
from imgray.features.backbones import visible_device
from imgray.features.memory import keep_freed
from imgray.serving.metrics import timed
from imgray.serving.pace import Pace
from imgray.serving.passes import Passes
from imgray.serving.requests import JPEG
from imgray.serving.settings import Batching, Limits
from imgray.training.models import Model, Prepared, load_model
from imgray.training.task import Prediction, Task, longest_of

Found = TypeVar("Found")
Embedded = dict[str, NDArray[np.float32]]
Sizes = Mapping[str, tuple[int, int]]
PROBE, PROBES = 128, 3
"""Pixels of a side of the picture by which a replica measures its pace as it starts; how often."""
log = logging.getLogger("ray.serve")
Item = tuple[Prepared, int]
"""A record on its way, and the pixels of its pictures."""


@dataclass(frozen=True)
class Answer:
    """A row of the predictions table, and of a task that paints what it has painted.

    size: width and height in pixels; labels: of a class map, those that occur; encoded: the
    picture, as it was asked for.
    """

    row: dict[str, Any]
    size: tuple[int, int] | None = None
    labels: tuple[int, ...] = ()
    encoded: bytes | None = None


class Predictor:
    """A verified model artifact.

    Args:
        uri: of the model artifact.
        batching: of forward passes, for records that come out at one shape.
        limits: pictures of more pixels, those of a record together, are refused, and so is what
            would take more seconds.
    """

    def __init__(self, uri: str, batching: Batching, limits: Limits) -> None:
        keep_freed()
        self.device = visible_device()
        self.model, self.limits = load_model(uri), limits
        self.model.to(self.device)
        self.pace = Pace(limits.seconds)
        self._measure()
        self.run: Passes[Item, Prediction] = Passes(self._run, self._shared, batching)
        self.embedded: Passes[Item, Embedded] = Passes(self._embed, self._shared, batching)

    def _measure(self) -> None:
        """Learn how long pictures take that keep their sizes, where a picture is enough to ask."""
        name = sole_picture(self.model.inputs)
        if name is None or self.model.task.one_shape:
            return
        noise = np.random.default_rng(0).integers(0, 256, (PROBE, PROBE, 3), np.uint8)
        try:
            item = self.model.prepare({name: encode(noise)})
        except Rejected:
            return
        self.model.predict([item], self.device)  # the first pass takes longer
        taken = []
        for _ in range(PROBES):
            began = time.perf_counter()
            self.model.predict([item], self.device)
            taken.append(time.perf_counter() - began)
        pixels = math.prod(seen_by(self.model.task, {name: (PROBE, PROBE)})[name])
        self.pace.measured(min(taken), pixels, 1)

    async def predict(
        self, values: Values, encoding: str | None, longest: int | None = None
    ) -> Answer | Rejected:
        """What the model says of a record; of one that is refused: the reason.

        Args:
            values: its inputs by name, checked.
            encoding: the media type in which the picture that the model paints is wanted, if it is.
            longest: pixels to which longer pictures are scaled down, where that is less than the
                model's own setting.
        """
        found = await self._asked(self.run, values, longest)
        if isinstance(found, Rejected):
            return found
        try:
            return await asyncio.to_thread(answer_of, self.model.task, found, encoding)
        except Rejected as error:
            return error

    async def embed(self, values: Values) -> Embedded | Rejected:
        """The joint embeddings (D,) of a record, by input, as `predict` takes and refuses it."""
        return await self._asked(self.embedded, values)

    async def _asked(
        self, passes: Passes[Item, Found], values: Values, longest: int | None = None
    ) -> Found | Rejected:
        began = time.monotonic()
        model = self.model.within(longest) if longest else self.model
        try:
            sizes = await asyncio.to_thread(sizes_of, model.inputs, values, self.limits.pixels)
            pixels = self._admitted(model, sizes)
            with self.pace.counted(pixels):
                with timed("decode"):
                    prepared = await asyncio.to_thread(prepared_of, model, values)
                with timed("predict"):
                    left = self.limits.seconds - (time.monotonic() - began)
                    return await passes((prepared, pixels), left)
        except Rejected as error:
            return error
        except NoRoom as error:
            log.error("%s", error)
            raise UserError("no room for work; come again") from None

    def _admitted(self, model: Model, sizes: Sizes) -> int:
        """The pixels of a record's pictures as the model sees them, if it can be done in time.

        Raises:
            Rejected: it cannot.
            UserError: there is too much to do before it.
        """
        seen = seen_by(model.task, sizes)
        pixels = sum(map(math.prod, seen.values()))
        if seen and not model.task.one_shape:
            largest = max(seen, key=lambda name: math.prod(seen[name]))
            try:
                self.pace.check(*seen[largest], pixels, longest_of(model.task) is not None)
            except Rejected as error:
                raise Rejected(f"{largest}: {error}") from None
        return pixels

    def ready(self) -> bool:
        """Answered when this replica can answer."""
        return True

    def _shared(self, item: Item) -> tuple[Hashable, int]:
        return (None, sys.maxsize) if self.model.extractors else self.model.shared(item[0])

    def _run(self, items: Sequence[Item]) -> list[Prediction]:
        began, learn = time.perf_counter(), self.pace.given_up
        try:
            found = self.model.predict([prepared for prepared, _ in items], self.device)
            learn = self.pace.measured
        finally:
            if not self.model.task.one_shape:
                pixels = sum(pixels for _, pixels in items)
                learn(time.perf_counter() - began, pixels, len(items))
        return found

    def _embed(self, items: Sequence[Item]) -> list[Embedded]:
        return self.model.embed([prepared for prepared, _ in items], self.device)


def seen_by(task: Task, sizes: Sizes) -> Sizes:
    """Width and height of pictures as a task scales them."""
    longest = longest_of(task)
    return {name: scaled(size, longest) if longest else size for name, size in sizes.items()}


def sizes_of(inputs: Mapping[str, Input], values: Values, pixels: int) -> Sizes:
    """Width and height of the pictures of a record by input, from their headers alone.

    Args:
        inputs: the declared ones.
        values: the inputs by name, checked.
        pixels: of all pictures at most.

    Raises:
        Rejected: the reason, which begins with the name of the input at fault.
    """
    found = {}
    for name, data in _pictures(inputs, values).items():
        try:
            found[name] = check_header(data, pixels)
        except Rejected as error:
            raise Rejected(f"{name}: {error}") from None
        pixels -= math.prod(found[name])
    return found


def prepared_of(model: Model, values: Values) -> Prepared:
    """A record as the model takes it.

    Raises:
        Rejected: the reason, which begins with the name of the input at fault.
    """
    try:
        return model.prepare(values)
    except Rejected as error:
        if any(str(error).startswith(f"{name}: ") for name in model.inputs):
            raise
        name = _broken(_pictures(model.inputs, values)) or next(iter(values), "nothing given")
        raise Rejected(f"{name}: {error}") from None


def _pictures(inputs: Mapping[str, Input], values: Values) -> dict[str, bytes]:
    return {n: value for n, value in values.items() if isinstance(inputs[n], Picture)}


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


def answer_of(task: Task, prediction: Prediction, encoding: str | None) -> Answer:
    """An answer from a prediction, with the picture of a media type if one is wanted.

    Raises:
        Rejected: the prediction is none, or of the picture there is no such file.
    """
    if prediction.fault:
        raise Rejected(f"what the model makes of this is no picture: {prediction.fault}")
    picture = prediction.picture
    if picture is None:
        return Answer(prediction.row)
    is_map = task.painted is not None and isinstance(task.outputs[task.painted], ClassMap)
    labels = tuple(np.bincount(picture.ravel()).nonzero()[0].tolist()) if is_map else ()
    data = None
    if encoding:
        kind: Encoding = "jpeg" if encoding == JPEG else "png"
        data = encoded(picture, kind, task.palette if is_map else None)
    return Answer(prediction.row, (picture.shape[1], picture.shape[0]), labels, data)
