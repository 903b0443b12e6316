"""The joint embedding of a matching model: images and texts in one space, to be compared there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.data.fields import Text
from imgray.errors import UserError
from imgray.features.columns import FeatureInfo, Vectors
from imgray.training.carried import carried_of, joined
from imgray.training.models import Model, load_model, load_task

IMAGE, TEXT = "image", "text"
"""The inputs of a task that has a joint embedding."""


@dataclass(frozen=True)
class Joint:
    """Stored features of pictures, and texts as they are, in one space.

    The dot product of an image's and a text's vector, both of unit length, is the score of the
    pair. Several threads may ask.

    columns: the features of pictures that it needs, in their order, with their fingerprints.
    dim: of the space.
    fingerprint: of the model.
    """

    model: Model
    columns: dict[str, FeatureInfo]
    dim: int
    device: str = "cpu"

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return self.model.fingerprint

    def to(self, device: str) -> Joint:
        """The same on another device, to which its networks move."""
        self.model.to(device)
        return Joint(self.model, self.columns, self.dim, device)

    def pictures(self, vectors: Vectors) -> NDArray[np.float32]:
        """The embeddings (B, D) of pictures by their features: by column of `columns` (B, R, C)."""
        return self._embedded(IMAGE, joined(vectors, list(self.columns)))

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings (B, D) of texts.

        Raises:
            Rejected: a text that is none, or too long.
        """
        field = self.model.inputs[TEXT]
        return self._embedded(TEXT, [field.value(text) for text in texts])

    def _embedded(self, name: str, values: Iterable[Any]) -> NDArray[np.float32]:
        records = [self.model.prepare({name: value}) for value in values]
        found = [one[name] for one in self.model.embed(records, self.device)]
        return np.array(found, np.float32).reshape(-1, self.dim)


def load_joint(uri: str) -> Joint:
    """The joint embedding of a model, every file verified.

    Raises:
        UserError: no model, or one without a joint embedding, or one that learnt from vectors which
            no extractor of ours has made. One that reads texts itself needs none for them.
    """
    folder = Folder(uri)
    manifest = read_manifest(folder, "model")
    _, task = load_task(folder, manifest)
    if task.joint is None:
        raise UserError(
            f"{uri}: {type(task).__name__} has no joint embedding of images and texts; train a "
            "matching model"
        )
    carried = carried_of(manifest)
    reads = isinstance(task.inputs[TEXT], Text)
    for name in (IMAGE,) if reads else (IMAGE, TEXT):
        if name not in carried:
            raise UserError(
                f"{uri}: its vectors of {name!r} were made by no extractor that it carries; train "
                f"with --features {name}=URI of a features artifact"
            )
    image = carried[IMAGE]
    columns = {name: image.features[name] for name in image.columns}
    return Joint(load_model(uri, [IMAGE]), columns, task.joint)
