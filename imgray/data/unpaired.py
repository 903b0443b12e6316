"""Two domains of pictures that belong together only as wholes, as translation learns from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgray.data.datasets import Dataset, Record
from imgray.errors import UserError

DOMAINS = ("x", "y")


class Unpaired(Dataset):
    """The pictures of a labelled data set by their two classes, the domains x and y.

    A record holds an `image` of each, under these names. It is as long as the larger domain; the
    other begins again. Where the domains hold pairs, those of one rank in the order of names belong
    together, and without chance they come so.

    Args:
        whole: the data set.

    Raises:
        UserError: it has not two classes, or one of them no picture.
    """

    def __init__(self, whole: Dataset) -> None:
        self.whole, self.part, self.classes = whole, whole.part, whole.classes
        if len(self.classes) != len(DOMAINS):
            have = ", ".join(self.classes) or "none"
            raise UserError(f"part {self.part!r}: two classes are needed, the domains; not {have}")
        labels = whole.labels()
        self.rows = [np.flatnonzero(labels == place) for place in range(len(DOMAINS))]
        for name, rows in zip(self.classes, self.rows, strict=True):
            if not len(rows):
                raise UserError(f"part {self.part!r}: no picture of domain {name!r}")
        self.names = whole.names.take(max(self.rows, key=len))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.whole,)

    def __getitem__(self, index: int) -> Record:
        return self._record(index, [index % len(rows) for rows in self.rows])

    def drawn(self, index: int, chance: np.random.Generator) -> Record:
        places = [
            index if len(rows) == len(self) and not place else int(chance.integers(len(rows)))
            for place, rows in enumerate(self.rows)
        ]
        return self._record(index, places)

    def _record(self, index: int, places: list[int]) -> Record:
        taken = zip(DOMAINS, self.rows, places, strict=True)
        images = {name: self.whole[int(rows[at])]["image"] for name, rows, at in taken}
        return {"id": self.names[index], **images}

    @property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.array([len(self)]), np.array([0])

    def check(self) -> None:
        self.whole.check()
