"""The model artifact: trained networks with all that is needed to run them, or to train them again.

`model.safetensors` holds the tensors, `config.json` the recipe and the names of the classes,
`curves.jsonl` the metrics as training went; pictures show these and what the networks have learnt.
The fingerprint is the digest of the first two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
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
from imgray.drawing import plots
from imgray.errors import UserError
from imgray.features.backbones import Backbone, layer_paths
from imgray.features.weights import Request, build
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
from imgray.training.task import Arrays, Learner, Prediction, Task, task_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PASS_VALUES = 3 * 2**20
"""Values of the images of a forward pass where they keep their shapes: a megapixel in colour, for
which FCFN takes 1 GB."""


@dataclass(frozen=True)
class Model:
    """A trained model, its networks in evaluation mode on the CPU."""

    recipe: Recipe
    task: Task
    learner: Learner
    fingerprint: str

    def to(self, device: str) -> None:
        """Move all networks to a device."""
        for net in self.learner.modules.values():
            net.to(device)

    def predict(self, items: Sequence[Arrays], device: str) -> list[Prediction]:
        """Predictions for images of `Task.prepare`, in their order, on the networks' device.

        Images of one shape share a forward pass; of photographs, only as far as memory goes.
        """
        found: dict[int, Prediction] = {}
        for places in self._passes(items):
            answers = self._forward([items[place] for place in places], device)
            found |= zip(places, answers, strict=True)
        return [found[place] for place in range(len(items))]

    def _passes(self, items: Sequence[Arrays]) -> Iterator[list[int]]:
        """The places of the images that go together."""
        shapes: dict[Any, list[int]] = {}
        for place, item in enumerate(items):
            key = tuple((name, array.shape) for name, array in sorted(item.items()))
            shapes.setdefault(key, []).append(place)
        for places in shapes.values():
            values = sum(array.size for array in items[places[0]].values())
            most = len(places) if self.task.one_shape else max(1, PASS_VALUES // values)
            yield from (places[start : start + most] for start in range(0, len(places), most))

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Arrays], device: str) -> list[Prediction]:
        arrays = {name: np.stack([one[name] for one in batch]) for name in batch[0]}
        with precision(self.recipe, device):
            return self.learner.predict(to_device(arrays, device))


def save_model(
    folder: Folder,
    recipe: Recipe,
    classes: Sequence[str],
    states: States,
    lines: Sequence[Line],
    samples: bytes | None = None,
) -> tuple[list[FileEntry], dict[str, Any]]:
    """Write the files of a model artifact: their entries, and what its manifest says about it.

    `samples` is the last sheet of samples, of a task that paints.

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
    print_ = sha256("".join(entry.sha256 for entry in files[:2]).encode())
    return files, {"task": recipe.task, "fingerprint": print_, "metrics": _last(lines)}


def _last(lines: Sequence[Line]) -> dict[str, float]:
    """The newest metrics of the validation part."""
    evaluated = [line for line in lines if line["part"] == "validate"] or [{}]
    return {k: v for k, v in evaluated[-1].items() if k not in plots.PLACES}


def load_model(uri: str) -> Model:
    """Load a model artifact, every file verified. Raises `UserError`."""
    folder = Folder(uri)
    manifest = read_manifest(folder, "model")
    recipe, task = load_task(folder, manifest)
    learner = task.learner(initial=False)
    load_nets(learner.modules, load_states(folder, manifest), f"{uri}/{WEIGHTS}")
    for net in learner.modules.values():
        net.eval()
    return Model(recipe, task, learner, fingerprint_of(manifest))


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


def load_task(folder: Folder, manifest: Manifest) -> tuple[Recipe, Task]:
    """The recipe and the task of a model artifact, without its tensors. Raises `UserError`."""
    with opening(folder):
        settings = json.loads(read_file(folder, manifest.file(CONFIG)))
        recipe = validate(Recipe, settings["recipe"], f"{folder.uri}/{CONFIG}")
        return recipe, task_of(recipe, settings["classes"])


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
    """The digest of a model's tensors, recipe and classes. Raises `UserError` if there is none."""
    if "fingerprint" not in manifest.about:
        raise UserError("a model's manifest without a fingerprint; make the model again")
    return str(manifest.about["fingerprint"])
