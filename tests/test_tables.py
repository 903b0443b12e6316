"""Tables: what their cells hold, and what is read of them."""

import csv
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tabular import HF, value, write

from imgray.data import tables
from imgray.data.fields import Boundaries, ClassMap, Input, KeyPoints, Label, Picture, Text, Vector
from imgray.data.layout import Layout
from imgray.data.rowgroups import ParquetGroups
from imgray.data.tables import open_table
from imgray.errors import UserError

SKELETON = KeyPoints(("nose", "left_ear"))


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
