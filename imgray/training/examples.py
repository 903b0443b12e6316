"""The batches of a run: which examples a step sees, in which order, on which worker.

A data set that is read in pieces, as a table is by row groups, and larger than a window has its
pieces in an order of each epoch's own, and its examples in any order within windows of pieces that
follow each other: so a process that holds a window reads each piece once in an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgray.data import pixels
from imgray.data.datasets import Dataset, Record
from imgray.data.tables import WINDOW
from imgray.errors import UserError
from imgray.training.task import Arrays, Task


@dataclass(frozen=True)
class Examples:
    """The batches of a run, each a function of its number alone.

    Examples follow each other in an endless stream, every epoch in an order of its own, and a batch
    is the next piece of it, cut into one part per worker.
    """

    task: Task
    train: Dataset
    val: Dataset
    batch_size: int
    seed: int

    def training(self, step: int, rank: int, world: int) -> Arrays:
        """A worker's part of the batch of a step."""
        first = step * self.batch_size
        part = np.array_split(np.arange(first, first + self.batch_size), world)[rank].tolist()
        return _stacked([self._drawn(n) for n in part])

    def validation(self, number: int, rank: int, world: int) -> Arrays:
        """The `number`th batch of the validation examples that fall to a worker."""
        first = (number * world + rank) * self._together
        rows = range(first, min(first + self._together, len(self.val)))
        return _stacked([self.example(record, None) for record in self.val.records(rows)])

    def validations(self, rank: int, world: int) -> int:
        """How many batches of validation examples fall to a worker."""
        return len(range(rank * self._together, len(self.val), world * self._together))

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        """`Task.example`. Raises `UserError`, which names the record."""
        try:
            return self.task.example(record, chance)
        except pixels.Rejected as error:
            raise UserError(f"{record['id']}: {error}; mend or remove it") from None

    @property
    def _together(self) -> int:
        alike = self.task.one_shape if self.task.alike is None else self.task.alike
        return self.batch_size if alike else 1

    def _drawn(self, place: int) -> Arrays:
        chance = np.random.default_rng((self.seed, place))
        return self.example(self.train.drawn(self._at(place), chance), chance)

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, len(self.train))
        return int(self._orders(epoch)[index])

    @cached_property
    def _orders(self) -> Orders:
        return Orders(self.seed, *self.train.pieces)


class Orders:
    """The order of every epoch; two are kept, as a batch may reach from one into the next.

    Args:
        seed: of the run.
        counts: examples of each piece (P,).
        sizes: bytes of each piece in memory (P,).
    """

    def __init__(self, seed: int, counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        self.seed, self.counts, self.sizes = seed, counts, sizes
        self._kept: dict[int, NDArray[np.int64]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.seed, self.counts, self.sizes)

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """The numbers of all examples (n,) in the order of an epoch."""
        found = self._kept.get(epoch)
        if found is None:
            found = order(np.random.default_rng((self.seed, epoch)), self.counts, self.sizes)
            self._kept = {e: o for e, o in self._kept.items() if abs(e - epoch) == 1}
            self._kept[epoch] = found
        return found


def order(
    chance: np.random.Generator, counts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A random order of the examples of pieces, window by window."""
    if sizes.sum() <= WINDOW or len(counts) == 1:
        return chance.permutation(counts.sum())
    pieces = chance.permutation(len(counts))
    firsts = np.cumsum(counts) - counts
    found = []
    for window in _windows(pieces, sizes):
        inside = [np.arange(firsts[p], firsts[p] + counts[p]) for p in window]
        found.append(chance.permutation(np.concatenate(inside)))
    return np.concatenate(found)


def _windows(pieces: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[list[int]]:
    """Pieces that follow each other, as many as a window has room for, one at least."""
    window: list[int] = []
    room = WINDOW
    for piece in pieces.tolist():
        if window and sizes[piece] > room:
            yield window
            window, room = [], WINDOW
        window.append(piece)
        room -= sizes[piece]
    yield window


def _stacked(examples: Sequence[Arrays]) -> Arrays:
    return {name: np.stack([one[name] for one in examples]) for name in examples[0]}
