"""Where a data set lies, and how its parts are opened: files, tables, or tars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgray.artifacts.folder import Folder, located
from imgray.data.collections import told_by
from imgray.data.datasets import FILES, Dataset, HoldOut, Truth
from imgray.data.fields import Input
from imgray.data.layout import Layout, Stored, place_of
from imgray.data.names import WHOLE, Snapshot
from imgray.data.parts import TablePart, TarPart
from imgray.data.rowgroups import SUFFIXES, shards_of
from imgray.data.shards import Shards, tars_of
from imgray.data.tables import Table
from imgray.data.tars import Tars
from imgray.errors import UserError


class Source:
    """A data set, whose parts share what has been read of it.

    Args:
        uri: of its folder, or of a table, or of tars: x.tar or x-{00..99}.tar.
        layout: of its tables; of tars the extensions of the members that are inputs.
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
        self.told = told_by(uri)
        self.folder, self.single = located(uri) if self.told else (Folder(uri), "")
        self.snapshot = Snapshot(self.folder, kept)
        self._tables: dict[str, Table] = {}
        self._parts: dict[Any, Dataset] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process takes what was found from the snapshot."""
        return type(self), (self.uri, self.layout, self.features), {"snapshot": self.snapshot}

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
            fields: what is read of the rows of a table, or of records in tars.
            truth: where the truth of files is.
            stored: as what it is stored; by default a table where there is one, or tars that bear
                the part's name, and `truth` names no place in files.
            whole: a table without parts, or tars that the URI names, are the part.

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
        if self.told and stored not in (None, self.told):
            raise UserError(f"{self.uri}: a {self.told}, but data.stored says {stored}")
        name = self._table_of(part, truth, stored)
        if name:
            table = self._table(name, fields)
            divided = bool(self.single) and part != WHOLE and (table.has("split") or not whole)
            return TablePart(self.snapshot, table, part, divided)
        tars = self._tars_of(part, truth, stored, whole)
        if tars:
            self._refuse_features()
            return TarPart(self.snapshot, Tars(tars, fields, self.layout), part)
        if stored == "table" or (stored is None and truth == "columns"):
            names = " nor ".join(part + suffix for suffix in SUFFIXES)
            raise UserError(
                f"part {part!r} of {self.uri}: neither {names} is here; see data.train, "
                "data.validate, data.stored"
            )
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
                f"part {part!r} of {self.uri}: no images; see data.train, data.validate, "
                "data.stored"
            )
        return found

    def _table_of(self, part: str, truth: Truth | None, stored: Stored | None) -> str:
        """The file of the table that holds a part; empty where none does."""
        if self.told == "table":
            return self.single
        if self.told or stored in ("files", "tar") or (stored is None and truth in FILES):
            return ""
        names = (part + suffix for suffix in SUFFIXES)
        return next((name for name in names if shards_of(self.folder, name)), "")

    def _tars_of(
        self, part: str, truth: Truth | None, stored: Stored | None, whole: bool
    ) -> Shards | None:
        """The tars that hold a part; None where none do."""
        if self.told == "tar":
            tars = Shards(self.uri)
            if part != WHOLE and not whole:
                raise UserError(
                    f"{self.uri}: tars named so are one part, '{WHOLE}', so no part {part!r}; hold "
                    "some records out (--set data.hold_out=0.1 data.validate=null), or evaluate "
                    f"on all of them (--part {WHOLE})"
                )
            return tars
        if stored == "tar" or (
            stored is None and truth not in FILES and tars_of(self.folder, part)
        ):
            return Shards(self.uri, "" if part == WHOLE else part)
        return None

    def _table(self, name: str, fields: Mapping[str, Input]) -> Table:
        if name not in self._tables:
            table = Table(self.folder, name, fields, self.layout, self.features)
            self._tables[name] = table
        return self._tables[name]

    def _refuse_features(self) -> None:
        if self.features:
            raise UserError(
                f"--features: {self.uri} is read as tars; they are joined to a table "
                f"({', '.join(SUFFIXES)})"
            )

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
