"""Tables in S3, and how versions of a table are told apart."""

import os
from pathlib import Path

import pytest
from conftest import S3
from tabular import write

from imgray.artifacts.folder import Folder
from imgray.data.fields import Picture, Text
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.data.tables import open_table


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
    assert table.row(2) == {"id": "2", "image": b"", "text": "z"}


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
