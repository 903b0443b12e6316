"""What a model carries: the extractors that turn a picture or a text into the vector of an input.

A model that learnt from joined features (`imgray.data.joins`) holds the extractors of their
artifacts, file by file, below `carried/INPUT/`, and `about["carried"]` of its manifest describes
them. Vectors that no extractor of ours has made are none of them: such an input stays a vector.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import FileEntry, Manifest, read_file
from imgray.data.fields import Input, Picture, Text
from imgray.data.joins import Columns, side_by_side
from imgray.data.pixels import Rejected
from imgray.errors import UserError
from imgray.features.columns import FeatureInfo, Vectors
from imgray.features.extractor import ExtractorConfig, load_extractor
from imgray.training.task import Task

EXTRACTORS = "extractors/"
"""What the names of an extractor's files begin with, in any artifact."""


class CarriedInput(BaseModel):
    """What a model's manifest says of an input that it makes itself.

    columns: of the extractor, whose vectors side by side are the input.
    features: what they are, in that order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    extractor: ExtractorConfig
    columns: list[str]
    features: dict[str, FeatureInfo]

    def takes(self, optional: bool) -> Input:
        """What is asked for in the place of the vector."""
        return Picture(optional=optional) if self.extractor.nets else Text(optional=optional)


class Carried(NamedTuple):
    """What a model carries: the entries of its files, and by input what they are."""

    files: list[FileEntry] = []
    inputs: dict[str, CarriedInput] = {}

    @property
    def prints(self) -> dict[str, Any]:
        """What tells these extractors from others: by input its columns with their fingerprints."""
        return {
            name: [[column, one.features[column].model_dump()] for column in one.columns]
            for name, one in self.inputs.items()
        }


def carry(features: Mapping[str, str], output: Folder) -> Carried:
    """Copy the extractors of joined features into a model artifact.

    Args:
        features: by input the flag that names the artifact, and columns of it.
        output: the model artifact.

    Raises:
        UserError: a file of a features artifact is damaged, or cannot be copied.
    """
    found = Carried([], {})
    for name, flag in features.items():
        columns = Columns(name, flag)
        about = columns.manifest.about
        if "extractor" not in about:
            continue
        for entry in columns.manifest.named(EXTRACTORS):
            moved = entry.model_copy(update={"name": f"{_place(name)}/{entry.name}"})
            output.write(moved.name, read_file(columns.folder, entry))
            found.files.append(moved)
        found.inputs[name] = CarriedInput(
            extractor=about["extractor"], columns=columns.names, features=columns.infos
        )
    return found


def carried_of(manifest: Manifest) -> dict[str, CarriedInput]:
    """By input what a model carries, as its manifest says."""
    carried = manifest.about.get("carried", {})
    return {name: CarriedInput.model_validate(one) for name, one in carried.items()}


def inputs_of(manifest: Manifest, task: Task, given: Collection[str] = ()) -> dict[str, Input]:
    """What a model takes, by name: pictures and texts in the place of vectors that it makes itself.

    Args:
        manifest: of the model.
        task: of the model.
        given: inputs that are given as vectors all the same.
    """
    return asked(task.inputs, _made(manifest, given))


def fields_of(manifest: Manifest, task: Task, given: Collection[str] = ()) -> dict[str, Input]:
    """As `inputs_of`, what a row of a table holds that a model is scored on."""
    return asked(task.fields, _made(manifest, given))


def asked(fields: Mapping[str, Input], carried: Mapping[str, CarriedInput]) -> dict[str, Input]:
    """Inputs of which some are made of what is asked for in their place."""
    return {
        name: carried[name].takes(one.optional) if name in carried else one
        for name, one in fields.items()
    }


def _made(manifest: Manifest, given: Collection[str]) -> dict[str, CarriedInput]:
    return {name: one for name, one in carried_of(manifest).items() if name not in given}


def check_same(manifest: Manifest, features: Mapping[str, str]) -> None:
    """Refuse features that are not those that a model learnt from.

    Args:
        manifest: of the model.
        features: by input the flag that names an artifact, and columns of it.

    Raises:
        UserError: other networks, layers or regions have made them, or in another order.
    """
    carried = carried_of(manifest)
    for name in features.keys() & carried.keys():
        columns = Columns(name, features[name])
        own = carried[name]
        theirs = {n: FeatureInfo.model_validate(info) for n, info in columns.infos.items()}
        if _layers(theirs) != _layers({n: own.features[n] for n in own.columns}):
            raise UserError(
                f"{columns.place}: {', '.join(columns.names)} of other fingerprints than "
                f"{', '.join(own.columns)}, which the model learnt from; name the same features, "
                "or leave the flag away to have the model make them"
            )


def _layers(features: Mapping[str, FeatureInfo]) -> list[tuple[str, FeatureInfo]]:
    """Features in their order, whatever their networks are called."""
    return [(name.partition(".")[2], info) for name, info in features.items()]


class InputExtractor:
    """Makes the vectors of an input; several threads may ask.

    Args:
        uri: of the model.
        name: of the input.
        own: what the model carries for it.
        manifest: of the model.

    Raises:
        UserError: a file of it is damaged.
    """

    def __init__(self, uri: str, name: str, own: CarriedInput, manifest: Manifest) -> None:
        prefix = f"{_place(name)}/"
        files = [
            entry.model_copy(update={"name": entry.name.removeprefix(prefix)})
            for entry in manifest.named(prefix)
        ]
        described = {"extractor": own.extractor.model_dump(mode="json")}
        described |= {"features": {n: info.model_dump() for n, info in own.features.items()}}
        parts = Manifest(kind="features", config={}, about=described, files=files)
        self.extractor = load_extractor(Folder(f"{uri.rstrip('/')}/{prefix}"), parts)
        self.name, self.own = name, own
        self._lock = threading.Lock()

    @property
    def any(self) -> NDArray[np.float32]:
        """A vector (dim,) that stands for one to come."""
        dim = sum(one.regions * one.dim for one in self.own.features.values())
        return np.full(dim, dim**-0.5, np.float32)

    def prepare(self, given: Any) -> Any:
        """Decode a picture or a text for `vectors`. Raises `Rejected`, which names the input."""
        try:
            return self.extractor.prepare(given)
        except Rejected as error:
            raise Rejected(f"{self.name}: {error}") from None

    def vectors(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """The vectors (B, dim) of prepared pictures or texts, as a features artifact gives them."""
        if not batch:
            return np.empty((0, len(self.any)), np.float32)
        with self._lock, torch.inference_mode():
            return joined(self.extractor.run(batch), self.own.columns)


def joined(vectors: Vectors, columns: Sequence[str]) -> NDArray[np.float32]:
    """Columns of features, side by side (B, dim), at the precision that artifacts store."""
    halves = [vectors[name].astype(np.float16) for name in columns]
    flat = [half.reshape(len(half), math.prod(half.shape[1:])) for half in halves]
    return side_by_side(flat).astype(np.float32)


def _place(name: str) -> str:
    """Where the files of an input's extractor lie in a model artifact."""
    return f"carried/{name}"
