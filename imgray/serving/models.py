"""The models that are served: which one is asked, and what it says of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.data.fields import Input, Picture, Text, Values, checked
from imgray.data.pixels import Rejected
from imgray.retrieval.modalities import IMAGE, TEXT
from imgray.serving.calls import call_with_pictures, refused
from imgray.serving.guard import Refusal
from imgray.serving.predictor import Answer
from imgray.training.carried import inputs_of
from imgray.training.models import fingerprint_of, load_task
from imgray.training.task import Task, longest_of


@dataclass(frozen=True)
class Served:
    """A model as the service knows it."""

    name: str
    uri: str
    task: Task
    fingerprint: str
    inputs: Mapping[str, Input]

    @property
    def matches(self) -> bool:
        """Whether it puts pictures and texts in one space; it may take vectors instead."""
        taken = (self.inputs.get(IMAGE), self.inputs.get(TEXT))
        return bool(self.task.joint) and list(map(type, taken)) == [Picture, Text]

    @classmethod
    def of(cls, name: str, uri: str) -> Self:
        """Read from the artifact, without its tensors."""
        folder = Folder(uri)
        manifest = read_manifest(folder, "model")
        _, task = load_task(folder, manifest)
        return cls(name, uri, task, fingerprint_of(manifest), inputs_of(manifest, task))


class Models:
    """Asks the models that are served.

    Args:
        served: each by its name.
        predictors: handle of each one's deployment by name.
        retries: new attempts when a replica dies at work.
    """

    def __init__(
        self, served: Mapping[str, Served], predictors: Mapping[str, Any], retries: int
    ) -> None:
        self.served, self.predictors, self.retries = served, predictors, retries

    def named(self, name: str) -> Served:
        """The model of this name. Raises `Refusal`."""
        if name not in self.served:
            known = ", ".join(self.served) or "none"
            raise Refusal(404, f"no such model; there are: {known}", "model")
        return self.served[name]

    def of_kind(self, kind: str, name: str | None) -> Served:
        """The model of a kind that a request names, or the first. Raises `Refusal`."""
        fit = [model for model in self.served.values() if model.task.kind == kind]
        return _first(fit, kind, name)

    @property
    def match(self) -> list[Served]:
        """Those that take pictures and texts, and have a joint embedding of them."""
        return [model for model in self.served.values() if model.matches]

    def matching(self, name: str | None) -> Served:
        """The one of `match` that a request names, or the first. Raises `Refusal`."""
        return _first(self.match, "match", name)

    async def ask(
        self, model: Served, given: Values, encoding: str | None, longest: int | None = None
    ) -> Answer:
        """What a model says of a record.

        Args:
            model: which one.
            given: the inputs by name, as they were sent.
            encoding: the media type of the picture that the model paints, if it is wanted.
            longest: pixels to which longer pictures are scaled down.

        Raises:
            Refusal: an input is not as it is declared, or there is no answer.
        """
        if longest is not None and longest_of(model.task) is None:
            raise Refusal(422, f"{model.name} brings all pictures to one size", "longest")
        answer: Answer = await self._call("predict", model, given, encoding, longest)
        return answer

    async def embed(self, model: Served, given: Values) -> Mapping[str, NDArray[np.float32]]:
        """The joint embeddings (D,) of the inputs of a record, by name, as `ask` takes it."""
        found: Mapping[str, NDArray[np.float32]] = await self._call("embed", model, given)
        return found

    async def _call(self, method: str, model: Served, given: Values, *more: Any) -> Any:
        inputs = model.inputs
        try:
            values = checked(inputs, given)
        except Rejected as fault:
            raise refused(fault, [*given, *inputs]) from None
        asked = getattr(self.predictors[model.name], method)
        return await call_with_pictures(asked, values, *more, fields=inputs, retries=self.retries)


def _first(fit: Sequence[Served], what: str, name: str | None) -> Served:
    named = [model for model in fit if name in (None, model.name)]
    if name is not None and not named:
        known = ", ".join(model.name for model in fit) or "none"
        raise Refusal(422, f"no such model for {what}; there are: {known}", "model")
    if not named:
        raise Refusal(404, f"this service has no model for {what}")
    return named[0]
