"""The classes of records: from numbers with names beside them, or from the names alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from imgray.data.cells import is_text
from imgray.data.tables import Table, blank
from imgray.errors import UserError

MOST_CLASSES = 100_000
"""Classes of a table of few rows; of one with more than a tenth as many, ten times its rows."""


def read_labels(table: Table, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """The names of the classes in the order of their labels, and every row's label (N,).

    The label of a row that has none is -1. Without numbers, classes are in the order of their
    names. The numbers of a CSV file are numbers.

    Raises:
        UserError: a blank name, a number below 0 or far above that of the rows, one with two names
            in the column `class`.
    """
    column = table.column(name)
    cells = table.whole(column)
    place = f"{table.place}: column {column!r}"
    if is_text(cells.type):
        numbers = None if table.file.typed else _numbers(cells)
        if numbers is None:
            table.refuse_blank(cells, column)
            return _by_name(cells)
        cells = numbers
    labels = _by_number(cells, place)
    return _names(table, labels, int(labels.max()) + 1), labels


def labels_of(texts: pa.Array, place: str) -> tuple[list[str], NDArray[np.int64]]:
    """As `read_labels`, from the texts of a CSV file or the like, not blank. Raises `UserError`."""
    numbers = _numbers(texts)
    if numbers is None:
        return _by_name(texts)
    labels = _by_number(numbers, place)
    return [str(label) for label in range(int(labels.max()) + 1)], labels


def _by_number(cells: pa.Array, place: str) -> NDArray[np.int64]:
    most = max(MOST_CLASSES, 10 * len(cells))
    for number in pc.min_max(cells).as_py().values():
        if number is not None and not 0 <= number < most:
            raise UserError(
                f"{place} holds {number}, where whole numbers from 0 to {most - 1:,} are expected"
            )
    return np.asarray(pc.fill_null(cells.cast(pa.int64()), -1))


def _numbers(cells: pa.Array) -> pa.Array | None:
    """Texts as numbers, if they all are decimal ones: Arrow would take `0x10` for 16."""
    if not pc.all(pc.match_substring_regex(cells, "^-?[0-9]+$")).as_py():
        return None
    try:
        return cells.cast(pa.int64())
    except pa.ArrowInvalid:
        return None


def _by_name(cells: pa.Array) -> tuple[list[str], NDArray[np.int64]]:
    classes = sorted(pc.unique(cells.drop_null()).to_pylist())
    places = pc.index_in(cells, value_set=pa.array(classes, cells.type), skip_nulls=True)
    return classes, np.asarray(pc.fill_null(places, -1), np.int64)


def _names(table: Table, labels: NDArray[np.int64], count: int) -> list[str]:
    words = table.words("class")
    if words is None:
        return [str(label) for label in range(count)]
    named = pa.table({"label": labels, "name": words}).filter(pc.invert(blank(words)))
    rows = named.group_by(["label", "name"]).aggregate([]).filter(pc.field("label") >= 0)
    names = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    if len(names) != len(rows):
        raise UserError(f"{table.place}: a label has two names in column {table.column('class')!r}")
    return [str(names.get(label, label)) for label in range(count)]
