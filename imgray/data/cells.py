"""From the cells of a table to the values of a field: which columns they take, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from imgray.artifacts.folder import Folder
from imgray.data.fields import Input, KeyPoints
from imgray.data.pixels import MAX_BYTES, Rejected
from imgray.errors import Missing, UserError, brief

AXES = ("x", "y", "visibility")
"""Of a key point NAME the columns NAME_x, NAME_y and NAME_visibility, where each has its own."""


class Cells(ABC):
    """Where the values of a field come from.

    Attributes:
        columns: what is read of a row.
        cheap: whether to read them all is: no pictures are in them.
    """

    cheap: bool = True

    def __init__(self, field: Input, columns: tuple[str, ...]) -> None:
        self.field, self.columns = field, columns

    def value(self, table: pa.Table, row: int) -> Any:
        """The value in a row of some of the table's rows; None where an optional one is absent.

        Raises:
            Rejected: it is missing or not what the field takes; the message names the column.
            UserError: the place of a file cannot be reached.
        """
        return self._checked(table, row, self._value)

    def check(self, table: pa.Table, row: int) -> None:
        """Refuse a cell that `value` would, as far as its row alone shows. Raises `Rejected`."""
        self._checked(table, row, self._look)

    @abstractmethod
    def _given(self, table: pa.Table, row: int) -> Any:
        """What the cells hold; None where they are empty."""

    def _value(self, given: Any) -> Any:
        return self.field.value(given)

    def _look(self, given: Any) -> Any:
        return self._value(given)

    def _checked(self, table: pa.Table, row: int, take: Callable[[Any], Any]) -> Any:
        try:
            given = self._given(table, row)
            if given is not None:
                return take(given)
            if self.field.optional:
                return None
            raise Rejected("missing")
        except Rejected as error:
            raise Rejected(f"column {self.columns[0]!r}: {error}") from None


class Plain(Cells):
    """The cell of one column is the value."""

    def __init__(self, field: Input, column: str, cheap: bool) -> None:
        super().__init__(field, (column,))
        self.cheap = cheap

    def _given(self, table: pa.Table, row: int) -> Any:
        return plain(table.column(self.columns[0])[row])


class Files(Cells):
    """The cell names a file below a root.

    A `{bytes, path}`, as Hugging Face writes pictures, holds the bytes themselves where it can.
    """

    def __init__(self, field: Input, column: str, cheap: bool, root: Folder, pattern: str) -> None:
        super().__init__(field, (column,))
        self.cheap, self.root, self.pattern = cheap, root, pattern

    def _given(self, table: pa.Table, row: int) -> Any:
        given = plain(table.column(self.columns[0])[row])
        if isinstance(given, dict):
            given = given.get("path") if given.get("bytes") is None else given["bytes"]
        return None if given == "" else given

    def _value(self, given: Any) -> Any:
        if isinstance(given, bytes):
            return self.field.value(given)
        try:
            return self.field.value(self.root.read(self._path(given), MAX_BYTES + 1))
        except Missing as error:
            raise Rejected(str(error)) from None

    def _look(self, given: Any) -> Any:
        return given if isinstance(given, bytes) else self._path(given)

    def _path(self, cell: str) -> str:
        path = self.pattern.replace("{}", cell)
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or any(s in path for s in ("\\", "\0", "://")):
            raise Rejected(f"path '{brief(path)}' may lead out of the root {self.root.uri}")
        return "/".join(parts)


class Spread(Cells):
    """Key points with three columns of numbers each."""

    field: KeyPoints

    def __init__(self, field: KeyPoints) -> None:
        super().__init__(field, tuple(spread(field)))

    def _given(self, table: pa.Table, row: int) -> Any:
        given = [table.column(column)[row].as_py() for column in self.columns]
        if all(cell is None for cell in given):
            return None
        return np.array([self._number(*pair) for pair in zip(self.columns, given, strict=True)])

    def _number(self, column: str, cell: Any) -> float:
        try:
            return float(cell)
        except (TypeError, ValueError):
            shown = "nothing" if cell is None else f"'{brief(str(cell))}'"
            raise Rejected(f"{shown} in {column!r}, where a number is expected") from None


def spread(field: KeyPoints) -> list[str]:
    """The columns of key points that have columns of their own."""
    return [f"{point}_{axis}" for point in field.skeleton for axis in AXES]


def cells_of(field: Input, column: pa.Field, root: Folder, pattern: str) -> Cells:
    """The cells of one column. Raises `UserError` where its type is not the field's."""
    kind = _unshared(column.type)
    words = is_text(kind)
    holds = {
        "text": words,
        "label": words or types.is_integer(kind),
        "vector": words or _is_list(kind),
        "key points": words or _is_list(kind),
        "boundaries": _is_list(kind),
    }
    if types.is_null(kind):
        raise UserError(f"column {column.name!r}: missing in every row")
    if field.type not in holds:  # a picture
        if words or _is_file(kind):
            return Files(field, column.name, words, root, pattern)
        holds[field.type] = _is_bytes(kind)
    if not holds[field.type]:
        raise UserError(f"column {column.name!r} holds {kind}, where a {field.type} is expected")
    length = kind.list_size if types.is_fixed_size_list(kind) else None
    if field.type == "vector" and length not in (None, field.details()["dim"]):
        raise UserError(
            f"column {column.name!r} holds vectors of {length} numbers, where "
            f"{field.details()['dim']} are expected"
        )
    return Plain(field, column.name, field.type in ("text", "label", "vector", "key points"))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of a type holds texts."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _unshared(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if types.is_dictionary(kind) else kind


def _is_file(kind: pa.DataType) -> bool:
    """Whether it is a struct of Hugging Face: bytes, a path or both."""
    parts = {part.name: _unshared(part.type) for part in kind} if types.is_struct(kind) else {}
    holds = {"bytes": _is_bytes, "path": is_text}
    have = [types.is_null(parts[name]) or holds[name](parts[name]) for name in holds & parts.keys()]
    return bool(have) and all(have)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def plain(scalar: pa.Scalar) -> Any:
    """A cell as Python has it, numbers of a list as one array. Raises `Rejected`."""
    if scalar.is_valid and _is_list(scalar.type) and types.is_primitive(scalar.type.value_type):
        return scalar.values.to_numpy(zero_copy_only=False)
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise Rejected("a text that is not UTF-8") from None
