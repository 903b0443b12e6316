"""People in pairs: one who keeps pose and body, and one whose clothes are taken."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from imgray.data.datasets import Dataset, Record
from imgray.data.tables import WINDOW
from imgray.errors import UserError

PARTS = ("photo", "pose", "parsing")


class People(Dataset):
    """Photographs of people with pose and parsing, each with another person's.

    A record holds `reference`, its `pose` and `parsing`, the photograph `target` with its
    `target_parsing`, in `ids` whose `reference` and `target` are, and in `own` whether both show
    one person in the same clothes. Rows of one group are views of one person.

    Args:
        whole: records of `PARTS`.
        own: share of the records drawn whose target is another view of the reference, or, of a
            person of whom there is one photograph alone, that photograph itself.

    Raises:
        UserError: records are no such, or of one person alone.
    """

    def __init__(self, whole: Dataset, own: float = 0.0) -> None:
        self.whole, self.own = whole, own
        self.part, self.names = whole.part, whole.names
        lacking = [name for name in PARTS if name not in whole[0]]
        if lacking:
            raise UserError(
                f"part {self.part!r}: records without {', '.join(lacking)}; a table with columns "
                f"of {', '.join(PARTS)} is needed"
            )
        codes = pc.dictionary_encode(pa.chunked_array([whole.groups.array])).combine_chunks()
        self.people = np.asarray(codes.indices)
        if self.people.max() == 0:
            raise UserError(f"part {self.part!r}: one person alone; two at least are needed")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.whole, self.own)

    def __getitem__(self, index: int) -> Record:
        """With the next person of all, the first after the last."""
        other = (index + 1) % len(self)
        while self.people[other] == self.people[index]:
            other = (other + 1) % len(self)
        return self._record(index, other)

    def drawn(self, index: int, chance: np.random.Generator) -> Record:
        """With a view of the same person where chance has it, otherwise with any other person.

        Of a data set that is read in pieces and larger than a window it is any other of that piece,
        unless all of it is one person: so who holds a window reads each piece once in an epoch.
        """
        if self.own and chance.random() < self.own:
            views = np.flatnonzero(self.people == self.people[index])
            views = views[views != index]
            return self._record(index, int(chance.choice(views)) if len(views) else index)
        near = self._near(index)
        while True:
            other = int(chance.integers(near.start, near.stop))
            if self.people[other] != self.people[index]:
                return self._record(index, other)

    @property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.whole.pieces

    def _near(self, index: int) -> range:
        """The rows that a target is drawn from."""
        if len(ends := self._ends):
            piece = np.searchsorted(ends, index, side="right")
            rows = range(int(ends[piece - 1]) if piece else 0, int(ends[piece]))
            if (self.people[rows.start : rows.stop] != self.people[index]).any():
                return rows
        return range(len(self))

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Behind the last row of each piece; empty where all are in a window together."""
        counts, sizes = self.pieces
        return np.cumsum(counts if len(counts) > 1 and sizes.sum() > WINDOW else counts[:0])

    def _record(self, index: int, other: int) -> Record:
        reference = self.whole[index]
        target = reference if other == index else self.whole[other]
        ids = {"reference": reference["id"], "target": target["id"]}
        return {
            "id": f"{ids['reference']} in the clothes of {ids['target']}",
            "ids": ids,
            "own": bool(self.people[index] == self.people[other]),
            "reference": reference["photo"],
            "pose": reference["pose"],
            "parsing": reference["parsing"],
            "target": target["photo"],
            "target_parsing": target["parsing"],
        }

    def check(self) -> None:
        self.whole.check()
