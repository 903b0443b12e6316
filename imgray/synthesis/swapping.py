"""Swapping of clothes between pictures of two people: the task, whose networks are SwapGAN's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imgray.data import pixels
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import ClassMap, Input, KeyPoints, Output, Picture, Values
from imgray.data.people import People
from imgray.data.pixels import Rejected
from imgray.errors import UserError
from imgray.synthesis.parsing import open_parser, parser_recipe, read_parsing
from imgray.synthesis.pose import SKELETONS, body18, check_pose, mirrored
from imgray.synthesis.scoring import ROWS, near
from imgray.synthesis.segmenter import nearest
from imgray.synthesis.swap_settings import SwapSettings
from imgray.synthesis.swapgan import SwapLearner
from imgray.training.task import Arrays, Task

SHOWN = 512
"""Pixels of the longer side of what a sheet of samples shows."""
CLOTHED = ("clothes", "clothes_before")


class Swapping(Task):
    """The person of a reference in the clothes of a target.

    The data set is a table with a row for each photograph of a person: `photo`, `pose`, and
    `parsing`; `group` names the person, where there are several photographs of one.
    """

    kind = "swap"
    Settings = SwapSettings
    settings: SwapSettings
    outputs: Mapping[str, Output] = {"picture": Picture()}
    one_shape = False
    alike = True
    rows = frozenset(ROWS)

    @property
    def inputs(self) -> Mapping[str, Input]:
        """`pose` and `parsing` are the reference's; a parser of the settings finds the latter."""
        parsing = ClassMap(self.settings.labels, optional=self.settings.parser is not None)
        pictures = {"reference": Picture(), "target": Picture()}
        return {**pictures, "pose": self._pose, "parsing": parsing}

    @property
    def fields(self) -> Mapping[str, Input]:
        parsing = ClassMap(self.settings.labels)
        return {"photo": Picture(), "pose": self._pose, "parsing": parsing}

    @property
    def _pose(self) -> KeyPoints:
        return KeyPoints(SKELETONS[self.settings.skeleton])

    def arranged(self, part: Dataset, scored: bool) -> Dataset:
        return People(part, self.settings.own)

    def completed(self, train: Dataset) -> dict[str, Any]:
        """The recipe of the parser, so that the model needs no more than its own files."""
        if self.settings.parser is None:
            return {}
        return {"parser_recipe": parser_recipe(self.settings)}

    def check_classes(self, part: Dataset) -> None:
        """Labels of parsing are checked with each record."""

    def prepare(self, values: Values) -> Arrays:
        """`whole` is the reference at its size, or `longest`; `parsing` is as large, or absent."""
        try:
            whole, size = pixels.decode_within(values["reference"], self.settings.longest)
        except Rejected as error:
            raise Rejected(f"reference: {error}") from None
        found: Arrays = {
            "whole": whole,
            "reference": self._cropped(Image.fromarray(whole)),
            "target": self._cropped(self._decoded("target", values["target"])[0]),
            "pose": self._points(values["pose"], size),
        }
        if values.get("parsing") is not None:
            parsing = read_parsing(values["parsing"], size, self.settings)
            found["parsing"] = nearest(parsing, whole.shape[:2])
        return found

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        whose = record["ids"]
        found = self._part(record, whose["reference"], "reference", "parsing")
        parsing = "target_parsing" if chance is None else None
        other = self._part(record, whose["target"], "target", parsing)
        if chance is not None and self.settings.mirror:
            found = self._mirrored(found) if chance.random() < 0.5 else found
            other = self._mirrored(other) if chance.random() < 0.5 else other
        return {**found, **other, "own": np.array(record["own"])}

    def _part(self, record: Record, id: str, picture: str, parsing: str | None = None) -> Arrays:
        """What a record holds of one person, at the size of crops. Raises `UserError`."""
        try:
            image, size = self._decoded(picture, record[picture])
            found: Arrays = {picture: self._cropped(image)}
            if picture == "reference":
                found["pose"] = self._points(record["pose"], size)
            if parsing:
                labels = read_parsing(record[parsing], size, self.settings)
                found[parsing] = nearest(labels, self.settings.crop)
        except Rejected as error:
            raise UserError(f"{id}: {error}; mend or remove it") from None
        return found

    def _mirrored(self, arrays: Arrays) -> Arrays:
        """One person's arrays, left for right."""
        width = self.settings.crop[1]
        return {
            name: mirrored(one, width) if name == "pose" else one[:, ::-1].copy()
            for name, one in arrays.items()
        }

    def _decoded(self, name: str, data: bytes) -> tuple[Image.Image, tuple[int, int]]:
        """A picture, twice as large as crops at least if it is, and its whole width and height.

        Raises `Rejected`, which names the input.
        """
        try:
            return pixels.decode_sized(data, shortest=max(self.settings.crop))
        except Rejected as error:
            raise Rejected(f"{name}: {error}") from None

    def _cropped(self, image: Image.Image) -> NDArray[np.uint8]:
        """A picture squashed to the size of crops, uint8 (h, w, 3)."""
        squashed = image.resize(self.settings.crop[::-1], Image.Resampling.BICUBIC, reducing_gap=3)
        return np.asarray(squashed, np.uint8)

    def _points(self, pose: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """A pose in pixels of the crop, float32 (18, 3). Raises `Rejected`."""
        points = body18(pose, self.settings.skeleton)
        check_pose(points, size, self.settings.visible)
        scale = np.array([*self.settings.crop[::-1], 1], np.float32) / [*size, 1]
        return (points * scale).astype(np.float32)

    def sample(self, record: Record, number: int) -> Record:
        return {name: record[name] for name in ("id", *self.inputs)}

    def shown(self, record: Record) -> bytes:
        """The reference, and beside it the target, as high where that is not too wide."""
        first, other = (
            Image.fromarray(pixels.decode_within(record[name], SHOWN)[0])
            for name in ("reference", "target")
        )
        scale = min(first.height / other.height, SHOWN / other.width)
        other = other.resize([max(1, round(scale * side)) for side in other.size])
        both = Image.new("RGB", (first.width + other.width, first.height))
        both.paste(first, (0, 0))
        both.paste(other, (first.width, 0))
        return pixels.encode(both)

    def learner(self, initial: bool = True) -> SwapLearner:
        return SwapLearner(self.settings, open_parser(self.settings, initial))

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the pictures of what `SwapLearner.evaluate` or `benchmark` says.

        Those of clothes are left out where no pair wears some.
        """
        count, clothed = float(sums["count"]), float(sums["clothed"])
        beside = {"count", "clothed", *CLOTHED, *self.rows}
        found = {name: float(one) / count for name, one in sums.items() if name not in beside}
        if clothed:
            found |= {name: float(sums[name]) / clothed for name in CLOTHED}
        return found | near(self.settings.kid, sums)
