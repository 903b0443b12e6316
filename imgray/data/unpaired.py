"""Two domains of pictures that belong together only as wholes, as translation learns from them."""

from __future__ import annotations

from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgray.data.datasets import Dataset, Record
from imgray.errors import UserError

DOMAINS = ("x", "y")


class Unpaired(Dataset):
    """The pictures of a labelled data set by their two classes, the domains x and y.

    A record holds a picture of each under these names, and in `ids` whose they are. There are as
    many as the larger domain has pictures; the other begins again, and `new` tells of each domain
    whether it has not yet.

    Args:
        whole: the data set.
        paired: whether pictures of one name, but for folder and suffix, are a pair; then a record
            is such a pair.

    Raises:
        UserError: it has not two classes, or one of them no picture; of pairs, a picture has no
            partner, or two have one name.
    """

    def __init__(self, whole: Dataset, paired: bool = False) -> None:
        self.whole, self.paired = whole, paired
        self.part, self.classes = whole.part, whole.classes
        if len(self.classes) != len(DOMAINS):
            have = ", ".join(self.classes) or "none"
            raise UserError(f"part {self.part!r}: two classes are needed, the domains; not {have}")
        labels = whole.labels()
        self.rows = [np.flatnonzero(labels == place) for place in range(len(DOMAINS))]
        for name, rows in zip(self.classes, self.rows, strict=True):
            if not len(rows):
                raise UserError(f"part {self.part!r}: no picture of domain {name!r}")
        if paired:
            self.rows = self._pairs()
        self.names = whole.names.take(max(self.rows, key=len))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.whole, self.paired)

    def _pairs(self) -> list[np.ndarray]:
        """The rows of both domains, partners at one place."""
        stems = [{self._stem(row): row for row in rows.tolist()} for rows in self.rows]
        for own, other, rows in zip(stems, stems[::-1], self.rows, strict=True):
            for row in rows.tolist():
                if own[stem := self._stem(row)] != row or stem not in other:
                    fault = "two of its name" if own[stem] != row else "no picture of its name"
                    raise UserError(
                        f"{self.whole.names[row]}: settings.paired, but there is {fault} in the "
                        "domain it needs; mend the names, or set paired to false"
                    )
        both = list(stems[0])
        return [np.array([one[stem] for stem in both]) for one in stems]

    def _stem(self, row: int) -> str:
        return PurePosixPath(self.whole.names[row]).stem

    def __getitem__(self, index: int) -> Record:
        new = {name: index < len(rows) for name, rows in zip(DOMAINS, self.rows, strict=True)}
        return self._record([index % len(rows) for rows in self.rows]) | {"new": new}

    def drawn(self, index: int, chance: np.random.Generator) -> Record:
        """Of x each in turn, of y any, as CycleGAN's code has it; of pairs each in turn."""
        if self.paired:
            return self[index]
        x, y = self.rows
        return self._record([index % len(x), int(chance.integers(len(y)))])

    @cached_property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of the larger domain; the other's pictures are read as they are drawn."""
        counts, sizes = self.whole.pieces
        whose = np.repeat(np.arange(len(counts)), counts)[max(self.rows, key=len)]
        return np.bincount(whose, minlength=len(counts)), sizes

    def _record(self, places: list[int]) -> Record:
        taken = zip(DOMAINS, self.rows, places, strict=True)
        found = {name: self.whole[int(rows[at])] for name, rows, at in taken}
        ids = {name: one["id"] for name, one in found.items()}
        images = {name: one["image"] for name, one in found.items()}
        return {"id": " and ".join(ids.values()), "ids": ids, **images}

    def check(self) -> None:
        self.whole.check()
