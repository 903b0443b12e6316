"""How much of a table is read, and held, at most."""

from pathlib import Path

import pyarrow as pa
import pytest
from tabular import FIELDS, VALID, write

from imgray.data import tables
from imgray.data.fields import Picture, Text, Vector
from imgray.data.rowgroups import ParquetGroups
from imgray.data.tables import open_table
from imgray.errors import UserError


def test_a_row_group_that_no_memory_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.parquet", VALID)
    monkeypatch.setattr(tables, "LARGEST", 10)
    with pytest.raises(UserError, match=r"row group 0 holds .* write the table in groups of about"):
        open_table(str(path), FIELDS).rows([0])


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
