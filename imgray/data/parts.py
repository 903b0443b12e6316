"""Parts of a data set that are rows of a table, or records in tars."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from imgray.artifacts.walk import is_text
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Label
from imgray.data.labels import labels_of, read_labels
from imgray.data.names import Names, Snapshot
from imgray.data.pixels import Rejected
from imgray.data.records import Parts
from imgray.data.tables import Table
from imgray.data.tars import SCANS, Tars
from imgray.errors import UserError, brief

TOGETHER = 65_536
"""Records in tars that are listed at a time, before they are held as texts of Arrow."""
TARS, ID = "(tars)", "id"
"""Of what a snapshot holds of tars: themselves, and the ids of their records."""


class TablePart(Dataset):
    """The rows of a table that are a part.

    Args:
        snapshot: of the data set.
        table: of it.
        part: its name.
        divided: the column `split` tells its rows from those of other parts; otherwise all are.
    """

    def __init__(self, snapshot: Snapshot, table: Table, part: str, divided: bool) -> None:
        snapshot.check_table(table.name, table.file.digest)
        self.given = snapshot, table, part, divided
        self.table, self.part = table, part
        self.rows = self._rows() if divided else np.arange(len(table))
        self.names = table.ids.take(self.rows)
        labels = [name for name, one in table.fields.items() if isinstance(one, Label)]
        self.label = next((name for name in labels if table.has(name)), None)
        if self.label:
            self.classes, self.column = read_labels(table, self.label)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the table itself."""
        return type(self), self.given

    def __getitem__(self, index: int) -> Record:
        row = int(self.rows[index])
        [found] = self.table.rows([row])
        group = self.table.group(row)
        label = {self.label: int(self.column[row])} if self.label else {}
        return found | ({} if group is None else {"group": group}) | label

    def values(self, name: str) -> Iterator[Any]:
        own = name in self.table.cells and name != self.label
        return self.table.values(name, self.rows) if own else super().values(name)

    def labels(self) -> NDArray[np.int64]:
        return self.column[self.rows] if self.label else super().labels()

    @property
    def groups(self) -> Names:
        return (self.table.groups or self.table.ids).take(self.rows)

    @property
    def keys(self) -> Names:
        if self.table.groups is None and not self.table.has("id"):
            raise UserError(
                f"{self.table.place}: hold_out needs a column 'id' or 'group', as the numbers of "
                "rows change when others come or go; say --columns id=COLUMN or group=COLUMN"
            )
        return self.groups

    @cached_property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        groups = self.table.groups_of(self.rows)
        return np.bincount(groups, minlength=len(self.table.counts)), self.table.sizes

    def check(self) -> None:
        self.table.check(self.rows)
        if self.label:
            wrong = self.rows[self.column[self.rows] < 0]
            if len(wrong):
                column = self.table.column(self.label)
                raise UserError(f"{self.table.place}: row {wrong[0]}, column {column!r}: missing")

    def _rows(self) -> NDArray[np.int64]:
        splits = self.table.texts("split")
        if splits is None:
            raise UserError(
                f"{self.table.place}: no column 'split', so no part {self.part!r}; say --columns "
                "split=COLUMN, or hold some rows out: --set data.hold_out=0.1 data.validate=null"
            )
        found = np.flatnonzero(np.asarray(pc.equal(splits, self.part)))
        if not len(found):
            have = ", ".join(map(brief, sorted(pc.unique(splits).to_pylist())[:20]))
            column = self.table.column("split")
            raise UserError(
                f"{self.table.place}: no row whose {column} is {self.part!r}; there are {have}"
            )
        return found


class TarPart(Dataset):
    """The records in tars that are a part.

    Headers and labels are read once; then each member by itself, as those that an epoch takes one
    after the other are seldom neighbours.

    Args:
        snapshot: of the data set: what of the tars is found once, another process takes from it.
        tars: of the part.
        part: its name.
    """

    def __init__(self, snapshot: Snapshot, tars: Tars, part: str) -> None:
        self.given = snapshot, tars, part
        self.snapshot, self.tars, self.part = snapshot, tars, part
        inputs = tars.inputs.items()
        self.label = next((name for name, one in inputs if isinstance(one, Label)), None)
        self.places = snapshot.tars(part, self._found)
        self.names = Names(self.places.pop(ID))
        listed = map(json.loads, self.places.pop(TARS).to_pylist())
        self.shards, self.versions, counts = zip(*listed, strict=True)
        self.firsts = np.cumsum([0, *counts])
        if self.label and self.places[self.label].null_count == len(self):
            self.label = None
        if self.label:
            texts = self.places.pop(self.label)
            place = f"{tars.uri}: member {self._wanted(self.label)!r}"
            self.classes, self.column = labels_of(texts, place)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process takes the places from the snapshot, rather than be sent them."""
        return type(self), self.given

    def __getitem__(self, index: int) -> Record:
        values = {name: self._value(name, index) for name in self.places}
        found = {name: value for name, value in values.items() if value is not None}
        label = {self.label: int(self.column[index])} if self.label else {}
        return {"id": self.names[index]} | found | label

    def values(self, name: str) -> Iterator[Any]:
        if name not in self.places:
            return super().values(name)
        return (self._value(name, index, direct=False) for index in range(len(self)))

    def labels(self) -> NDArray[np.int64]:
        return self.column if self.label else super().labels()

    @cached_property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sizes = [int(version.split()[0]) for version in self.versions]
        return np.diff(self.firsts), np.array(sizes, np.int64)

    def check(self) -> None:
        if self.snapshot.kept:
            with ThreadPoolExecutor(SCANS) as threads:
                found = threads.map(self.tars.shards.folder.version, self.shards)
                for name, version, now in zip(self.shards, self.versions, found, strict=True):
                    if now != version:
                        raise self.snapshot.changed(name)
        for name, column in self.places.items():
            if not self.tars.inputs[name].optional:
                self._refuse_missing(name, np.asarray(column.is_null()))
        if self.label:
            self._refuse_missing(self.label, self.column < 0)

    def _value(self, name: str, index: int, direct: bool = True) -> Any:
        """An input of a record; None where an optional one is absent. Raises `UserError`."""
        place = self.places[name][index].as_py()
        if place is None:
            if not self.tars.inputs[name].optional:
                self._refuse_missing(name, np.arange(len(self)) == index)
            return None
        extension, *part = place.rsplit(" ", 3)
        tar = self.shards[np.searchsorted(self.firsts, index, side="right") - 1]
        try:
            return self.tars.value(name, tar, extension, [int(number) for number in part], direct)
        except Rejected as error:
            raise UserError(f"{self._record(self.names[index])}: {error}") from None

    def _refuse_missing(self, name: str, rows: NDArray[np.bool_]) -> None:
        if rows.any():
            place = self._record(self.names[int(rows.argmax())])
            count = f" ({rows.sum():,} in all)" if rows.sum() > 1 else ""
            raise UserError(f"{place}: member {self._wanted(name)!r}: missing{count}")

    def _found(self) -> dict[str, pa.Array]:
        """What the tars hold: of each its name, version and records, of records ids and places.

        The place of an input is the extension of its member, and where that lies; of the label it
        is the label itself.
        """
        counts, versions = Counter[str](), dict[str, str]()
        columns: dict[str, list[pa.Array]] = {name: [] for name in (ID, *self.tars.inputs)}
        entries = self.tars.entries(self.snapshot.skipped)
        while some := list(islice(entries, TOGETHER)):
            ids, where = [one.id for one in some], [json.loads(one.where) for one in some]
            for entry, (tar, _) in zip(some, where, strict=True):
                counts[tar] += 1
                versions[tar] = entry.version.rpartition(" ")[0]
            columns[ID].append(pa.array(ids, pa.string()))
            for name in self.tars.inputs:
                found = [self._place(name, id, w[1]) for id, w in zip(ids, where, strict=True)]
                columns[name].append(pa.array(found, pa.string()))
        if not counts:
            self._refuse_empty()
        joined = {name: pa.concat_arrays(column) for name, column in columns.items()}
        self._refuse_lacking(joined)
        listed = [json.dumps([tar, versions[tar], count]) for tar, count in counts.items()]
        return {TARS: pa.array(listed)} | joined

    def _place(self, name: str, id: str, parts: Parts) -> str | None:
        extension = self.tars.extension(name, parts)
        if extension is None:
            return None
        offset, size, check, *text = parts[extension]
        if name != self.label:
            return f"{extension} {offset} {size} {check}"
        label = text[0].strip() if text else ""
        if label and is_text(label):
            return str(label)
        fault = "a text that is not UTF-8" if label else f"{'empty' if text else f'{size:,} bytes'}"
        raise UserError(f"{self._record(id)}: member {extension!r}: {fault}, no class")

    def _refuse_empty(self) -> None:
        skipped = self.snapshot.skipped
        found = f", but {skipped}" if skipped.counts else ""
        raise UserError(
            f"part {self.part!r} of {self.tars.uri}: no records in tars here{found}; see "
            "data.train, data.validate"
        )

    def _refuse_lacking(self, columns: dict[str, pa.Array]) -> None:
        for name, one in self.tars.inputs.items():
            if not one.optional and columns[name].null_count == len(columns[name]):
                raise UserError(
                    f"part {self.part!r} of {self.tars.uri}: no record has a member "
                    f"{self._wanted(name)!r}; say --columns {name}=EXT"
                )

    def _wanted(self, name: str) -> str:
        return ";".join(self.tars.extensions[name])

    def _record(self, id: str) -> str:
        """Where a record lies, for messages."""
        return f"{self.tars.uri}: {brief(id)}"
