"""Where a data set lies, and how its parts are opened: files, or tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder, located
from imgray.data.datasets import FILES, Dataset, HoldOut, Record, Truth
from imgray.data.fields import Input, Label
from imgray.data.labels import read_labels
from imgray.data.layout import Layout, place_of
from imgray.data.names import WHOLE, Names, Snapshot
from imgray.data.rowgroups import SUFFIXES, shards_of
from imgray.data.tables import Table
from imgray.errors import UserError, brief

Stored = Literal["files", "table"]


class Source:
    """A data set, whose parts share what has been read of it.

    Args:
        uri: of its folder, or of a table.
        layout: of its tables.
        features: by input the features artifact that holds it, as `imgray.data.joins` takes it.
        kept: where its `Snapshot` was saved when a run began.
    """

    def __init__(
        self,
        uri: str,
        layout: Layout | None = None,
        features: Mapping[str, str] | None = None,
        kept: Folder | None = None,
    ) -> None:
        self.uri, self.layout, self.features = uri, layout or Layout(), dict(features or {})
        single = uri.lower().endswith(SUFFIXES)
        self.folder, self.single = located(uri) if single else (Folder(uri), "")
        self.snapshot = Snapshot(self.folder, kept)
        self._tables: dict[str, Table] = {}
        self._parts: dict[Any, Dataset] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri, self.layout, self.features, self.snapshot.kept)

    @property
    def uris(self) -> list[str]:
        """All places that are read."""
        root = [self.layout.root] if self.layout.root else []
        return [self.uri, *root, *map(place_of, self.features.values())]

    def part(
        self,
        part: str,
        fields: Mapping[str, Input] | None = None,
        truth: Truth | None = None,
        stored: Stored | None = None,
        whole: bool = False,
    ) -> Dataset:
        """Open a part, and check its structure.

        Args:
            part: its name.
            fields: what is read of the rows of a table.
            truth: where the truth of files is.
            stored: as what it is stored; by default a table where there is one and `truth` names
                no place in files.
            whole: a table without parts is the part.

        Raises:
            UserError: the part is missing or empty, or is not laid out as it should be.
        """
        key = part, truth, stored, whole
        if key not in self._parts:
            self._parts[key] = self._open(part, fields or {}, truth, stored, whole)
        return self._parts[key]

    def held(self, part: Dataset, fraction: float, held: bool) -> HoldOut:
        """What is held out of a part, or what is not. Raises `UserError` where that is nothing."""
        found = HoldOut(part, fraction, held)
        if not len(found):
            fault = (
                "nothing is held out; hold out more" if held else "all is held out; hold out less"
            )
            place = f"part {part.part!r} of {self.uri}, {len(part)} records"
            raise UserError(f"{place}: hold_out {fraction:g}: {fault}")
        return found

    def _open(
        self,
        part: str,
        fields: Mapping[str, Input],
        truth: Truth | None,
        stored: Stored | None,
        whole: bool,
    ) -> Dataset:
        name = self._table_of(part, truth, stored)
        if name:
            table = self._table(name, fields)
            divided = bool(self.single) and part != WHOLE and (table.has("split") or not whole)
            return TablePart(self.snapshot, table, part, divided)
        self._refuse_flags()
        if truth not in FILES:
            raise UserError(
                f"{self.uri}: neither {part}.parquet nor {part}.csv is here, and data.truth does "
                f"not say where the truth of files is: {', '.join(FILES)}"
            )
        try:
            found = FILES[truth](self.snapshot, part)
        except UserError as error:
            raise UserError(f"part {part!r} of {self.uri}, read as {truth}: {error}") from None
        if not len(found):
            raise UserError(
                f"part {part!r} of {self.uri}: no images; see data.train, data.validate"
            )
        return found

    def _table_of(self, part: str, truth: Truth | None, stored: Stored | None) -> str:
        """The file of the table that holds a part; empty where files do."""
        if self.single:
            if stored == "files":
                raise UserError(f"{self.uri}: a table, but data.stored says files")
            return self.single
        if stored == "files" or (stored is None and truth in FILES):
            return ""
        names = [part + suffix for suffix in SUFFIXES]
        have = [name for name in names if shards_of(self.folder, name)]
        if not have and (stored == "table" or truth == "columns"):
            raise UserError(
                f"part {part!r} of {self.uri}: neither {' nor '.join(names)} is here; see "
                "data.train, data.validate, data.stored"
            )
        return have[0] if have else ""

    def _table(self, name: str, fields: Mapping[str, Input]) -> Table:
        if name not in self._tables:
            table = Table(self.folder, name, fields, self.layout, self.features)
            self._tables[name] = table
        return self._tables[name]

    def _refuse_flags(self) -> None:
        given = {
            "--columns": self.layout.columns,
            "--root": self.layout.root,
            "--pattern": self.layout.pattern,
            "--features": self.features,
        }
        for flag, value in given.items():
            if value:
                raise UserError(f"{flag}: {self.uri} is read as files, which have no columns")


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
