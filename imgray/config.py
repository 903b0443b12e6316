"""Settings of a job: one pydantic model is its flags, its YAML file and its documentation."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from imgray.errors import TooManyRejected, UserError, cause_of


class JobConfig(BaseModel):
    """Base of every job's settings. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    runtime: ClassVar[frozenset[str]] = frozenset()
    """Settings that do not change the content of the output, such as the number of workers."""

    def identity(self) -> dict[str, Any]:
        """The settings that determine the content of the output."""
        return self.model_dump(mode="json", exclude=set(self.runtime))


Config = typing.TypeVar("Config", bound=JobConfig)


def run_job(
    model: type[Config],
    work: Callable[[Config], BaseModel],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, do the work, print its result.

    Exit codes: 0 done; 2 bad input or settings; 3 more rejected than allowed; 130 interrupted.
    The result goes to standard output, with `--json` as one object; all else to standard error.
    """
    try:
        config, as_json = parse(model, argv)
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints news of its workers there
            result = work(config)
    except KeyboardInterrupt:
        print("interrupted: nothing half-done is visible; run it again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr)
        return 3 if isinstance(cause, TooManyRejected) else 2
    print(json.dumps(result.model_dump(mode="json")) if as_json else str(result))
    return 0


def parse(model: type[Config], argv: Sequence[str] | None = None) -> tuple[Config, bool]:
    """Turn a command line, and the YAML file that it names, into settings; flags win over the file.

    Returns the settings and whether `--json` was given.
    """
    arguments = vars(_parser(model).parse_args(argv))
    as_json = arguments.pop("json")
    path = arguments.pop("config", None)
    return validate(model, {**(_read_yaml(Path(path)) if path else {}), **arguments}), as_json


def validate(model: type[Config], values: dict[str, Any]) -> Config:
    """Validate settings; every fault of them is named in one line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_fault(item) for item in error.errors())) from None


def _fault(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"]).replace("_", "-")
    if item["type"] == "missing":
        return f"--{name} is required (see --help)"
    if item["type"] == "extra_forbidden":
        return f"unknown setting {name!r} (see --help for those that exist)"
    prefix = f"--{name}: " if name else ""
    return prefix + item["msg"].removeprefix("Value error, ")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected `setting: value` lines")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _parser(model: type[JobConfig]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(model.__doc__ or "").strip(),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, field in model.model_fields.items():
        _add_flag(parser, name, field)
    parser.add_argument("--config", metavar="YAML", help="file with these same settings; flags win")
    parser.add_argument(
        "--json", action="store_true", default=False, help="print the result as one JSON object"
    )
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    options: dict[str, Any] = {"help": _help(field), "dest": name}
    kind = _without_none(field.annotation)
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) in (list, tuple):
        options |= {"nargs": "+", "metavar": _metavar(name, field)}
    elif typing.get_origin(kind) is typing.Literal:
        options["choices"] = typing.get_args(kind)
    else:
        options["metavar"] = _metavar(name, field)
    if (field.json_schema_extra or {}).get("positional"):  # type: ignore[union-attr]
        shown = "{" + ",".join(typing.get_args(kind)) + "}"
        parser.add_argument(name, nargs="?", metavar=shown, help=options["help"])
        return
    parser.add_argument("--" + name.replace("_", "-"), **options)


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.is_required():
        text += " (required)"
    elif field.default not in (None, False, []) and not field.default_factory:
        text += f" (default: {_shown(field.default)})"
    return text.replace("%", "%%")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _metavar(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["metavar"]) if isinstance(extra, dict) and "metavar" in extra else name.upper()


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0]
    return annotation
