"""A table in several Parquet files is that table; a pattern may be one input's own."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3
from tabular import write

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import Skipped
from imgray.data.collections import open_collection
from imgray.data.fields import Picture, Text
from imgray.data.layout import Layout
from imgray.data.sources import Source
from imgray.data.tables import open_table
from imgray.engine.settings import ExtractConfig
from imgray.errors import UserError

FIELDS = {"text": Text()}
PICTURES = {"image": Picture(), "mask": Picture()}


def _shards(folder: Path, texts: list[str], counts: list[int], **columns: Any) -> None:
    """Files of so many rows, of which every other one holds equal texts once."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": [f"id {n}" for n in range(len(texts))], "text": texts, **columns})
    start = 0
    for number, count in enumerate(counts):
        name = f"train-{number:05d}-of-{len(counts):05d}.parquet"
        path, once = folder / name, number % 2 == 0
        part = table.slice(start, count)
        pq.write_table(part, path, row_group_size=3, use_dictionary=once)
        if not once:  # an encoding from which equal texts cannot be held once
            encodings = dict.fromkeys(table.column_names, "DELTA_BYTE_ARRAY")
            pq.write_table(part, path, use_dictionary=False, column_encoding=encodings)
        start += count


@pytest.mark.parametrize("seed", range(3))
def test_shards_are_one_table(tmp_path: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    counts = chance.integers(0, 9, int(chance.integers(2, 12))).tolist()
    total = sum(counts) + 1
    texts = [f"text {chance.integers(4)}" for _ in range(total)]
    _shards(tmp_path, texts, [*counts, 1])
    found = open_table(str(tmp_path / "train.parquet"), FIELDS)
    one = open_table(str(write(tmp_path / "whole.parquet", {"text": texts})), FIELDS)
    order = chance.permutation(total).tolist()
    for table in (found, pickle.loads(pickle.dumps(found))):
        assert list(table.ids) == [f"id {n}" for n in range(total)]
        assert [row["text"] for row in table.rows(order)] == [r["text"] for r in one.rows(order)]
        table.check(np.arange(total))
        assert table.counts.sum() == total
        assert len(table.sizes) == len(table.counts)


def test_shards_are_a_part_and_a_collection(tmp_path: Path) -> None:
    _shards(tmp_path, list("abcdef"), [2, 2, 2])
    write(tmp_path / "val.parquet", {"text": ["v"]})
    source = Source(str(tmp_path))
    assert [source.part("train", FIELDS)[n]["text"] for n in range(6)] == list("abcdef")
    assert source.part("val", FIELDS)[0]["text"] == "v"
    rows = open_collection(str(tmp_path / "train.parquet"), FIELDS)
    entries = list(rows.entries(Skipped()))
    assert [rows.values(n, one)["text"] for n, one in enumerate(entries)] == list("abcdef")


def test_shards_in_s3(s3: S3, tmp_path: Path) -> None:
    folder = Folder(s3.uri("tables/sharded"))
    _shards(tmp_path, list("abcdef"), [2, 3, 1])
    for path in tmp_path.glob("*.parquet"):
        folder.write(path.name, path.read_bytes())
    table = open_table(f"{folder.uri}/train.parquet", FIELDS)
    assert [row["text"] for row in table.rows(range(6))] == list("abcdef")


def test_the_digest_is_of_all_shards(tmp_path: Path) -> None:
    _shards(tmp_path, list("abcdef"), [2, 2, 2])
    place = str(tmp_path / "train.parquet")
    before = open_table(place, FIELDS).file.digest
    assert open_table(place, FIELDS).file.digest == before
    pq.write_table(
        pa.table({"id": ["x"], "text": ["y"]}), tmp_path / "train-00001-of-00003.parquet"
    )
    assert open_table(place, FIELDS).file.digest != before


def test_a_shard_that_is_missing_or_another_is_one_line(tmp_path: Path) -> None:
    _shards(tmp_path, list("abcdef"), [2, 2, 2])
    place = str(tmp_path / "train.parquet")
    write(tmp_path / "train-00001-of-00003.parquet", {"id": ["1"], "other": ["x"]})
    with pytest.raises(
        UserError, match=r"train-00001-of-00003.parquet: other columns than .*00000"
    ):
        open_table(place, FIELDS)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"train-\*-of-\*.parquet: 2 files, which are not all of"):
        open_table(place, FIELDS)
    _shards(tmp_path, ["a"], [1])
    with pytest.raises(UserError, match="3 files, which are not all of one table's"):
        open_table(place, FIELDS)
    with pytest.raises(UserError, match=r"cannot read .*test.parquet: it does not exist"):
        open_table(str(tmp_path / "test.parquet"), FIELDS)


def test_the_table_itself_goes_before_its_shards(tmp_path: Path) -> None:
    _shards(tmp_path, list("ab"), [1, 1])
    write(tmp_path / "train.parquet", {"text": ["whole"]})
    assert open_table(str(tmp_path / "train.parquet"), FIELDS).rows([0])[0]["text"] == "whole"


def _pictures(folder: Path) -> Path:
    for name in ("photos/a.jpg", "parsing/a.png", "a"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return write(folder / "t.csv", {"image": ["a"], "mask": ["a"]})


@pytest.mark.parametrize(
    ("patterns", "image", "mask"),
    [
        (["image=photos/{}.jpg", "mask=parsing/{}.png"], "photos/a.jpg", "parsing/a.png"),
        (["mask=parsing/{}.png"], "a", "parsing/a.png"),
        (["photos/{}.jpg"], "photos/a.jpg", "photos/a.jpg"),
        ("photos/{}.jpg", "photos/a.jpg", "photos/a.jpg"),
        (None, "a", "a"),
    ],
)
def test_inputs_have_patterns_of_their_own(
    tmp_path: Path, patterns: Any, image: str, mask: str
) -> None:
    path = _pictures(tmp_path)
    config = ExtractConfig(images=str(path), output="o", extractor=["e"], pattern=patterns)
    [row] = open_table(str(path), PICTURES, config.layout).rows([0])
    assert (row["image"], row["mask"]) == (image.encode(), mask.encode())


def test_a_pattern_of_all_may_hold_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "split=train").mkdir()
    (tmp_path / "split=train" / "a.jpg").write_bytes(b"a")
    path = write(tmp_path / "t.csv", {"image": ["a"]})
    layout = Layout.parse([], None, ["split=train/{}.jpg"])
    assert open_table(str(path), {"image": Picture()}, layout).rows([0])[0]["image"] == b"a"


def test_a_pattern_of_no_input_is_one_line(tmp_path: Path) -> None:
    layout = Layout.parse([], None, ["image={}", "msak={}"])
    with pytest.raises(
        UserError, match=r"--pattern msak=...: no input is called 'msak'; there are"
    ):
        open_table(str(_pictures(tmp_path)), PICTURES, layout)


def test_settings_of_before_are_those_of_one_pattern() -> None:
    def stored(pattern: Any) -> Any:
        config = ExtractConfig(images="i", output="o", extractor=["e"], pattern=pattern)
        return config.identity()["pattern"]

    assert stored(None) is None
    assert stored("{}.jpg") == stored(["{}.jpg"]) == "{}.jpg"
    assert stored(["a={}", "b={}"]) == ["a={}", "b={}"]
    assert ExtractConfig.defaults()["pattern"] is None
