"""Tables of examples: a Parquet or CSV file whose columns hold what a task takes.

A column that bears an input's name holds it; `id`, `group`, `split` and `class` mean the row's own
id, the rows that belong together, the part of the data set, and the name of the label.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from imgray.artifacts.folder import Folder
from imgray.data.cells import Cells, Spread, cells_of, is_text, spread
from imgray.data.fields import Input, KeyPoints
from imgray.data.pixels import Rejected
from imgray.data.rowgroups import open_groups
from imgray.errors import UserError

WINDOW = 256 * 2**20
"""Bytes of rows among which the order of an epoch is free."""
HELD = 2 * WINDOW
"""Bytes of row groups that a table holds in memory: of the window that ends and the next one."""
LARGEST = 2**31
"""Bytes of a row group that is still read."""
OWN = ("id", "group", "split", "class")
"""What columns may hold beside inputs."""

Row = dict[str, Any]
"""`id` and the values of the fields by name; an optional one that is absent is left out."""


@dataclass(frozen=True)
class Layout:
    """How a table is read.

    columns: by input, or one of `OWN`, the column that holds it, where their names differ.
    root: URI of the folder that paths in cells start from, by default the table's own.
    pattern: the path, with {} in the place of the cell's text.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    root: str | None = None
    pattern: str | None = None

    @classmethod
    def parse(cls, columns: Sequence[str], root: str | None, pattern: str | None) -> Layout:
        """From flags. Raises `UserError`."""
        if pattern is not None and "{}" not in pattern:
            raise UserError(f"--pattern {pattern}: expected {{}} where the cell's text belongs")
        return cls(pairs("--columns", columns, "COLUMN"), root, pattern)


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


class Table:
    """A table, of which only the columns and the row groups that are wanted are read.

    May be used by several threads, and be sent to another process, which opens it itself.

    Args:
        folder: where it lies.
        name: of the file in it, `.parquet` or `.csv`.
        fields: what is read of its rows, by name.
        layout: in which columns that is.

    Raises:
        UserError: no such file or not a table, no such column, or one of another type.
    """

    def __init__(
        self, folder: Folder, name: str, fields: Mapping[str, Input], layout: Layout | None = None
    ) -> None:
        self.folder, self.name, self.fields = folder, name, fields
        self.layout = layout or Layout()
        self.file = open_groups(folder, name)
        self.place = self.file.place
        self._check_names()
        self.cells = dict(self._cells())
        self.columns = list(dict.fromkeys(self._columns()))
        self.file.check_columns(self.columns)
        self.firsts = np.concatenate([[0], np.cumsum(self.file.counts)])
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.name, self.fields, self.layout)

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each row group (G,)."""
        return self.file.counts

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each row group in memory (G,), of the columns that are read."""
        return self.file.sizes(self.columns)

    @cached_property
    def ids(self) -> Names:
        """The ids of all rows: by default their numbers. Raises `UserError` where two are equal."""
        found = self._texts("id")
        if found is None:
            return Names(pa.array(np.arange(len(self))).cast(pa.string()))
        _refuse_twice(found, self.place, self.column("id"))
        return Names(found)

    @cached_property
    def groups(self) -> Names | None:
        """For every row the name of its group; None where there is no such column."""
        found = self._texts("group")
        return None if found is None else Names(found)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """Some rows, in the order of their numbers.

        Raises:
            UserError: what is wrong with a row, or a file that cannot be read.
        """
        found = []
        for number in numbers:
            try:
                found.append(self.row(number))
            except Rejected as error:
                raise UserError(f"{self.place}: row {number}, {error}") from None
        return found

    def row(self, number: int) -> Row:
        """One row.

        Raises:
            Rejected: a value is missing or not what its field takes; the message names the column.
            UserError: the table or a place beside it cannot be read.
        """
        group = int(np.searchsorted(self.firsts, number, side="right")) - 1
        table, place = self._group(group), int(number - self.firsts[group])
        id = table.column(self.column("id"))[place].as_py() if self.has("id") else number
        values = {name: cells.value(table, place) for name, cells in self.cells.items()}
        return {"id": str(id)} | {k: v for k, v in values.items() if v is not None}

    def column(self, name: str) -> str:
        """The column of an input or one of `OWN`."""
        return self.layout.columns.get(name, name)

    def has(self, name: str) -> bool:
        """Whether there is a column of an input or one of `OWN`."""
        return self.column(name) in self.file.schema.names

    def _group(self, number: int) -> pa.Table:
        """A row group, of which as many are held as `HELD` allows."""
        with self._lock:
            if number not in self._held:
                size = int(self.sizes[number])
                if size > LARGEST:
                    raise UserError(
                        f"{self.place}: row group {number} holds {size / 2**30:.1f} GB, which are "
                        "read at once; write the table in groups of about 100 MB"
                    )
                while self._held and size + sum(self.sizes[g] for g in self._held) > HELD:
                    self._held.popitem(last=False)
                self._held[number] = self.file.read(number, self.columns)
            self._held.move_to_end(number)
            return self._held[number]

    def _check_names(self) -> None:
        known = [*self.fields, *(name for name in OWN if name not in self.fields)]
        for name, column in self.layout.columns.items():
            if name not in known:
                raise UserError(
                    f"--columns {name}={column}: nothing is called {name!r}; "
                    f"there are {', '.join(known)}"
                )
            self.file.check_columns([column])

    def _cells(self) -> Iterator[tuple[str, Cells]]:
        root = Folder(self.layout.root) if self.layout.root else self.folder
        pattern = self.layout.pattern or "{}"
        for name, one in self.fields.items():
            if self.has(name):
                column = self.file.schema.field(self.column(name))
                try:
                    yield name, cells_of(one, column, root, pattern)
                except UserError as error:
                    raise UserError(f"{self.place}: {error}") from None
            elif isinstance(one, KeyPoints) and {*spread(one)} <= {*self.file.schema.names}:
                yield name, Spread(one)
            elif not one.optional:
                raise UserError(
                    f"{self.place}: no column {name!r}; it has "
                    f"{', '.join(self.file.schema.names)}; say --columns {name}=COLUMN"
                )

    def _columns(self) -> Iterator[str]:
        if self.has("id"):
            yield self.column("id")
        for cells in self.cells.values():
            yield from cells.columns

    def _texts(self, name: str) -> pa.Array | None:
        """A column of `OWN` as texts (N,), none of them blank; None where there is no such one."""
        if not self.has(name):
            return None
        column = self.column(name)
        kind = self.file.schema.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_integer(kind) or is_text(kind)):
            raise UserError(
                f"{self.place}: column {column!r} holds {kind}, where texts or whole numbers are "
                "expected"
            )
        parts = [self.file.read(g, [column]).column(0) for g in range(len(self.counts))]
        found = pa.concat_arrays(
            [chunk.cast(pa.string()) for part in parts for chunk in part.chunks]
        )
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(found), ""), True)
        if pc.any(blank).as_py():
            row = pc.index(blank, True).as_py()
            raise UserError(f"{self.place}: row {row}, column {column!r}: empty")
        return found


class Names(Sequence[str]):
    """Texts in one array of Arrow, which takes a tenth of a list's memory."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return self.array[place].to_pylist()
        return self.array[int(place)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self.array[start : start + 4096].to_pylist()


def _refuse_twice(ids: pa.Array, place: str, column: str) -> None:
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    seen: dict[str, int] = {}
    for row, id in enumerate(ids.to_pylist()):
        if id in seen:
            raise UserError(
                f"{place}: rows {seen[id]} and {row} have the same {column} {id!r}; an id is "
                "for one row alone"
            )
        seen[id] = row


def open_table(uri: str, fields: Mapping[str, Input], layout: Layout | None = None) -> Table:
    """Open the table at the URI of a `.parquet` or `.csv` file. Raises `UserError`."""
    folder, slash, name = uri.rpartition("/")
    return Table(Folder(folder + slash if slash else "."), name, fields, layout)
