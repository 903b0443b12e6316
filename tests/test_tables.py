"""Tables: what their cells hold, which rows are refused and why, what is read of them."""

import csv
import dataclasses
import json
import os
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3

from imgray.artifacts.folder import Folder
from imgray.data import tables
from imgray.data.fields import Boundaries, ClassMap, Input, KeyPoints, Label, Picture, Text, Vector
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.data.rowgroups import ParquetGroups
from imgray.data.sources import Source
from imgray.data.tables import open_table
from imgray.errors import UserError

SKELETON = KeyPoints(("nose", "left_ear"))
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


@pytest.mark.parametrize(
    ("one", "column", "expected"),
    [
        (Text(), pa.array(["a\nb"]), "a\nb"),
        (Text(), pa.array(["a"]).dictionary_encode(), "a"),
        (Text(), pa.array(["a"], pa.large_string()), "a"),
        (Picture(), pa.array([b"JPEG"]), b"JPEG"),
        (Picture(), pa.array([b"JPEG"], pa.large_binary()), b"JPEG"),
        (Picture(), pa.array([{"bytes": b"JPEG", "path": "lost.jpg"}], HF), b"JPEG"),
        (Picture(), pa.array([{"bytes": None, "path": "0001"}], HF), b"of a file"),
        (Picture(), pa.array(["0001"]), b"of a file"),
        (ClassMap(("a",)), pa.array(["0001"]), b"of a file"),
        (Picture(), pa.array([{"bytes": b"JPEG", "path": None}]), b"JPEG"),
        (Label(), pa.array([7]), 7),
        (Label(), pa.array(["cat"]), "cat"),
        (Vector(2), pa.array([[1, 2.5]]), [1, 2.5]),
        (Vector(2), pa.array([[1, 2.5]], pa.list_(pa.float16(), 2)), [1, 2.5]),
        (Vector(2), pa.array(["[1, 2.5]"]), [1, 2.5]),
        (Boundaries(), pa.array([[[[1, 0], [0, 1]]]]), [[[True, False], [False, True]]]),
        (Boundaries(), pa.array([[[[True]], [[False]]]]), [[[True]], [[False]]]),
        (SKELETON, pa.array([[[1.0, 2, 3], [4, 5, 6]]]), [[1, 2, 3], [4, 5, 6]]),
        (SKELETON, pa.array([[1.0, 2, 3, 4, 5, 6]]), [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_every_kind_of_cell(tmp_path: Path, one: Input, column: Any, expected: Any) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/0001.png").write_bytes(b"of a file")
    path = write(tmp_path / "t.parquet", {"x": column})
    found = value(path, "x", one, pattern="files/{}.png")
    np.testing.assert_array_equal(found, expected)
    if isinstance(one, Vector | KeyPoints):
        assert found.dtype == np.float32


def test_csv_is_text_until_a_field_says_otherwise(tmp_path: Path) -> None:
    columns = {
        "id": ["0001"], "text": ['a, "b"\nc'], "v": ["[0.5, 1]"], "label": ["3"], "none": [""],
        **{f"{point}_{axis}": ["1.50"] for point in SKELETON.skeleton
           for axis in ("x", "y", "visibility")},
    }  # fmt: skip
    fields = {"text": Text(), "v": Vector(2), "none": Text(optional=True), "pose": SKELETON}
    table = open_table(str(write(tmp_path / "t.csv", columns)), fields)
    [row] = table.rows([0])
    assert {key: row[key] for key in ("id", "text")} == {"id": "0001", "text": 'a, "b"\nc'}
    assert row["v"].tolist() == [0.5, 1]
    assert row["pose"].tolist() == [[1.5] * 3] * 2
    assert "none" not in row


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_rows_are_those_of_the_file(tmp_path: Path, seed: int, suffix: str) -> None:
    chance = np.random.default_rng(seed)
    count = int(chance.integers(1, 200))
    vectors = chance.normal(size=(count, 3)).astype(np.float32)
    texts = [f"text {n} é" for n in chance.permutation(count)]
    given = [json.dumps(v.tolist()) for v in vectors] if suffix == ".csv" else list(vectors)
    path = write(
        tmp_path / f"t{suffix}",
        {"id": [f"{n:05}" for n in range(count)], "words": texts, "v": given, "other": texts},
        **({"row_group_size": int(chance.integers(1, 50))} if suffix == ".parquet" else {}),
    )
    table = open_table(str(path), {"text": Text(), "v": Vector(3)}, Layout({"text": "words"}))
    numbers = chance.integers(0, count, 50).tolist()
    for one in (table, pickle.loads(pickle.dumps(table))):
        assert len(one) == count
        for number, row in zip(numbers, one.rows(numbers), strict=True):
            assert row.keys() == {"id", "text", "v"}
            assert (row["id"], row["text"]) == (f"{number:05}", texts[number])
            np.testing.assert_array_equal(row["v"], vectors[number])
        one.check(np.arange(count))
        assert list(one.ids) == [f"{n:05}" for n in range(count)]


def test_rows_without_an_id_are_called_by_their_number(tmp_path: Path) -> None:
    table = open_table(str(write(tmp_path / "t.csv", {"text": ["a", "b"]})), {"text": Text()})
    assert list(table.ids) == ["0", "1"] == [row["id"] for row in table.rows([0, 1])]


def test_only_the_columns_and_groups_that_are_wanted_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{n:0100}" for n in range(100)]
    path = write(tmp_path / "t.parquet", {"text": texts, "big": texts}, row_group_size=10)
    read: list[tuple[int, list[str]]] = []
    original = ParquetGroups.read

    def spied(self: ParquetGroups, group: int, columns: Any) -> pa.Table:
        read.append((group, list(columns)))
        return original(self, group, columns)

    monkeypatch.setattr(ParquetGroups, "read", spied)
    table = open_table(str(path), {"text": Text()})
    group = int(table.sizes[0])
    monkeypatch.setattr(tables, "HELD", 3 * group)
    table.rows([55, 57, 3, 51])
    assert read == [(5, ["text"]), (0, ["text"])]
    table.rows([15, 25, 55])  # three groups are held, of which the longest unused one goes
    assert [number for number, _ in read] == [5, 0, 1, 2]
    table.rows([5])
    assert [number for number, _ in read] == [5, 0, 1, 2, 0]


def test_many_threads_read_one_table(tmp_path: Path) -> None:
    texts = [str(n) for n in range(1000)]
    path = write(tmp_path / "t.parquet", {"text": texts}, row_group_size=50)
    table, wrong = open_table(str(path), {"text": Text()}), []

    def look(seed: int) -> None:
        numbers = np.random.default_rng(seed).integers(0, 1000, 500).tolist()
        if [row["text"] for row in table.rows(numbers)] != [str(n) for n in numbers]:
            wrong.append(seed)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "cell",
    ["../secret", "a/../../secret", "/etc/passwd", "s3://bucket/x", "file:///etc/passwd",
     "a\\..\\secret", "nul\0", "a/.."],
)  # fmt: skip
@pytest.mark.parametrize("pattern", ["{}", "images/{}", "{}/x.jpg"])
def test_a_path_stays_below_the_root(tmp_path: Path, cell: str, pattern: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    path = write(tmp_path / "t.parquet", {"image": [cell]})
    table = open_table(str(path), {"image": Picture()}, Layout({}, str(root), pattern))
    if pattern == "images/{}" and cell == "/etc/passwd":  # images//etc/passwd is below it
        with pytest.raises(UserError, match="does not exist"):
            table.rows([0])
        return
    for refused in (lambda: table.rows([0]), lambda: table.check(np.arange(1))):
        with pytest.raises(UserError, match=r"t.parquet: row 0, column 'image': path .* the root"):
            refused()


def test_a_file_that_is_gone_is_a_fault_of_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"image": ["a.jpg", "b.jpg", "x" * 300]})
    (tmp_path / "b.jpg").write_bytes(b"b")
    table = open_table(str(path), {"image": Picture()})
    assert table.row(1) == {"id": "1", "image": b"b"}
    for number in (0, 2):
        with pytest.raises(Rejected, match="column 'image': cannot read"):
            table.row(number)


def test_a_file_that_is_too_large_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huge.jpg").write_bytes(bytes(2**20))
    monkeypatch.setattr("imgray.data.cells.MAX_BYTES", 1000)
    monkeypatch.setattr("imgray.data.fields.MAX_BYTES", 1000)
    path = write(tmp_path / "t.csv", {"image": ["huge.jpg"]})
    with pytest.raises(Rejected, match="column 'image': a picture of 1,001 bytes; at most 1,000"):
        open_table(str(path), {"image": Picture()}).row(0)


def test_a_link_in_a_circle_is_a_fault_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a.jpg")
    path = write(tmp_path / "t.csv", {"image": ["a.jpg"]})
    with pytest.raises(Rejected, match="column 'image': cannot read"):
        open_table(str(path), {"image": Picture()}).row(0)


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


VALID: dict[str, Any] = {"id": ["a", "b", "c"], "image": [b"1", b"2", b"3"],
                         "text": ["x", "y", "z"], "v": [[1.0, 2.0]] * 3}  # fmt: skip
FIELDS = {"image": Picture(), "text": Text(), "v": Vector(2), "more": Text(optional=True)}


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


def test_a_row_group_that_no_memory_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.parquet", VALID)
    monkeypatch.setattr(tables, "LARGEST", 10)
    with pytest.raises(UserError, match=r"row group 0 holds .* write the table in groups of about"):
        open_table(str(path), FIELDS).rows([0])


def test_in_s3(s3: S3, tmp_path: Path) -> None:
    folder = Folder(s3.uri("tables/one"))
    path = write(tmp_path / "t.parquet", {"image": ["a", "b", "c"], "text": ["x", "y", "z"]})
    folder.write("t.parquet", path.read_bytes())
    folder.write("files/b.jpg", b"picture")
    folder.write("files/c.jpg", b"")
    fields = {"image": Picture(), "text": Text()}
    table = open_table(f"{folder.uri}/t.parquet", fields, Layout({}, None, "files/{}.jpg"))
    assert table.row(1) == {"id": "1", "image": b"picture", "text": "y"}
    with pytest.raises(Rejected, match="does not exist"):
        table.row(0)
    with pytest.raises(Rejected, match="cannot read"):
        table.row(2)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_digest_tells_versions_apart(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"

    def digest(time: int, texts: list[str]) -> str:
        write(path, {"text": texts}, write_statistics=False)
        os.utime(path, ns=(0, time))
        return open_table(str(path), {}).file.digest

    before = digest(10**18, ["a", "b"])
    assert before == digest(10**18, ["a", "b"]) == open_table(str(path), {}).file.digest
    assert before != digest(10**18 + 1, ["b", "a"])
    assert before != digest(10**18, ["a", "b", "c"])


def test_the_digest_tells_versions_in_s3_apart(s3: S3, tmp_path: Path) -> None:
    folder = Folder(s3.uri("tables/versions"))

    def digest(texts: list[str]) -> str:
        path = write(tmp_path / "t.parquet", {"text": texts}, write_statistics=False)
        folder.write("t.parquet", path.read_bytes())
        return open_table(f"{folder.uri}/t.parquet", {}).file.digest

    assert digest(["a", "b"]) == digest(["a", "b"]) != digest(["b", "a"])


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


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_string()])
def test_equal_values_are_held_once(tmp_path: Path, kind: pa.DataType) -> None:
    """As they are in the file, which else could fill any memory."""
    cells = pa.array(["x" * 10_000]).cast(kind)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), cells)
    path = write(tmp_path / "t.parquet", {"x": column}, store_schema=False)
    one = Picture() if kind == pa.binary() else Text()
    table = open_table(str(path), {"x": one})
    assert table.row(4999)["x"] == cells[0].as_py()
    assert table._group(0).nbytes < 100_000
    assert path.stat().st_size < 5000


def test_what_a_file_unpacks_to_is_counted_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = pa.array([[0.5] * 100] * 10_000, pa.list_(pa.float32()))
    path = write(tmp_path / "t.parquet", {"v": same, "id": range(10_000)})
    assert path.stat().st_size < 100_000 < 4_000_000 <= open_table(str(path), {}).file.sizes(["v"])
    monkeypatch.setattr(tables, "LARGEST", 3_900_000)
    monkeypatch.setattr(ParquetGroups, "read", None)
    with pytest.raises(UserError, match="row group 0 holds"):
        open_table(str(path), {"v": Vector(100)}).rows([0])


def test_a_column_that_no_memory_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.parquet", {"group": ["x" * 1000] * 1000})
    monkeypatch.setattr(tables, "LONGEST_COLUMN", 999_999)
    with pytest.raises(UserError, match="column 'group' holds"):
        _ = open_table(str(path), {}).groups
    monkeypatch.setattr(tables, "LONGEST_COLUMN", 1_000_000)
    assert list(open_table(str(path), {}).groups or []) == ["x" * 1000] * 1000


def test_texts_of_another_encoding_are_read(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(100)]
    options = {"use_dictionary": False, "column_encoding": {"x": "DELTA_BYTE_ARRAY"}}
    path = write(tmp_path / "t.parquet", {"x": texts}, **options)
    assert [row["x"] for row in open_table(str(path), {"x": Text()}).rows(range(100))] == texts


def test_a_blank_line_of_a_sole_column_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text\na\n\nb\n")
    table = open_table(str(path), {"text": Text(optional=True)})
    assert [row.get("text") for row in table.rows(range(3))] == ["a", None, "b"]
    with pytest.raises(UserError, match="row 1, column 'text': missing"):
        open_table(str(path), {"text": Text()}).check(np.arange(3))


def _names(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


@pytest.mark.data
@pytest.mark.parametrize(
    ("path", "fields", "layout", "rows"),
    [
        ("flickr8k/captions.csv", {"image": Picture(), "text": Text()},
         Layout({"text": "caption", "group": "image"}, None, "images/{}"), 35_000),
        ("ucm_captions/captions.csv", {"image": Picture(), "caption": Text()},
         Layout({"group": "image"}, None, "images/{}.jpg"), 10_500),
        ("ccp/pose.csv", {"photo": Picture(), "pose": None},
         Layout({"id": "photo"}, None, "photos/{}.jpg"), 1004),
        ("cifar10/train.parquet", {"image": Picture(), "label": Label()}, None, 50_000),
        ("cifar10/test.parquet", {"image": Picture(), "label": Label()}, None, 4000),
    ],
)  # fmt: skip
def test_the_tables_of_the_data_sets_open(
    shared_data: Path, path: str, fields: dict[str, Any], layout: Layout | None, rows: int
) -> None:
    if "pose" in fields:
        points = tuple(n.removesuffix("_x") for n in _names(shared_data / path) if n.endswith("_x"))
        fields = fields | {"pose": KeyPoints(points)}
    table = open_table(str(shared_data / path), fields, layout)
    assert len(table) == len(table.ids) == rows
    table.check(np.arange(rows))
    for row in table.rows(np.linspace(0, rows - 1, 20).astype(int).tolist()):
        assert row.keys() == {"id", *fields}
        picture = row.get("image", row.get("photo"))
        assert picture[:2] == b"\xff\xd8"
        if "pose" in row:
            assert row["pose"].shape == (33, 3)
            assert (row["pose"][:, 2] <= 1).all()
