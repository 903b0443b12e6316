"""Settings: one pydantic model is a job's flags, its YAML file and its documentation."""

from __future__ import annotations

import importlib
import typing
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from imgray.errors import UserError

Precision = Literal["float32", "bfloat16"]
"""Of a network's forward passes."""
Code = Literal["SQ8", "SQ4", "SQfp16", "Flat"]
"""How an index stores a region, in FAISS's terms."""


class JobConfig(BaseModel):
    """Base of every job's settings. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    runtime: ClassVar[frozenset[str]] = frozenset()
    """Settings that do not change the content of the output, such as the number of workers."""

    def identity(self) -> dict[str, Any]:
        """The settings that determine the content of the output."""
        return self.model_dump(mode="json", exclude=set(self.runtime))


Model = typing.TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], values: Any, place: str = "") -> Model:
    """Validate settings; every fault of them is named in one line.

    Settings are flags of a job, or lie in a file that `place` names.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_fault(place, item) for item in error.errors())) from None


def _fault(place: str, item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    flag = f"{place}: {name}" if place else f"--{name.replace('_', '-')}"
    help_ = "" if place else " (see --help)"
    if item["type"] == "missing":
        return f"{flag} is required{help_}"
    if item["type"] == "extra_forbidden":
        return f"{place + ': ' if place else ''}unknown setting {name!r}{help_}"
    text = item["msg"].removeprefix("Value error, ")
    return f"{flag}: {text}" if name else f"{place}: {text}".removeprefix(": ")


def class_named(name: str, base: type[Any], what: str) -> Any:
    """The class of a kind that settings name as `package.module:Class`. Raises `UserError`."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what} {name!r}: {error}; expected package.module:Class") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{what} {name!r}: not a {what}")
    return found


def read_yaml(path: Path, flag: str) -> dict[str, Any]:
    """The settings in a YAML file that a flag names. Raises `UserError`."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{flag} {path}: expected `setting: value` lines")
    return values
