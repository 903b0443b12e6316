"""Tables of examples: a Parquet or CSV file whose columns hold what a task takes.

A column that bears an input's name holds it; `id`, `group`, `split` and `class` mean the row's own
id, the rows that belong together, the part of the data set, and the name of the label.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from imgray.artifacts.folder import Folder, located
from imgray.data.cells import Cells, Spread, cells_of, is_text, plain, spread
from imgray.data.fields import Input, KeyPoints, Vector
from imgray.data.joins import Columns, Join
from imgray.data.layout import OWN, Layout
from imgray.data.names import Names
from imgray.data.pixels import Rejected
from imgray.data.rowgroups import open_groups
from imgray.errors import UserError, brief

WINDOW = 256 * 2**20
"""Bytes of rows among which the order of an epoch is free."""
HELD = 2 * WINDOW
"""Bytes of row groups that a table holds in memory: of the window that ends and the next one."""
LARGEST = 2**30
"""Bytes of a row group that is still read, with another one held beside it."""
LONGEST_COLUMN = 2**31 - 1
"""Bytes of a column that is held whole: as far as the offsets of Arrow's texts reach."""

Row = dict[str, Any]
"""`id` and the values of the fields by name; an optional one that is absent is left out."""


class Table:
    """A table, of which only the columns and the row groups that are wanted are read.

    May be used by several threads, and be sent to another process, which opens it itself.

    Args:
        folder: where it lies.
        name: of the file in it, `.parquet` or `.csv`.
        fields: what is read of its rows, by name.
        layout: in which columns that is.
        features: by field the features artifact that holds it instead, as `Join` takes it. The
            field's own column, or else `id`, then holds the id there.

    Raises:
        UserError: no such file or not a table, no such column, or one of another type.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        fields: Mapping[str, Input],
        layout: Layout | None = None,
        features: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.name, self.fields = folder, name, fields
        self.layout, self.features = layout or Layout(), features or {}
        self.file = open_groups(folder, name)
        self.place = self.file.place
        self._check_names()
        self.joins = dict(self._joins())
        self.cells = dict(self._cells())
        self.columns = list(dict.fromkeys(self._columns()))
        self.file.check_columns(self.columns)
        self.firsts = np.concatenate([[0], np.cumsum(self.file.counts)])
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        self._keyed: dict[str, Names] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.name, self.fields, self.layout, self.features)

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
        found = self.texts("id")
        if found is None:
            return Names(pa.array(np.arange(len(self))).cast(pa.string()))
        _refuse_twice(found, self.place, self.column("id"))
        return Names(found)

    @cached_property
    def groups(self) -> Names | None:
        """For every row the name of its group; None where there is no such column."""
        found = self.texts("group")
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
        table, place = self._located(number)
        id = plain(table.column(self.column("id"))[place]) if self.has("id") else number
        values = {name: cells.value(table, place) for name, cells in self.cells.items()}
        values |= {name: join.value(number) for name, join in self.joins.items()}
        return {"id": str(id)} | {k: v for k, v in values.items() if v is not None}

    def values(self, name: str, numbers: NDArray[np.int64]) -> Iterator[Any]:
        """The values of one of `cells` in rows in rising order; no other columns are read.

        Raises `UserError`.
        """
        cells = self.cells[name]
        for group, own in self._by_group(numbers):
            table = self._read(group, cells.columns)
            for number in own.tolist():
                try:
                    yield cells.value(table, int(number - self.firsts[group]))
                except Rejected as error:
                    raise UserError(f"{self.place}: row {number}, {error}") from None

    def group(self, number: int) -> str | None:
        """The name of a row's group; None where it has none. Raises `UserError`."""
        if not self.has("group"):
            return None
        table, place = self._located(number)
        try:
            found = plain(table.column(self.column("group"))[place])
        except Rejected as error:
            column = self.column("group")
            raise UserError(f"{self.place}: row {number}, column {column!r}: {error}") from None
        return None if found is None else str(found)

    def check(self, numbers: NDArray[np.int64]) -> None:
        """Refuse what `rows` would of rows in rising order, but do not open pictures or files.

        Raises `UserError`.
        """
        lacking = {name: self.file.nulls(cells.columns[0]) for name, cells in self.cells.items()}
        for group, own in self._by_group(numbers):
            looked = [c for name, c in self.cells.items() if c.cheap or lacking[name][group]]
            self._check_group(group, own, looked)
        for join in self.joins.values():
            join.check(numbers)

    def groups_of(self, numbers: Any) -> NDArray[np.int64]:
        """The row groups of rows."""
        return np.asarray(np.searchsorted(self.firsts, numbers, side="right") - 1)

    def column(self, name: str) -> str:
        """The column of an input or one of `OWN`."""
        return self.layout.columns.get(name, name)

    def has(self, name: str) -> bool:
        """Whether there is a column of an input or one of `OWN`."""
        return self.column(name) in self.file.schema.names

    def texts(self, name: str) -> pa.Array | None:
        """`words`, of which none may lack or be blank. Raises `UserError`."""
        found = self.words(name)
        if found is not None:
            self.refuse_blank(pc.fill_null(found, ""), self.column(name))
        return found

    def refuse_blank(self, texts: pa.Array, column: str) -> None:
        """Raises `UserError` for a blank one among all rows' texts (N,)."""
        row = pc.index(blank(texts), True).as_py()
        if row >= 0:
            raise UserError(f"{self.place}: row {row}, column {column!r}: empty")

    def words(self, name: str) -> pa.Array | None:
        """What one of `OWN` or a key holds (N,), as texts; None where there is no such column.

        Raises:
            UserError: it holds neither texts nor whole numbers.
        """
        if not self.has(name):
            return None
        column = self.column(name)
        found = self.whole(column)
        if not any(holds(found.type) for holds in (is_text, types.is_integer, types.is_null)):
            raise UserError(
                f"{self.place}: column {column!r} holds {found.type}, where texts or whole numbers "
                "are expected"
            )
        return found.cast(pa.string())

    def whole(self, column: str) -> pa.Array:
        """All cells of a column (N,), in memory. Raises `UserError`."""
        self.file.check_columns([column])
        self._refuse_longer(column, int(self.file.sizes([column]).sum()))
        parts = [self._read(group, [column]).column(0) for group in range(len(self.counts))]
        found = pa.chunked_array([chunk for part in parts for chunk in part.chunks])
        if types.is_dictionary(found.type):
            self._refuse_longer(column, _unshared(found))
            found = found.cast(found.type.value_type)
        try:
            found.validate(full=True)
        except pa.ArrowInvalid:
            raise UserError(f"{self.place}: column {column!r}: a text that is not UTF-8") from None
        return found.combine_chunks()

    def _located(self, number: int) -> tuple[pa.Table, int]:
        """The row group that holds a row, and its place there."""
        group = int(self.groups_of(number))
        return self._group(group), int(number - self.firsts[group])

    def _group(self, number: int) -> pa.Table:
        """A row group, of which two are held, and more as far as `HELD` allows."""
        with self._lock:
            if number not in self._held:
                size = self.sizes[number]
                while len(self._held) > 1 and size + self.sizes[[*self._held]].sum() > HELD:
                    self._held.popitem(last=False)
                self._held[number] = self._read(number, self.columns)
            self._held.move_to_end(number)
            return self._held[number]

    def _by_group(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """The row groups that hold rows in rising order, each with those rows."""
        groups = self.groups_of(numbers)
        for group in np.unique(groups):
            start, stop = np.searchsorted(groups, [group, group + 1])
            yield int(group), numbers[start:stop]

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        self._refuse_larger(group, self.sizes[group] if columns == self.columns else 0)
        found = self.file.read(group, columns)
        self._refuse_larger(group, found.nbytes)
        return found

    def _refuse_larger(self, group: int, size: int) -> None:
        if size > LARGEST:
            raise UserError(
                f"{self.place}: row group {group} holds {size / 2**30:.1f} GB, which are read at "
                "once; write the table in groups of about 100 MB"
            )

    def _refuse_longer(self, column: str, size: int) -> None:
        if size > LONGEST_COLUMN:
            raise UserError(
                f"{self.place}: column {column!r} holds {size / 2**30:.1f} GB, where "
                f"{LONGEST_COLUMN / 2**30:.1f} GB are read whole at most"
            )

    def _check_group(self, group: int, numbers: NDArray[np.int64], looked: list[Cells]) -> None:
        columns = list(dict.fromkeys(column for cells in looked for column in cells.columns))
        table = self._read(group, columns) if columns else None
        for number in numbers.tolist() if table else ():
            for cells in looked:
                try:
                    cells.check(table, int(number - self.firsts[group]))
                except Rejected as error:
                    raise UserError(f"{self.place}: row {number}, {error}") from None

    def _check_names(self) -> None:
        known = [*self.fields, *(name for name in OWN if name not in self.fields)]
        for name, column in self.layout.columns.items():
            if name not in known:
                raise UserError(
                    f"--columns {name}={column}: nothing is called {name!r}; "
                    f"there are {', '.join(known)}"
                )
            self.file.check_columns([column])
        for name in self.layout.patterns(self.fields).keys() - self.fields.keys():
            raise UserError(
                f"--pattern {name}=...: no input is called {name!r}; there are "
                f"{', '.join(self.fields)}"
            )

    def _joins(self) -> Iterator[tuple[str, Join]]:
        for name, flag in self.features.items():
            one = self.fields.get(name)
            if not isinstance(one, Vector):
                vectors = [n for n, field in self.fields.items() if isinstance(field, Vector)]
                fault = f"{name!r} is no vector" if one else f"nothing is called {name!r}"
                there = f"vectors are {', '.join(vectors)}" if vectors else "no input is one"
                raise UserError(f"--features {name}={flag}: {fault}; {there}")
            mistaken = self.has(name) and name not in self.layout.columns
            hint = f"; ids are the rows' own, --columns {name}=COLUMN takes them from a column"
            keys = partial(self._keys, name)
            yield name, Join(one, Columns(name, flag), keys, hint if mistaken else "")

    def _keys(self, name: str) -> Names:
        """The ids by which a features artifact is joined."""
        if name not in self._keyed:
            take = self.words if self.fields[name].optional else self.texts
            found = take(name) if name in self.layout.columns else None
            self._keyed[name] = self.ids if found is None else Names(found)
        return self._keyed[name]

    def _cells(self) -> Iterator[tuple[str, Cells]]:
        root = Folder(self.layout.root) if self.layout.root else self.folder
        patterns = self.layout.patterns(self.fields)
        for name, one in self.fields.items():
            if name in self.joins:
                continue
            if self.has(name):
                self.file.check_columns([self.column(name)])
                column = self.file.schema.field(self.column(name))
                if one.optional and types.is_null(column.type):
                    continue
                try:
                    yield name, cells_of(one, column, root, patterns[name])
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
        yield from (self.column(name) for name in ("id", "group") if self.has(name))
        for cells in self.cells.values():
            yield from cells.columns


def blank(texts: pa.Array) -> pa.Array:
    """Which texts have nothing to read; null where there is no text."""
    return pc.equal(pc.utf8_trim_whitespace(texts), "")


def _unshared(texts: pa.ChunkedArray) -> int:
    """Bytes that texts of a dictionary take once each has its own."""
    lengths = ((pc.binary_length(part.dictionary), part.indices) for part in texts.chunks)
    return sum(pc.sum(length.take(places)).as_py() or 0 for length, places in lengths)


def _refuse_twice(ids: pa.Array, place: str, column: str) -> None:
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    seen: dict[str, int] = {}
    for row, id in enumerate(ids.to_pylist()):
        if id in seen:
            raise UserError(
                f"{place}: rows {seen[id]} and {row} have the same {column} '{brief(id)}'; an id "
                "is for one row alone"
            )
        seen[id] = row


def open_table(
    uri: str,
    fields: Mapping[str, Input],
    layout: Layout | None = None,
    features: Mapping[str, str] | None = None,
) -> Table:
    """Open the table at the URI of a `.parquet` or `.csv` file. Raises `UserError`."""
    return Table(*located(uri), fields, layout, features)
