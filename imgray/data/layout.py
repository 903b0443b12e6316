"""Which columns of a table hold what, and where the files lie that its cells name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from imgray.errors import UserError

OWN = ("id", "group", "split", "class")
"""What columns may hold beside inputs."""
Stored = Literal["files", "tar", "table"]
"""How a collection may be stored."""
HOW = ("stored", "ids")
"""How a collection is stored, where its URI does not say it: part of an identity where given."""


@dataclass(frozen=True)
class Layout:
    """How a table is read.

    columns: by input, or one of `OWN`, the column that holds it, where their names differ.
    root: URI of the folder that paths in cells start from, by default the table's own.
    pattern: the path, with {} in the place of the cell's text; of all inputs, or by input.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    root: str | None = None
    pattern: str | Mapping[str, str] | None = None

    @classmethod
    def parse(cls, columns: Sequence[str], root: str | None, patterns: Sequence[str]) -> Layout:
        """From flags. Raises `UserError`."""
        for one in patterns:
            if "{}" not in one:
                raise UserError(f"--pattern {one}: expected {{}} where the cell's text belongs")
        several = pairs("--pattern", patterns, "PATTERN") if len(patterns) > 1 else None
        one_for_all = patterns[0] if patterns else None
        return cls(pairs("--columns", columns, "COLUMN"), root, several or one_for_all)

    def patterns(self, inputs: Collection[str]) -> Mapping[str, str]:
        """The pattern of each of some inputs; that of one input alone begins with `INPUT=`."""
        if self.pattern is None or isinstance(self.pattern, Mapping):
            return dict.fromkeys(inputs, "{}") | dict(self.pattern or {})
        name, _, own = self.pattern.partition("=")
        if name in inputs:
            return dict.fromkeys(inputs, "{}") | {name: own}
        return dict.fromkeys(inputs, self.pattern)


def pairs(flag: str, given: Sequence[str], what: str) -> dict[str, str]:
    """The values of a flag that takes NAME=VALUE. Raises `UserError`."""
    found: dict[str, str] = {}
    for item in given:
        name, _, value = item.partition("=")
        if not (name and value):
            raise UserError(f"{flag} {item}: expected NAME={what}")
        if name in found:
            raise UserError(f"{flag} {item}: {name} is given twice")
        found[name] = value
    return found


def place_of(flag: str) -> str:
    """The URI of the features artifact that a flag names, without `#COLUMN`."""
    return flag.partition("#")[0]


def numbers(flag: str, given: Sequence[str], what: str) -> dict[str, float]:
    """The values of a flag that takes NAME=NUMBER. Raises `UserError`."""
    found = {}
    for name, value in pairs(flag, given, what).items():
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"{flag} {name}={value}: expected a number") from None
    return found
