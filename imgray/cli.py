"""From a command line to a job: flags from its settings, one line for an error, the exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imgray.config import JobConfig, read_yaml, validate
from imgray.errors import TooManyRejected, cause_of

Config = typing.TypeVar("Config", bound=JobConfig)


def run_one_of(
    jobs: Mapping[str, tuple[type[Any], Callable[[Any], BaseModel]]],
    argv: Sequence[str] | None = None,
) -> int:
    """`run_job` of the one that the first argument names."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(epilog="JOB --help explains the flags of one job")
    parser.add_argument("job", choices=list(jobs), metavar="{" + ",".join(jobs) + "}")
    name = parser.parse_args(words[:1]).job
    return run_job(*jobs[name], words[1:], f"{parser.prog} {name}")


def leave(code: int) -> NoReturn:
    """End the process. Its work is done: Ray's native threads may abort while Python unloads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_job(
    model: type[Config],
    work: Callable[[Config], BaseModel],
    argv: Sequence[str] | None = None,
    program: str | None = None,
) -> int:
    """Parse the command line, do the work, print its result.

    Exit codes: 0 done; 2 bad input or settings; 3 more rejected than allowed; 130 interrupted.
    The result goes to standard output, with `--json` as one object; all else to standard error.
    """
    try:
        config, as_json = parse(model, argv, program)
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


def parse(
    model: type[Config], argv: Sequence[str] | None = None, program: str | None = None
) -> tuple[Config, bool]:
    """Turn a command line, and the YAML file that it names, into settings; flags win over the file.

    Returns the settings and whether `--json` was given.
    """
    arguments = vars(_parser(model, program).parse_args(argv))
    as_json = arguments.pop("json")
    path = arguments.pop("config", None)
    filed = read_yaml(Path(path), "--config") if path else {}
    filed = {str(key).replace("-", "_"): value for key, value in filed.items()}
    return validate(model, {**filed, **arguments}), as_json


def _parser(model: type[JobConfig], program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
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
