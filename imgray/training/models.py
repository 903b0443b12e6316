"""The model artifact: trained networks with all that is needed to run them, or to train them again.

`model.safetensors` holds the tensors, `config.json` the recipe and the names of the classes,
`curves.jsonl` the metrics as training went; pictures show these and what the networks have learnt.
Of a model that learnt from joined features, `carried/` holds their extractors
(`imgray.training.carried`). The fingerprint is the digest of the first two, and of the fingerprints
of these extractors.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import (
    FileEntry,
    Manifest,
    entry_of,
    opening,
    read_file,
    read_manifest,
    sha256,
)
from imgray.config import Precision, validate
from imgray.data.fields import Input, Values
from imgray.drawing import plots
from imgray.errors import UserError
from imgray.features.backbones import Backbone, layer_paths
from imgray.features.weights import Request, build
from imgray.training.carried import Carried, InputExtractor, asked, carried_of
from imgray.training.checkpoints import check_finite, load_state, pack, unpack
from imgray.training.loop import (
    CURVES,
    CURVES_PNG,
    Line,
    States,
    as_lines,
    load_nets,
    precision,
    to_device,
)
from imgray.training.recipe import Recipe
from imgray.training.sheet import SAMPLES
from imgray.training.task import (
    Arrays,
    Batch,
    Learner,
    Prediction,
    Task,
    longest_of,
    named_models,
    set_longest,
    task_of,
)

Answer = TypeVar("Answer")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
PASS_VALUES = 3 * 2**20
"""Values of the images of a forward pass where they keep their shapes: a megapixel in colour, for
which FCFN takes 1 GB."""


Prepared = dict[str, Any]
"""A record on its way into a model: arrays of `Task.prepare`, or, where the model carries
extractors, its inputs by name, some of them as an extractor has prepared them."""


@dataclass(frozen=True)
class Model:
    """A trained model, its networks in evaluation mode on the CPU.

    extractors: those that it carries, by the input whose vectors they make.
    """

    recipe: Recipe
    task: Task
    learner: Learner
    fingerprint: str
    extractors: Mapping[str, InputExtractor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Input]:
        """What it takes, by name: a picture or a text where it makes the vector itself."""
        return asked(self.task.inputs, {name: made.own for name, made in self.extractors.items()})

    def to(self, device: str) -> None:
        """Move all networks to a device."""
        for net in self.learner.modules.values():
            net.to(device)
        for own in self.extractors.values():
            own.extractor.to(device)

    def prepare(self, values: Values) -> Prepared:
        """Decode the inputs of a record, checked as `inputs` says, for `predict`.

        Raises:
            Rejected: what cannot be decoded.
        """
        if not self.extractors:
            return self.task.prepare(values)
        found = self.decoded(values)
        vectors = {name: made.any for name, made in self.extractors.items() if name in found}
        self.task.prepare(found | vectors)  # what else is wrong is found before there is a batch
        return found

    def within(self, longest: int) -> Model:
        """This model, with pictures scaled down to `longest` pixels where it would take longer.

        Raises:
            UserError: its pictures are brought to one size.
        """
        task = copy.copy(self.task)
        set_longest(task, min(longest, longest_of(task) or longest))
        return replace(self, task=task)

    def decoded(self, values: Values) -> dict[str, Any]:
        """A record of which the extractors have prepared what they take, and all else is as it was.

        Raises:
            Rejected: what cannot be decoded, by the name of the input.
        """
        return {
            name: self.extractors[name].prepare(value) if name in self.extractors else value
            for name, value in values.items()
        }

    def embedded(self, items: Sequence[Prepared]) -> list[dict[str, Any]]:
        """Records of `decoded` whose vectors are made, each extractor running over all at once."""
        found = [dict(item) for item in items]
        for name, own in self.extractors.items():
            have = [one for one in found if name in one]
            if have:
                vectors = own.vectors([one[name] for one in have])
                for one, vector in zip(have, vectors, strict=True):
                    one[name] = vector
        return found

    def predict(self, items: Sequence[Prepared], device: str) -> list[Prediction]:
        """Predictions for records of `prepare`, in their order, on the networks' device.

        Those of one shape share a forward pass; of photographs, only as far as memory goes.
        """
        return self._answered(self.learner.predict, items, device)

    def embed(self, items: Sequence[Prepared], device: str) -> list[dict[str, NDArray[np.float32]]]:
        """The joint embeddings (D,) of what is there of records of `prepare`: see `Learner.embed`.

        Raises:
            UserError: the model has none.
        """
        return self._answered(self._embed, items, device)

    def _embed(self, batch: Batch) -> list[dict[str, NDArray[np.float32]]]:
        found = {name: v.float().cpu().numpy() for name, v in self.learner.embed(batch).items()}
        return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]

    def _answered(
        self, answer: Callable[[Batch], list[Answer]], items: Sequence[Prepared], device: str
    ) -> list[Answer]:
        if self.extractors:
            items = [self.task.prepare(values) for values in self.embedded(items)]
        found: dict[int, Answer] = {}
        for places in self._passes(items):
            answers = self._forward(answer, [items[place] for place in places], device)
            found |= zip(places, answers, strict=True)
        return [found[place] for place in range(len(items))]

    def _passes(self, items: Sequence[Arrays]) -> Iterator[list[int]]:
        """The places of the images that go together."""
        shapes: dict[tuple[Hashable, int], list[int]] = {}
        for place, item in enumerate(items):
            shapes.setdefault(self.shared(item), []).append(place)
        for (_, most), places in shapes.items():
            yield from (places[start : start + most] for start in range(0, len(places), most))

    def shared(self, item: Arrays) -> tuple[Hashable, int]:
        """What records of `Task.prepare` that may share a pass have in common, and how many may."""
        shapes = tuple((name, array.shape) for name, array in sorted(item.items()))
        if self.task.one_shape:
            return shapes, sys.maxsize
        return shapes, max(1, PASS_VALUES // sum(array.size for array in item.values()))

    @torch.inference_mode()
    def _forward(
        self, answer: Callable[[Batch], list[Answer]], batch: Sequence[Arrays], device: str
    ) -> list[Answer]:
        arrays = {name: np.stack([one[name] for one in batch]) for name in batch[0]}
        with precision(self.recipe, device):
            return answer(to_device(arrays, device))


def save_model(
    folder: Folder,
    recipe: Recipe,
    classes: Sequence[str],
    states: States,
    lines: Sequence[Line],
    samples: bytes | None = None,
    carried: Carried | None = None,
) -> tuple[list[FileEntry], dict[str, Any]]:
    """Write the files of a model artifact: their entries, and what its manifest says about it.

    `samples` is the last sheet of samples, of a task that paints; the files of `carried` are there.

    Raises `UserError` for tensors that are not finite, before anything is written.
    """
    check_finite(states, max((line["step"] for line in lines), default=0))
    settings = {"recipe": recipe.model_dump(mode="json", by_alias=True), "classes": list(classes)}
    contents = {
        WEIGHTS: pack(states),
        CONFIG: json.dumps(settings, indent=1).encode(),
        CURVES: as_lines(lines),
        CURVES_PNG: plots.curves(lines),
        **({SAMPLES: samples} if samples else {}),
        **task_of(recipe, classes).portraits(states),
    }
    for name, data in contents.items():
        folder.write(name, data)
    files = [entry_of(name, data) for name, data in contents.items()]
    print_ = "".join(entry.sha256 for entry in files[:2])
    about: dict[str, Any] = {"task": recipe.task, "metrics": _last(lines)}
    if carried and carried.inputs:
        print_ += json.dumps(carried.prints, sort_keys=True)
        files += carried.files
        about["carried"] = {n: one.model_dump(mode="json") for n, one in carried.inputs.items()}
    return files, about | {"fingerprint": sha256(print_.encode())}


def _last(lines: Sequence[Line]) -> dict[str, float]:
    """The newest metrics of the validation part."""
    evaluated = [line for line in lines if line["part"] == "validate"] or [{}]
    return {k: v for k, v in evaluated[-1].items() if k not in plots.PLACES}


def load_model(uri: str, given: Collection[str] = (), recipe: Recipe | None = None) -> Model:
    """Load a model artifact, every file verified. Raises `UserError`.

    Args:
        uri: of the artifact.
        given: inputs that come as vectors, so that the extractors which the model carries for them
            are not loaded.
        recipe: in the place of its own.
    """
    folder = Folder(uri)
    manifest = read_manifest(folder, "model")
    recipe, task = load_task(folder, manifest, recipe)
    learner = task.learner(initial=False)
    load_nets(learner.modules, load_states(folder, manifest), f"{uri}/{WEIGHTS}")
    for net in learner.modules.values():
        net.eval()
    extractors = {
        name: InputExtractor(uri, name, own, manifest)
        for name, own in carried_of(manifest).items()
        if name not in given
    }
    return Model(recipe, task, learner, fingerprint_of(manifest), extractors)


def load_backbone(
    request: Request, size: int | None = None, precision: Precision = "float32"
) -> Backbone:
    """The network of a trained model with its preprocessing, ready to extract.

    Args:
        request: its `weights` are the URI of a model artifact.
        size: side of the square input in pixels, by default that of training.
        precision: of the forward pass.

    Raises:
        UserError: no model artifact, a damaged one, one that is no extractor, or no such layer.
    """
    folder = Folder(request.weights)
    manifest = read_manifest(folder, "model")
    _, task = load_task(folder, manifest)
    states = load_states(folder, manifest)
    try:
        config = task.extractor()
        config = config.model_copy(update={"size": size or config.size, "precision": precision})
        net = build(config)
        load_state(net, states["net"], WEIGHTS)
        layers = layer_paths(net, request.layers, config.size, config.layers)
    except UserError as error:
        raise UserError(f"--weights {request.net}={request.weights}: {error}") from None
    return Backbone(net, config.model_copy(update={"layers": layers}))


def load_task(
    folder: Folder, manifest: Manifest, recipe: Recipe | None = None
) -> tuple[Recipe, Task]:
    """The recipe, or another, and the task of a model artifact without its tensors. `UserError`."""
    with opening(folder):
        settings = json.loads(read_file(folder, manifest.file(CONFIG)))
        own = validate(Recipe, settings["recipe"], f"{folder.uri}/{CONFIG}")
        if recipe:
            _check_models(own, recipe, folder)
        recipe = recipe or own
        return recipe, task_of(recipe, settings["classes"])


def _check_models(own: Recipe, other: Recipe, folder: Folder) -> None:
    """Refuse another of a model's `Settings.models`: it carries their tensors. `UserError`."""
    before, after = named_models(own), named_models(other)
    if changed := sorted(n for n in before | after if before.get(n) != after.get(n)):
        name = changed[0]
        carried = "the one that it was trained with" if name in before else "none"
        raise UserError(
            f"settings.{name} {after.get(name)}: {folder.uri} carries {carried}, which cannot be "
            "changed afterwards; leave it out, or train anew"
        )


def load_states(folder: Folder, manifest: Manifest) -> States:
    """The verified tensors of a model artifact."""
    with opening(folder):
        found: States = unpack(read_file(folder, manifest.file(WEIGHTS)))
        return found


def load_start(starts: Mapping[str, str]) -> States:
    """What a recipe's networks start from (`Recipe.starts`), by network and name.

    Raises:
        UserError: no model artifact, a damaged one, or one of several networks, none of that name.
    """
    if "" in starts:
        return _verified(starts[""])
    return {name: _network(name, uri) for name, uri in starts.items()}


def _network(name: str, uri: str) -> dict[str, Tensor]:
    """The only network of a model artifact, or the one of a name."""
    states = _verified(uri)
    if len(states) > 1 and name not in states:
        raise UserError(f"start.{name}: {uri} has {', '.join(states)}, no {name!r}")
    return states[name] if name in states else next(iter(states.values()))


def _verified(uri: str) -> States:
    folder = Folder(uri)
    return load_states(folder, read_manifest(folder, "model"))


def fingerprint_of(manifest: Manifest) -> str:
    """The digest of a model's tensors, recipe and classes, and of what it carries.

    Raises `UserError` if there is none.
    """
    if "fingerprint" not in manifest.about:
        raise UserError("a model's manifest without a fingerprint; make the model again")
    return str(manifest.about["fingerprint"])
