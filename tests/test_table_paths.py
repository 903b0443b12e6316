"""Cells that hold paths: below the root, and what is there."""

from pathlib import Path

import numpy as np
import pytest
from tabular import write

from imgray.data.fields import Picture
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.data.tables import open_table
from imgray.errors import UserError


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
