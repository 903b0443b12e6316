"""The batches of a run: which examples a step sees, in which order, on which worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgray.data import pixels
from imgray.data.datasets import Dataset, Record
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
        return _stacked(
            [
                self.example(self.train[self._at(n)], np.random.default_rng((self.seed, n)))
                for n in part
            ]
        )

    def validation(self, number: int, rank: int, world: int) -> Arrays:
        """The `number`th batch of the validation examples that fall to a worker."""
        first = (number * world + rank) * self._together
        rows = range(first, min(first + self._together, len(self.val)))
        return _stacked([self.example(self.val[row], None) for row in rows])

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
        return self.batch_size if self.task.one_shape else 1

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, len(self.train))
        return int(_order(self.seed, epoch, len(self.train))[index])


_orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}


def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of an epoch; two are kept, as a batch may reach from one into the next."""
    key = (seed, epoch, count)
    if key not in _orders:
        while len(_orders) >= 4:
            _orders.pop(next(iter(_orders)), None)
        _orders[key] = np.random.default_rng((seed, epoch)).permutation(count)
    return _orders[key]


def _stacked(examples: Sequence[Arrays]) -> Arrays:
    return {name: np.stack([one[name] for one in examples]) for name in examples[0]}
