"""Batches by Ray Data: in order, and never with more blocks at once than Ray Data bears."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from imgray.engine import feed
from imgray.engine.feed import Feed
from imgray.training.loop import Loader
from imgray.training.task import Arrays


class FakeDataset:
    """Stands for a Ray Data set: maps its items in this process, one at a time."""

    def __init__(self, items: list[int]) -> None:
        self.items = items

    def map_batches(self, actor: Any, fn_constructor_kwargs: Any, **_: Any) -> "FakeDataset":
        self.work = actor(**fn_constructor_kwargs)
        return self

    def iter_batches(self, **_: Any) -> Iterator[Arrays]:
        return (self.work({"item": np.array([item])}) for item in self.items)


def _load(number: int, rank: int, world: int) -> Arrays:
    return {"place": np.array([number, rank, world])}


def _numbers(batches: Iterator[Arrays]) -> list[int]:
    return [int(batch["place"][0]) for batch in batches]


@pytest.mark.parametrize("numbers", [range(0), range(1), range(5, 205), range(100, 201)])
def test_a_long_run_is_fed_in_pieces(monkeypatch: pytest.MonkeyPatch, numbers: range) -> None:
    blocks: list[int] = []

    def from_items(items: list[int], override_num_blocks: int) -> FakeDataset:
        blocks.append(override_num_blocks)
        assert len(items) <= max(1, 2 * override_num_blocks) * feed.BLOCK
        return FakeDataset(items)

    monkeypatch.setattr(ray.data, "from_items", from_items)
    monkeypatch.setattr(feed, "MOST_BLOCKS", 5)
    assert _numbers(Feed(1)(Loader(_load, 1, 3), numbers)) == list(numbers)
    assert all(1 <= count <= 5 for count in blocks)
    assert len(blocks) == -(-len(numbers) // (5 * feed.BLOCK))


@pytest.mark.slow
def test_pieces_follow_each_other_in_order(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_BLOCKS", 2)
    numbers = range(3, 3 + 3 * feed.BLOCK)
    assert _numbers(Feed(2)(Loader(_load, 0, 1), numbers)) == list(numbers)
