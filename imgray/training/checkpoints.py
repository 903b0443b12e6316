"""The state of a training run as a file: tensors as safetensors, all else as JSON; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import sha256
from imgray.errors import UserError
from imgray.features.backbones import misfits

KEPT = 2


def pack(state: Any) -> bytes:
    """Encode nested dictionaries, lists, tuples, tensors, numbers, strings, booleans and None."""
    tensors: dict[str, Tensor] = {}
    outline = _outline(state, tensors)
    return save_safetensors(tensors, {"outline": json.dumps(outline)})


def unpack(data: bytes) -> Any:
    """The inverse of `pack`; tensors come back on the CPU. Raises `ValueError` for other bytes."""
    try:
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return _filled(json.loads(header["__metadata__"]["outline"]), tensors)
    except Exception as error:
        raise ValueError(f"not a checkpoint: {error}") from None


def _outline(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Lists for everything that JSON lacks: a dictionary may have numbers as keys."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()
        return ["tensor", key]
    if isinstance(value, dict):
        return ["dict", [[key, _outline(one, tensors)] for key, one in value.items()]]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [_outline(one, tensors) for one in value]]
    if value is None or isinstance(value, bool | int | float | str):
        return ["value", value]
    raise TypeError(f"a checkpoint holds no {type(value).__name__}")


def _filled(outline: Any, tensors: dict[str, Tensor]) -> Any:
    kind, value = outline
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _filled(one, tensors) for key, one in value}
    if kind == "value":
        return value
    items = [_filled(one, tensors) for one in value]
    return tuple(items) if kind == "tuple" else items


class Checkpoint(NamedTuple):
    """Steps done, the state after them, and the file that holds it."""

    step: int
    state: Any
    name: str


class Keeper:
    """Checkpoints of one run in a folder, the newest ones kept, each visible whole or not at all.

    They are written straight to where the artifact grows: Ray Train's own `report` may lose the
    last one when a worker dies within two seconds of it. A file's name holds the digest of its
    content, and one that is damaged does not count.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def save(self, step: int, state: Any) -> None:
        """Write the state after a number of steps, and remove older ones."""
        data = pack(state)
        self.folder.write(f"step-{step:010d}-{sha256(data)}.safetensors", data)
        for name in self._names()[:-KEPT]:
            self.folder.remove(name)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none."""
        return next(filter(None, map(self._read, reversed(self._names()))), None)

    def load(self, name: str) -> Checkpoint:
        """The checkpoint of a file. Raises `UserError` where it is damaged."""
        if found := self._read(name):
            return found
        raise UserError(f"{self.folder.uri}/{name}: damaged, though another worker could read it")

    def _read(self, name: str) -> Checkpoint | None:
        data = self.folder.read(name)
        _, step, digest = name.removesuffix(".safetensors").split("-")
        return Checkpoint(int(step), unpack(data), name) if sha256(data) == digest else None

    def _names(self) -> list[str]:
        names = self.folder.sizes()
        return sorted(n for n in names if n.startswith("step-") and n.endswith(".safetensors"))


def load_state(module: torch.nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load tensors into a module. Raises `UserError` naming the first that does not fit."""
    if wrong := misfits(module, state):
        name, own, given = wrong[0]
        raise UserError(
            f"{what}: {len(wrong)} tensors do not fit this model, the first is {name} "
            f"({given} there, {own} here): it is of another recipe"
        )
    module.load_state_dict(state)


def check_finite(states: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
    """Refuse networks, trained for some steps, that hold NaN or infinity: a loss may hide it.

    Args:
        states: by network its tensors by name.
        step: how many steps have made them.

    Raises:
        UserError: the first tensor that is not finite, by network and name.
    """
    for net, tensors in states.items():
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"network {net}: {name} is not finite at step {step:,}: training diverged; "
                    "lower the learning rate (--set settings.rate=...) or look at the data of "
                    "these steps, and train anew with --overwrite"
                )
