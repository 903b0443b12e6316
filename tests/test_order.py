"""The order of examples: every one once an epoch, by windows of a large table, whoever loads it."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tinytask import TinyTask, tiny_recipe

from imgray.config import validate
from imgray.data import tables
from imgray.data.rowgroups import ParquetGroups
from imgray.engine.examples import open_examples
from imgray.training import examples as module
from imgray.training.examples import Examples, Orders, order
from imgray.training.loop import Loader, in_threads
from imgray.training.recipe import Recipe

SEEDS = range(5)


def _pieces(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some groups of some rows, a few of them empty, each of about a fifth of a window."""
    chance = np.random.default_rng(seed)
    counts = chance.integers(0, 30, int(chance.integers(2, 40)))
    counts[0] = 5
    return counts, chance.integers(1, module.WINDOW // 3, len(counts))


@pytest.mark.parametrize("seed", SEEDS)
def test_data_of_one_window_are_in_the_order_they_always_were(seed: int) -> None:
    counts, sizes = _pieces(seed)
    for pieces in ((counts, sizes * 0), (counts[:1], sizes[:1] * 1000), (counts, sizes // 40)):
        orders = Orders(seed, *pieces)
        for epoch in range(3):
            expected = np.random.default_rng((seed, epoch)).permutation(int(pieces[0].sum()))
            np.testing.assert_array_equal(orders(epoch), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_windows_hold_whole_pieces_and_are_full(seed: int) -> None:
    counts, sizes = _pieces(seed)
    sizes = sizes + module.WINDOW // 10
    whose = np.repeat(np.arange(len(counts)), counts)
    for epoch in range(3):
        found = order(np.random.default_rng((seed, epoch)), counts, sizes)
        assert sorted(found) == list(range(counts.sum()))
        pieces = np.random.default_rng((seed, epoch)).permutation(len(counts))
        windows, place = _filled(pieces, sizes), 0
        for number, window in enumerate(windows):
            rows = found[place : place + counts[window].sum()]
            assert sorted(rows) == sorted(np.flatnonzero(np.isin(whose, window)))
            assert sizes[window].sum() <= module.WINDOW or len(window) == 1
            if number + 1 < len(windows):
                assert sizes[[*window, windows[number + 1][0]]].sum() > module.WINDOW
            if len(rows) > 20:
                assert list(rows) != sorted(rows)
            place += len(rows)


def _filled(pieces: np.ndarray, sizes: np.ndarray) -> list[list[int]]:
    windows: list[list[int]] = [[]]
    for piece in pieces:
        if windows[-1] and sizes[[*windows[-1], piece]].sum() > module.WINDOW:
            windows.append([])
        windows[-1].append(piece)
    return windows


def test_epochs_and_seeds_differ_and_repeat() -> None:
    counts, sizes = np.full(30, 10), np.full(30, module.WINDOW // 5)
    found = {(s, e): tuple(Orders(s, counts, sizes)(e)) for s in range(3) for e in range(3)}
    assert len(set(found.values())) == 9
    orders = pickle.loads(pickle.dumps(Orders(1, counts, sizes)))
    for epoch in (2, 0, 1, 2, 0):
        assert tuple(orders(epoch)) == found[1, epoch]


class Numbered(TinyTask):
    """Gives the number of a row, and a draw, instead of an example."""

    def example(self, record: Any, chance: Any) -> dict[str, np.ndarray]:
        draw = 0 if chance is None else chance.integers(10**9)
        return {"row": np.array(int(record["id"])), "draw": np.array(draw)}


COUNT = 203


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examples:
    """Of a table with 21 row groups, of which 5 are a window."""
    columns = {"image": [bytes(100)] * COUNT, "label": [n % 3 for n in range(COUNT)]}
    for part in ("train", "val"):
        table = pa.table(columns | {"id": range(COUNT)})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=10)
    recipe = validate(Recipe, tiny_recipe(task="test_order:Numbered", batch_size=15, seed=3))
    monkeypatch.setenv("IMGRAY_TRUSTED_MODULES", "test_order")
    found = open_examples(recipe, str(tmp_path))
    window = int(5.5 * found.train.pieces[1][0])
    monkeypatch.setattr(module, "WINDOW", window)
    monkeypatch.setattr(tables, "HELD", 2 * window)
    return found


def _rows(stream: Examples, steps: range, world: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for step, rank in itertools.product(steps, range(world)):
        batch = stream.training(step, rank, world)
        found += zip(batch["row"].tolist(), batch["draw"].tolist(), strict=True)
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_epoch_has_every_row_once_on_any_number_of_workers(
    stream: Examples, world: int
) -> None:
    found = _rows(stream, range(60), world)
    assert found == _rows(stream, range(60), 1)
    rows = [row for row, _ in found]
    for epoch in range(len(rows) // COUNT):
        assert sorted(rows[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))


@pytest.mark.parametrize("step", [0, 1, 7, 13, 14, 40])
def test_a_run_that_resumes_anywhere_sees_the_same(stream: Examples, step: int) -> None:
    whole = _rows(stream, range(60), 1)
    again = pickle.loads(pickle.dumps(stream))
    assert _rows(again, range(step, 60), 1) == whole[step * 15 :]


def test_several_feeders_give_what_one_gives(stream: Examples) -> None:
    """Each loads some of the batches, in a process of its own."""
    whole = _rows(stream, range(40), 1)
    feeders = [pickle.loads(pickle.dumps(stream)) for _ in range(3)]
    found = [_rows(feeders[step % 3], range(step, step + 1), 1) for step in range(40)]
    assert list(itertools.chain(*found)) == whole


def test_each_row_group_is_read_once_in_an_epoch(
    stream: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = ParquetGroups.read

    def spied(self: ParquetGroups, group: int, columns: Any) -> pa.Table:
        read.append(group)
        return original(self, group, columns)

    monkeypatch.setattr(ParquetGroups, "read", spied)
    epochs = 3
    steps = range(epochs * COUNT // 15)
    for _ in in_threads(Loader(stream.training, 0, 1), steps):
        pass
    assert len(read) <= 21 * epochs + 5
