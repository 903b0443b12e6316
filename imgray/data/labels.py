"""The classes of a table's rows: from numbers with names beside them, or from the names alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from imgray.data.tables import Table
from imgray.errors import UserError


def read_labels(table: Table, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """The names of the classes in the order of their labels, and every row's label (N,).

    The label of a row that has none is -1. Without numbers, classes are in the order of their
    names. The numbers of a CSV file are numbers.

    Raises:
        UserError: numbers below 0 or one with two names in the column `class`.
    """
    column = table.column(name)
    cells = table.whole(column)
    if types.is_string(cells.type):
        numbers = None if table.file.typed else _numbers(cells)
        if numbers is None:
            return _by_name(cells)
        cells = numbers
    labels = np.asarray(pc.fill_null(cells.cast(pa.int64()), -1))
    if (np.asarray(pc.fill_null(cells, 0)) < 0).any():
        raise UserError(f"{table.place}: column {column!r} must hold whole numbers from 0")
    return _names(table, labels, int(labels.max()) + 1), labels


def _numbers(cells: pa.Array) -> pa.Array | None:
    try:
        return cells.cast(pa.int64())
    except pa.ArrowInvalid:
        return None


def _by_name(cells: pa.Array) -> tuple[list[str], NDArray[np.int64]]:
    classes = sorted(pc.unique(cells.drop_null()).to_pylist())
    places = pc.index_in(cells, value_set=pa.array(classes, cells.type), skip_nulls=True)
    return classes, np.asarray(pc.fill_null(places, -1), np.int64)


def _names(table: Table, labels: NDArray[np.int64], count: int) -> list[str]:
    if not table.has("class"):
        return [str(label) for label in range(count)]
    column = table.column("class")
    pairs = pa.table({"label": labels, "name": table.whole(column)}).group_by(["label", "name"])
    rows = pairs.aggregate([]).filter(pc.field("label") >= 0).to_pylist()
    names = {row["label"]: row["name"] for row in rows}
    if len(names) != len(rows):
        raise UserError(f"{table.place}: a label has two names in column {column!r}")
    return [str(names.get(label, label)) for label in range(count)]
