"""What is refused of tables, in one line, and why."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tabular import FIELDS, HF, VALID, write

from imgray.data.fields import Input, Label, Picture, Text, Vector
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.data.sources import Source
from imgray.data.tables import open_table
from imgray.errors import UserError


@pytest.mark.parametrize(
    ("one", "column"),
    [
        (Text(), pa.nulls(2)),
        (Picture(), pa.nulls(2)),
        (Vector(2), pa.nulls(2)),
        (Picture(), pa.array([None, ""])),
        (Picture(), pa.array([{"bytes": None, "path": ""}, {"bytes": None, "path": None}], HF)),
    ],
)
def test_a_column_may_be_empty_where_its_input_is_optional(
    tmp_path: Path, one: Input, column: Any
) -> None:
    path = write(tmp_path / "t.parquet", {"id": ["a", "b"], "x": column})
    optional = open_table(str(path), {"x": dataclasses.replace(one, optional=True)})
    assert optional.rows([0, 1]) == [{"id": "a"}, {"id": "b"}]
    optional.check(np.arange(2))
    with pytest.raises(UserError, match="column 'x': missing"):
        open_table(str(path), {"x": one}).check(np.arange(2))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"text": None}, r"no column 'text'; it has id, image, v; say --columns text=COLUMN"),
        ({"text": [1, 2, 3]}, "column 'text' holds int64, where a text is expected"),
        ({"text": ["x", None, "z"]}, "row 1, column 'text': missing"),
        ({"text": ["x", "y", "  "]}, "row 2, column 'text': an empty text"),
        ({"text": ["x" * 2**20, "y", "z"]}, "row 0, column 'text': a text of 1,048,576 char"),
        ({"more": ["x", "y" * 10_001, None]}, "row 1, column 'more': a text of 10,001 char"),
        ({"image": [b"1", None, b"3"]}, "row 1, column 'image': missing"),
        ({"image": [{"path": 1}] * 3}, "column 'image' holds struct.*, where a picture is expec"),
        ({"image": [{"bytes": "a", "path": "b"}] * 3}, "holds struct.*, where a picture is expect"),
        ({"image": [{"file": "a"}] * 3}, "holds struct.*, where a picture is expected"),
        ({"image": [1.0, 2.0, 3.0]}, "column 'image' holds double, where a picture is expected"),
        ({"v": [[1.0, 2.0], [1.0], [1.0, 2.0]]}, "row 1, column 'v': 1 numbers, where 2 numbers"),
        ({"v": [[1.0, 2.0], [1.0, float("nan")], None]}, "row 1, column 'v': a number that is not"),
        ({"v": [[1.0, 2.0], [float("inf"), 1.0], None]}, "row 1, column 'v': a number that is not"),
        ({"v": [[1.0, None]] * 3}, "row 0, column 'v': "),
        ({"v": pa.array([[1.0] * 3] * 3, pa.list_(pa.float32(), 3))}, "vectors of 3 numbers"),
        ({"v": [["a", "b"]] * 3}, "row 0, column 'v': "),
        ({"id": ["a", "b", "a"]}, "rows 0 and 2 have the same id 'a'"),
        ({"id": ["a", None, "c"]}, "row 1, column 'id': empty"),
        ({"id": ["a", "b", " "]}, "row 2, column 'id': empty"),
        ({"id": [0.5, 1.5, 2.5]}, "column 'id' holds double, where texts or whole numbers are"),
        ({name: [] for name in VALID}, "a table without rows"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_with_table_row_and_column(
    tmp_path: Path, changes: Mapping[str, Any], fault: str
) -> None:
    columns = {name: column for name, column in (VALID | changes).items() if column is not None}
    path = write(tmp_path / "t.parquet", columns, row_group_size=1)
    with pytest.raises(UserError, match=rf"^{path}: .*{fault}") as error:
        _open_and_check(path)
    assert "\n" not in str(error.value)


def _open_and_check(path: Path) -> None:
    table = open_table(str(path), FIELDS)
    assert len(table.ids) == len(table)
    table.check(np.arange(len(table)))


def test_what_is_right_is_not_refused(tmp_path: Path) -> None:
    _open_and_check(write(tmp_path / "t.parquet", VALID))
    _open_and_check(write(tmp_path / "u.parquet", VALID | {"more": ["a", None, "b"]}))


@pytest.mark.parametrize(
    ("layout", "fault"),
    [
        (Layout({"txt": "text"}), "--columns txt=text: nothing is called 'txt'; there are image"),
        (Layout({"text": "nothing"}), "no column 'nothing'; it has id, image, text, v"),
        (Layout({"group": "nothing"}), "no column 'nothing'"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, layout: Layout, fault: str) -> None:
    path = write(tmp_path / "t.parquet", VALID)
    with pytest.raises(UserError, match=fault):
        open_table(str(path), FIELDS, layout)


@pytest.mark.parametrize(
    ("columns", "pattern", "fault"),
    [
        (["text"], [], "--columns text: expected NAME=COLUMN"),
        (["text="], [], "--columns text=: expected NAME=COLUMN"),
        (["text=a", "text=b"], [], "--columns text=b: text is given twice"),
        ([], ["images/1.jpg"], r"--pattern images/1.jpg: expected \{\} where"),
        ([], ["a={}", "b=1"], r"--pattern b=1: expected \{\} where"),
        ([], ["{}.jpg", "b={}"], r"--pattern {}.jpg: expected NAME=PATTERN"),
    ],
)
def test_flags_that_say_nothing(columns: list[str], pattern: list[str], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        Layout.parse(columns, None, pattern)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _bent(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("t.parquet", lambda p: p.write_bytes(b"no table")),
        ("t.parquet", lambda p: p.write_bytes(b"")),
        ("t.parquet", _cut),
        ("t.parquet", _bent),
        ("t.parquet", lambda p: p.unlink()),
        ("t.csv", lambda p: p.write_bytes(b"")),
        ("t.csv", lambda p: p.write_bytes(b"id,text\na\n")),
        ("t.csv", lambda p: p.write_bytes("idé,text\na,b\n".encode("latin-1"))),
        ("t.csv", lambda p: p.write_bytes(b"id,text\na,\xff\xfe\n")),
        ("t.csv", lambda p: p.write_bytes(b"id,text\n")),
        ("t.csv", lambda p: p.write_bytes(b"text,text\na,b\n")),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, name: str, damage: Any) -> None:
    path = write(tmp_path / name, {"text": [str(n) for n in range(100)]})
    damage(path)
    with pytest.raises(UserError, match=name) as error:
        open_table(str(path), {"text": Text()}).rows([0])
    assert "\n" not in str(error.value)


BROKEN = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"ok"]).buffers())
"""Texts of which the first is not UTF-8."""


@pytest.mark.parametrize("one", [Text(), Picture(), Vector(2), Label()])
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}])
def test_a_text_that_is_not_utf_8_is_a_fault_of_its_row(
    tmp_path: Path, one: Input, options: Any
) -> None:
    path = write(tmp_path / "t.parquet", {"x": BROKEN}, **options)
    with pytest.raises(Rejected, match=r"^column 'x': a text that is not UTF-8"):
        open_table(str(path), {"x": one}).row(0)


@pytest.mark.parametrize("name", ["id", "group", "split", "label"])
def test_a_column_that_is_not_utf_8_is_one_line(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "t.parquet", {name: BROKEN})
    fields = {"label": Label()} if name == "label" else {}
    with pytest.raises(UserError, match=f"t.parquet: column '{name}': a text that is not UTF-8"):
        Source(str(path)).part("ok", fields, whole=True).keys  # noqa: B018


LONG = "a\nb\x1b[31m\u2028" + "x" * 2**21


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"image": [LONG]}, "cannot read .*too long"),
        ({"image": [f"../{LONG}"]}, "path '../a.* may lead out"),
        ({"id": [LONG] * 2, "image": [b""] * 2}, "rows 0 and 1 have the same id 'a"),
        ({"split": [LONG], "image": [b""]}, "there are a"),
    ],
)
def test_a_message_is_one_short_line(tmp_path: Path, columns: dict[str, Any], fault: str) -> None:
    source = Source(str(write(tmp_path / "t.parquet", columns)))
    with pytest.raises(UserError, match=fault) as error:
        source.part("b" if "split" in columns else ".", {"image": Picture()})[0]
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700
