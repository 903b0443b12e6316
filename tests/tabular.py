"""Tables for tests: written from columns, and read."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imgray.data.fields import Input, Picture, Text, Vector
from imgray.data.layout import Layout
from imgray.data.tables import open_table

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    """A Parquet file of these columns, or a CSV file of their texts."""
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())
    return path


def value(path: Path, name: str, one: Input, **layout: Any) -> Any:
    """What the first row of a table holds of one field."""
    [row] = open_table(str(path), {name: one}, Layout(**layout)).rows([0])
    return row[name]


VALID: dict[str, Any] = {"id": ["a", "b", "c"], "image": [b"1", b"2", b"3"],
                         "text": ["x", "y", "z"], "v": [[1.0, 2.0]] * 3}  # fmt: skip


FIELDS = {"image": Picture(), "text": Text(), "v": Vector(2), "more": Text(optional=True)}
