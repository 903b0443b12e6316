"""Settings: one pydantic model is a job's flags, its YAML file and its documentation."""

from __future__ import annotations

import importlib
import inspect
import os
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
Encoding = Literal["png", "jpeg"]
"""Of a picture that is written."""
Fusion = Literal["average", "adaptive"]
"""How the rankings of several modalities become one (`imgray.retrieval.fusion`)."""
TRUSTED = "IMGRAY_TRUSTED_MODULES"


class JobConfig(BaseModel):
    """Base of every job's settings. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    runtime: ClassVar[frozenset[str]] = frozenset()
    """Settings that do not change the content of the output, such as the number of workers."""
    uris: ClassVar[frozenset[str]] = frozenset()
    """Settings that name places. What else an output's identity holds by URI is named here too."""

    def identity(self) -> dict[str, Any]:
        """The settings that determine the content of the output."""
        return self.model_dump(mode="json", exclude=set(self.runtime))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Those of them that need not be given: what runs had that know nothing of them yet."""
        fields = cls.model_fields.items()
        return {
            name: field.get_default(call_default_factory=True)
            for name, field in fields
            if name not in cls.runtime and not field.is_required()
        }


Model = typing.TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], values: Any, place: str = "") -> Model:
    """Validate settings; every fault of them is named in one line.

    Settings are flags of a job, or lie in a file that `place` names.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        raise UserError("; ".join(_fault(place, item) for item in faults)) from None


def flag_of(name: str) -> str:
    """The flag of a setting, whose name ends in a line where it is a word of Python."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def _fault(place: str, item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    flag = f"{place}: {name}" if place else flag_of(name)
    help_ = "" if place else " (see --help)"
    if item["type"] == "missing":
        return f"{flag} is required{help_}"
    if item["type"] == "extra_forbidden":
        return f"{place + ': ' if place else ''}unknown setting {name!r}{help_}"
    text = item["msg"].removeprefix("Value error, ")
    return f"{flag}: {text}" if name else f"{place}: {text}".removeprefix(": ")


def class_named(name: str, base: type[Any], what: str) -> Any:
    """The class of a kind that settings name as `package.module:Class`.

    To import a module is to run its code, and settings may come with a stranger's artifact. So only
    modules of imgray are imported, and those that the environment variable IMGRAY_TRUSTED_MODULES
    names, or whose package it names: several with commas, such as `mytasks,lab.vision`. Every
    process that opens the artifact needs it; workers of a private cluster inherit it.

    Raises:
        UserError: a module that is not trusted, which is then not imported; no such class; or one
            that is not of this kind.
    """
    module, _, attribute = name.partition(":")
    if not (attribute and all(module.split("."))):
        raise UserError(f"{what} {name!r}: expected package.module:Class")
    _refuse_untrusted(module, f"{what} {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what} {name!r}: {error}; expected package.module:Class") from None
    if not (isinstance(found, type) and issubclass(found, base)) or inspect.isabstract(found):
        raise UserError(f"{what} {name!r}: not a {what}")
    _refuse_untrusted(found.__module__, f"{what} {name!r}")
    return found


def _refuse_untrusted(module: str, place: str) -> None:
    named = [name.strip() for name in os.environ.get(TRUSTED, "").split(",")]
    trusted = [name for name in named if name]
    if not any(f"{module}.".startswith(f"{name}.") for name in ("imgray", *trusted)):
        names = ",".join([*trusted, module.partition(".")[0]])
        raise UserError(
            f"{place}: module {module} is not trusted, and using it would run its code; "
            f"if you trust its author, set {TRUSTED}={names} in the environment of all processes"
        )


def read_yaml(path: Path, flag: str) -> dict[str, Any]:
    """The settings in a YAML file that a flag names. Raises `UserError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror or error}") from None
    values = parse_yaml(data, f"{flag} {path}") or {}
    if not isinstance(values, dict):
        raise UserError(f"{flag} {path}: expected `setting: value` lines")
    return values


def parse_yaml(text: str | bytes, place: str) -> Any:
    """The value of a YAML text; `place` says where it stands. Raises `UserError`."""
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"{place}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter for such as the 13th month
        raise UserError(f"{place}: not YAML: {' '.join(str(error).split())}") from None
