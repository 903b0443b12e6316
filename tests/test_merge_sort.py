"""More rows than memory holds come in order, whatever is merged together."""

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from imgray.data import merge_sort
from imgray.data.merge_sort import MergeSort
from imgray.errors import NoRoom

SCHEMA = pa.schema([("key", pa.binary()), ("size", pa.int64())])


def _batches(count: int, seed: int) -> list[pa.RecordBatch]:
    """Rows of any key, in batches of any length."""
    chance = np.random.default_rng(seed)
    keys = [chance.bytes(int(chance.integers(4))) for _ in range(count)]
    cuts = [0, *sorted(chance.integers(0, count + 1, 5).tolist()), count]
    whole = pa.record_batch([keys, list(range(count))], schema=SCHEMA)
    return [whole.slice(a, b - a) for a, b in pairwise(cuts)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [0, 1, 300])
def test_rows_come_in_the_order_of_their_bytes(
    tmp_path: Path, seed: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In runs of many lengths, also where so many are not merged at once."""
    for name, value in {"RUN": 200 * seed, "WAYS": 2 + seed, "BLOCK": 7}.items():
        monkeypatch.setattr(merge_sort, name, value)
    sort, every = MergeSort(tmp_path, SCHEMA), []
    for batch in _batches(count, seed):
        sort.add(batch)
        every += [tuple(row.values()) for row in batch.to_pylist()]
        assert len(list(tmp_path.iterdir())) < 2 + seed
    found = list(sort.rows())
    assert sorted(found) == sorted(every)
    assert [key for key, _ in found] == sorted(key for key, _ in every)


def _scattered(numbers: Iterable[int]) -> pa.RecordBatch:
    keys = [(n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8) for n in numbers]
    return pa.record_batch([keys, list(numbers)], schema=SCHEMA)


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the blocks of the runs that are merged, as many as `WAYS`."""
    monkeypatch.setattr(merge_sort, "RUN", 2**18)
    monkeypatch.setattr(merge_sort, "WAYS", 8)
    monkeypatch.setattr(merge_sort, "BLOCK", 64)
    held: list[int] = []
    write = MergeSort._write

    def noting(sort: MergeSort, batches: Iterable[pa.RecordBatch]) -> None:
        held.append(pa.total_allocated_bytes())
        write(sort, batches)

    monkeypatch.setattr(MergeSort, "_write", noting)
    peaks = []
    for count in (2**15, 2**18):
        before = pa.total_allocated_bytes()
        sort = MergeSort(tmp_path, SCHEMA)
        for first in range(0, count, 2**12):
            sort.add(_scattered(range(first, first + 2**12)))
        tracemalloc.start()
        rows = sort.rows()
        found = sum(1 for _ in rows)
        held.append(pa.total_allocated_bytes())
        peaks.append((max(held) - before, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        held.clear()
        assert found == count
    assert max(peaks[0]) < 2**21, peaks
    assert max(peaks[1]) < 2**21, peaks


def test_no_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoRoom, match="set TMPDIR"):
        list(MergeSort(tmp_path / "none", SCHEMA).rows())
