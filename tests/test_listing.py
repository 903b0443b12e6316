"""The frozen listing: shards that grow, read as ranges; parts whose bytes batches do not change."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import Entry
from imgray.engine import listing, receipts
from imgray.engine.listing import LISTING, ShardRows, shards, span, whole_shards, write


def _naive(images: int, size: int, grown: int) -> list[tuple[int, int]]:
    """First row and end of each shard, one after the other."""
    found: list[tuple[int, int]] = []
    while not found or found[-1][1] < images:
        first = found[-1][1] if found else 0
        found.append((first, min(images, first + size * 2 ** (len(found) // grown))))
    return found


@pytest.mark.parametrize("size", [1, 3, 8])
def test_shards_grow_and_cover_every_row_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "GROWN", 4)
    for images in range(1, 30 * size + 2):
        expected = _naive(images, size, 4)
        assert shards(images, size) == len(expected), images
        for shard, (first, end) in enumerate(expected):
            start, count = span(shard, size)
            assert (start, min(images, start + count)) == (first, end)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_shards_that_are_full_stay_as_more_comes(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "GROWN", 4)
    for images in range(30 * size):
        full = [shard for shard in range(images) if sum(span(shard, size)) <= images]
        assert list(range(whole_shards(images, size))) == full


def test_a_billion_images_are_fewer_than_a_hundred_thousand_shards() -> None:
    assert shards(10**6, 512) == -(-(10**6) // 512)
    assert shards(10**9, 512) < 100_000


def _entries(count: int) -> Iterator[Entry]:
    return (Entry(f"{n:05d}.jpg", n, f"v{n}", "") for n in range(count))


@pytest.mark.parametrize("count", [1, 7, 8, 100])
def test_a_shard_has_its_entries_whatever_row_groups_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(listing, "GROUP", 8)
    monkeypatch.setattr(listing, "GROWN", 3)
    assert write(_entries(count), tmp_path / LISTING) == count
    assert pq.ParquetFile(tmp_path / LISTING).num_row_groups == -(-count // 8)
    rows = ShardRows(Folder(str(tmp_path)), 5)
    every = list(enumerate(_entries(count)))
    for shard, (first, end) in enumerate(_naive(count, 5, 3)):
        assert rows.entries(shard) == every[first:end]
    assert rows.shards == len(_naive(count, 5, 3))


def test_a_listing_of_an_earlier_version_keeps_its_shards(tmp_path: Path) -> None:
    """There the row groups were the shards."""
    table = pa.table({"id": [f"{n}" for n in range(10)], "size": list(range(10))})
    pq.write_table(table, tmp_path / LISTING, row_group_size=4)
    rows = ShardRows(Folder(str(tmp_path)), 512)
    assert rows.shards == 3
    assert rows.entries(2) == [(8, Entry("8", 8)), (9, Entry("9", 9))]


@pytest.mark.parametrize("seed", range(3))
def test_batches_change_no_byte_of_a_part(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "ROW_GROUP_BYTES", 3000)
    chance = np.random.default_rng(seed)
    schema = pa.schema([("id", pa.string()), ("x", pa.list_(pa.float16(), 16))])
    values = pa.array(chance.normal(size=(50 * 16)).astype(np.float16))
    column = pa.FixedSizeListArray.from_arrays(values, 16)
    whole = pa.table([[f"{n}" for n in range(50)], column], schema=schema)
    names = set()
    for cuts in ([], [1], [25], sorted(chance.choice(np.arange(1, 50), 9, replace=False).tolist())):
        edges = [0, *cuts, 50]
        tables = [whole.slice(a, b - a) for a, b in pairwise(edges)]
        entry, path = receipts.write_part(tmp_path, "rejected/part-00001", tables, schema)
        assert (entry.rows, entry.size) == (50, path.stat().st_size)
        assert pq.read_table(path).equals(whole)
        assert pq.ParquetFile(path).metadata.row_group(0).num_rows == receipts.rows_of_group(schema)
        names.add(entry.name)
    assert len(names) == 1
    assert names.pop().startswith("rejected/part-00001-")


def test_a_part_without_rows_has_its_columns(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("x", pa.list_(pa.float16(), 4))])
    entry, path = receipts.write_part(tmp_path, "part-00000", [], schema)
    assert entry.rows == 0
    assert pq.read_table(path).schema == schema
