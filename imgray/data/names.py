"""The names of a data set's records: held cheaply, and frozen when a run begins."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import Skipped
from imgray.data.pixels import SUFFIXES
from imgray.errors import UserError

WHOLE = "."
FROZEN = "data.parquet"


class Names(Sequence[str]):
    """Texts in one array of Arrow, which takes a quarter of the memory of a list."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return self.array[place].to_pylist()
        return self.array[int(place)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self.array[start : start + 4096].to_pylist()

    def take(self, rows: NDArray[np.int64]) -> Names:
        """The names of some records."""
        return Names(self.array.take(pa.array(rows)))


class Snapshot:
    """What a data set consists of: names below its folders, digests of tables, records in tars.

    Args:
        folder: where it lies.
        kept: where `save` has written what was found when a run began, which then holds; without it
            all is looked up, once, and sent along.

    Attributes:
        skipped: what was passed over in tars and beside them.
    """

    def __init__(self, folder: Folder, kept: Folder | None = None) -> None:
        self.folder, self.kept = folder, kept
        self.found: dict[str, pa.Array] = _load(kept) if kept else {}
        self.skipped = Skipped()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.kept), None if self.kept else {"found": self.found}

    def images(self, under: str) -> Names:
        """The images below a folder, by names relative to it. Raises `UserError`."""
        if under not in self.found:
            self._refuse_new(under)
            place = self.folder if under == WHOLE else Folder(f"{_prefix(self.folder)}{under}")
            names = [entry.id for entry in place.walk(SUFFIXES, Skipped())]
            self.found[under] = pa.array(names, pa.string())
        return Names(self.found[under])

    def tars(self, part: str, find: Callable[[], dict[str, pa.Array]]) -> dict[str, pa.Array]:
        """What the tars of a part hold, by column: texts that `find` finds. Raises `UserError`."""
        key = f"{part}.tar: "
        if not any(place.startswith(key) for place in self.found):
            self._refuse_new(f"{part}.tar")
            self.found |= {key + name: column for name, column in find().items()}
        return {p.removeprefix(key): found for p, found in self.found.items() if p.startswith(key)}

    def check_table(self, name: str, digest: str) -> None:
        """Raises `UserError` for a table that has changed since the run began."""
        if not self.kept:
            self.found[name] = pa.array([digest])
        elif name not in self.found or self.found[name].to_pylist() != [digest]:
            raise self.changed(name)

    def changed(self, name: str) -> UserError:
        """What is said of a file that has."""
        return UserError(
            f"{_prefix(self.folder)}{name}: changed since the run began; bring the earlier one "
            "back, or start anew with --overwrite"
        )

    def save(self, folder: Folder) -> None:
        """Write it where it is to be kept."""
        under = [pa.array([place] * len(names)) for place, names in self.found.items()]
        names = list(self.found.values())
        columns = [pa.chunked_array(arrays, pa.string()) for arrays in (under, names)]
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, ["under", "name"]), buffer, compression="zstd")
        folder.write(FROZEN, buffer.getvalue())

    def _refuse_new(self, place: str) -> None:
        if self.kept:
            raise UserError(f"{self.folder.uri}: {place} was not looked at as the run began")


def _prefix(folder: Folder) -> str:
    return folder.uri.rstrip("/") + "/"


def _load(kept: Folder) -> dict[str, pa.Array]:
    file = io.BytesIO(kept.read(FROZEN))
    table = pq.read_table(file, read_dictionary=["under"])
    under, names = table["under"].combine_chunks(), table["name"]  # of all, too long for one array
    codes = under.indices.to_numpy()
    return {
        place: names.filter(pa.array(codes == code)).combine_chunks()
        for code, place in enumerate(under.dictionary.to_pylist())
    }
