"""From a command line to a job: flags from its settings, one line for an error, the exit code.

Loads little until the command is known, so that help and wrong flags are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from imgray import __version__
from imgray.errors import LINE, TooManyRejected, UserError, brief, cause_of, suggestion

if typing.TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from imgray.config import JobConfig

Config = typing.TypeVar("Config", bound="JobConfig")


def never(_config: Any) -> bool:
    """No settings ask for it."""
    return False


def always(_config: Any) -> bool:
    """Whatever the settings are."""
    return True


@dataclass(frozen=True)
class Command:
    """A command of the program: what it is made of is loaded when it runs.

    Attributes:
        settings: class of its settings, as `package.module:Class`; its docstring is the summary.
        work: what it does with them, as `package.module:function`; gives the result.
        faiss: whether settings ask for FAISS, which is then looked for before anything starts.
        listing: what `--list` prints, as `package.module:function`.
        synonyms: other names, which help does not show.
    """

    settings: str
    work: str
    faiss: Callable[[Any], bool] = never
    listing: str | None = None
    synonyms: tuple[str, ...] = ()


def run_command(commands: Mapping[str, Command], words: Sequence[str]) -> int:
    """Run the command that a command line names: its exit code, as of `run_job`.

    Raises:
        SystemExit: help or the version was asked for, or the line is wrong.
    """
    with ending_at_once():
        name, flags = _named(commands, words)
        command = commands[name]
        settings = load(command.settings)
        listing = load(command.listing) if command.listing else None

    def work(config: Any) -> BaseModel:
        with ending_at_once():
            if command.faiss(config):
                load("imgray.retrieval.backend:check_installed")()
            function = load(command.work)
        result: BaseModel = function(config)
        return result

    return run_job(settings, work, flags, f"imgray {name}", listing)


def _named(commands: Mapping[str, Command], words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that the first words name, and the words after them."""
    names = {name: name for name in commands}
    names |= {other: name for name, command in commands.items() for other in command.synonyms}
    for count in (1, 2):
        if found := names.get(" ".join(words[:count])):
            return found, list(words[count:])
    first = words[0] if words else ""
    if first == "--version":
        _show(f"imgray {__version__}")
        raise SystemExit(0)
    group = f"{first} " if any(name.startswith(f"{first} ") for name in names) else ""
    asked = list(words[1:2] if group else words[:1])
    if asked in (["-h"], ["--help"]):
        _show(_overview(commands, group))
        raise SystemExit(0)
    wrong = _unknown(group, words, list(commands)) if asked else _overview(commands, group)
    print(wrong, file=sys.stderr)
    raise SystemExit(2)


def _overview(commands: Mapping[str, Command], group: str) -> str:
    """The commands, or those of a group, with a line each."""
    summaries = {
        name: (load(command.settings).__doc__ or "").strip().splitlines()[0]
        for name, command in commands.items()
        if name.startswith(group)
    }
    width = max(map(len, summaries))
    return "\n".join(
        [
            f"usage: imgray {group}COMMAND ...",
            "",
            *(f"  {name:{width}}  {text}" for name, text in summaries.items()),
            "",
            f"imgray {group}COMMAND --help explains the flags of one",
        ]
    )


def _unknown(group: str, words: Sequence[str], names: list[str]) -> str:
    two, one = " ".join(words[:2]), words[0]
    hint = suggestion(two, names) or suggestion(one, names)
    asked = two if group else one
    return f"error: no command {asked!r}: {hint}imgray --help lists them"


def load(name: str) -> Any:
    """What a command names as `package.module:name`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Within the block Ctrl-C ends the process: nothing is at work yet, only modules are loaded.

    An exception would come up anywhere in them, and some catch it or print it.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_signal: int, _frame: types.FrameType | None) -> None:
    os.write(2, b"interrupted: nothing had begun\n")
    os._exit(130)


def _show(text: str) -> None:
    """Print a line or several; that nobody reads on, as after `head`, is no error.

    Raises `SystemExit` where they cannot be written, as on a full disk.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"error: cannot write the result: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def leave(code: int) -> NoReturn:
    """End the process. Its work is done: Ray's native threads may abort while Python unloads."""
    for stream in (sys.stdout, sys.stderr):
        if stream:  # None where it was closed from the start
            with contextlib.suppress(OSError):
                stream.flush()
    os._exit(code)


def run_job(
    model: type[Config],
    work: Callable[[Config], BaseModel],
    argv: Sequence[str] | None = None,
    program: str | None = None,
    listing: Callable[[], str] | None = None,
) -> int:
    """Parse the command line, do the work, print its result.

    Exit codes: 0 done; 2 bad input or settings; 3 more rejected than allowed; 130 interrupted; or
    the `exit_code` of the result, if it has one.
    The result goes to standard output, with `--json` as one object; all else to standard error.
    """
    try:
        config, as_json = parse(model, argv, program, listing)
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints news of its workers there
            result = work(config)
        _show(json.dumps(result.model_dump(mode="json")) if as_json else str(result))
    except KeyboardInterrupt:
        print("interrupted: nothing half-done is visible; run it again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        print(f"error: {brief(str(cause), LINE)}", file=sys.stderr)
        return 3 if isinstance(cause, TooManyRejected) else 2
    return int(getattr(result, "exit_code", 0))


def parse(
    model: type[Config],
    argv: Sequence[str] | None = None,
    program: str | None = None,
    listing: Callable[[], str] | None = None,
) -> tuple[Config, bool]:
    """Turn a command line, and the YAML file that it names, into settings; flags win over the file.

    `--list` prints what `listing` gives. Returns the settings and whether `--json` was given.
    """
    from imgray.config import validate  # pydantic takes a moment to load

    parser = _parser(model, program)
    if listing:
        text = "print what there is to choose from, and end"
        parser.add_argument("--list", action=_Print, nargs=0, const=listing, help=text)
    arguments = vars(parser.parse_args(argv))
    as_json = arguments.pop("json")
    path = arguments.pop("config", None)
    return validate(model, {**(_filed(model, path) if path else {}), **arguments}), as_json


def _filed(model: type[JobConfig], path: str) -> dict[str, Any]:
    """The settings in a YAML file, by name; one that the model lacks is refused here."""
    from imgray.config import read_yaml

    values = {_setting(model, k): v for k, v in read_yaml(Path(path), "--config").items()}
    for name in values.keys() - model.model_fields.keys():
        raise UserError(f"--config {path}: unknown setting {name!r} (see --help)")
    return values


def _setting(model: type[JobConfig], key: Any) -> str:
    """The setting that a key of a YAML file means: those that are words of Python end in a line."""
    name = str(key).replace("-", "_")
    return f"{name}_" if f"{name}_" in model.model_fields else name


class _Print(argparse.Action):
    """Prints what its constant gives, and ends, as `--help` does."""

    def __call__(self, *_: Any) -> NoReturn:
        _show(self.const())
        raise SystemExit(0)


def _parser(model: type[JobConfig], program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=(model.__doc__ or "").strip(),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fields = sorted(model.model_fields.items(), key=lambda item: not item[1].is_required())
    for name, field in fields:
        _add_flag(parser, name, field)
    parser.add_argument("--config", metavar="YAML", help="file with these same settings; flags win")
    parser.add_argument(
        "--json", action="store_true", default=False, help="print the result as one JSON object"
    )
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    from imgray.config import flag_of

    options: dict[str, Any] = {"help": _help(field), "dest": name}
    kind = _without_none(field.annotation)
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("positional"):
        parser.add_argument(name, nargs="*", metavar=_metavar(name, field), help=_help(field))
        return
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) in (list, tuple):
        options |= {"nargs": "+", "metavar": _metavar(name, field)}
    elif typing.get_origin(kind) is typing.Literal:
        options["choices"] = typing.get_args(kind)
    else:
        options["metavar"] = _metavar(name, field)
    parser.add_argument(flag_of(name), **options)


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
