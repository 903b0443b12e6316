"""What a batch job passes over: records in a fixed order, each with its inputs by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import Entry, Skipped, with_suffix
from imgray.data.fields import Input, Picture, Values, first_picture, sole_picture
from imgray.data.inventory import Inventory
from imgray.data.layout import HOW, Layout, Stored
from imgray.data.pixels import MAX_BYTES, SUFFIXES, Rejected
from imgray.data.rowgroups import SUFFIXES as TABLES
from imgray.data.shards import PACKED, SUFFIX, Shards
from imgray.data.tables import Table, open_table
from imgray.data.tars import Tars
from imgray.errors import CHANGED, Missing, UserError, brief

UNORDERED = "--x-s3"
"""How buckets of S3 Express end, which list in no order."""


class Collection(ABC):
    """Records at a URI, to be read on any worker.

    Attributes:
        uri: where they lie.
    """

    uri: str

    @property
    def digest(self) -> str | None:
        """What tells it from another version of it, where that can be told at once."""
        return None

    @property
    def named(self) -> bool:
        """Whether its ids stay the same when records come and go."""
        return True

    @property
    def grows(self) -> bool:
        """Whether work begins while it is listed: its ids come in the order of their bytes."""
        return False

    @abstractmethod
    def entries(self, skipped: Skipped) -> Iterator[Entry]:
        """Its records in their order; what is none is counted in `skipped`. Raises `UserError`."""

    @abstractmethod
    def look(self) -> None:
        """Raise `UserError` where a glance tells that there is nothing to list."""

    def rest(self, after: str, skipped: Skipped) -> Iterator[Entry]:
        """Those of its entries that come after an id, where it grows."""
        raise NotImplementedError

    @abstractmethod
    def values(self, number: int, entry: Entry) -> Values:
        """The inputs of the `number`th of its entries; several threads may ask.

        Raises:
            Rejected: the record lacks an input, or has one that cannot be read.
            UserError: the collection cannot be read.
        """

    @abstractmethod
    def picture(self, id: str) -> bytes:
        """The encoded picture of a record, to be shown. Raises `UserError`."""


class Files(Collection):
    """Pictures below a folder or S3 prefix: their ids are paths relative to it.

    Args:
        folder: which.
        name: the input that a picture is.
        suffixes: of the files that count, or `*`.
        inventory: that lists them, instead of S3.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        suffixes: Sequence[str] = SUFFIXES,
        inventory: Inventory | None = None,
    ) -> None:
        self.folder, self.name, self.suffixes = folder, name, tuple(suffixes)
        self.uri, self.inventory = folder.uri, inventory

    @property
    def grows(self) -> bool:
        return self.inventory is None and not self.folder.root.partition("/")[0].endswith(UNORDERED)

    def look(self) -> None:
        if not self.inventory:
            self.folder.look()

    def entries(self, skipped: Skipped) -> Iterator[Entry]:
        if self.inventory:
            return with_suffix(self.inventory.entries(self.folder, skipped), self.suffixes, skipped)
        return self.rest("", skipped)

    def rest(self, after: str, skipped: Skipped) -> Iterator[Entry]:
        """The end is believed only where something is still there: what is unmounted is empty."""
        found = bool(after)
        for entry in self.folder.walk(self.suffixes, skipped, after):
            found = True
            yield entry
        if found and not self.folder.answers(""):
            raise UserError(
                f"{self.uri}: nothing is there any more, where files were listed before; run it "
                "again when their store is back"
            )

    def values(self, number: int, entry: Entry) -> Values:
        if entry.size > MAX_BYTES:
            raise Rejected(f"file of {entry.size:,} bytes; at most {MAX_BYTES:,}")
        try:
            data = self.folder.read(entry.id, MAX_BYTES + 1)
        except Missing:
            raise Rejected("missing: it was listed, and is not there any more") from None
        if len(data) > MAX_BYTES:
            raise Rejected(f"file of more than {MAX_BYTES:,} bytes, which are read at most")
        return {self.name: data}

    def picture(self, id: str) -> bytes:
        return self.folder.read(id)


class Rows(Collection):
    """The rows of a table, whose columns hold or name the inputs."""

    def __init__(self, table: Table) -> None:
        self.table, self.uri = table, table.place

    @property
    def digest(self) -> str | None:
        return self.table.file.digest

    @property
    def named(self) -> bool:
        return self.table.has("id")

    def look(self) -> None:
        """It was there when it was opened."""

    def entries(self, skipped: Skipped) -> Iterator[Entry]:
        return (Entry(id, 0, where=str(row)) for row, id in enumerate(self.table.ids))

    def values(self, number: int, entry: Entry) -> Values:
        place = int(entry.where or number)
        row = self.table.row(place)
        if row.pop("id") != entry.id:
            raise UserError(
                f"{self.uri}: row {place} is not '{brief(entry.id)}' any more; {CHANGED}"
            )
        return row

    def picture(self, id: str) -> bytes:
        name = first_picture(self.table.fields)
        row = pc.index(self.table.ids.array, pa.scalar(id)).as_py()
        if name is None or row < 0:
            raise UserError(f"{self.uri}: no picture of '{brief(id)}'")
        try:
            found: bytes = self.table.row(row)[name]
        except (Rejected, KeyError) as error:
            raise UserError(f"{self.uri}: {brief(id)}: {error}") from None
        return found


class Packed(Collection):
    """The records in tars."""

    def __init__(self, tars: Tars) -> None:
        self.tars, self.uri = tars, tars.uri

    def look(self) -> None:
        self.tars.shards.look()

    def entries(self, skipped: Skipped) -> Iterator[Entry]:
        return self.tars.entries(skipped)

    def values(self, number: int, entry: Entry) -> Values:
        return self.tars.values(entry)

    def picture(self, id: str) -> bytes:
        return self.tars.picture(id)


def open_collection(
    uri: str,
    inputs: Mapping[str, Input],
    layout: Layout | None = None,
    suffixes: Sequence[str] = SUFFIXES,
    features: Mapping[str, str] | None = None,
    stored: Stored | None = None,
    ids: str | None = None,
    inventory: str | None = None,
) -> Collection:
    """The collection at a URI, for a job that takes these inputs: a folder, a table, or tars.

    Args:
        uri: where it lies.
        inputs: by name.
        layout: of a table; of tars the extensions of the members that are inputs.
        suffixes: of the files of a folder that count, or `*`.
        features: of a table, by input the features artifact that holds it
            (`imgray.data.joins`).
        stored: how, where the URI does not say it.
        ids: of tars, `key` where SHARD/KEY is not to be the id.
        inventory: of a folder in S3, URI of the manifest of the S3 Inventory that lists it.

    Raises:
        UserError: it cannot be opened, or lacks an input.
    """
    kind = kind_of(uri, stored)
    if ids and kind != "tar":
        raise UserError(f"{uri}: --ids are of tars; with a folder of them, say --stored tar")
    if inventory is not None and not (kind == "files" and Folder(uri).is_s3):
        raise UserError(
            f"{uri}: an --inventory lists images at s3://BUCKET/PREFIX alone; leave it off"
        )
    if kind == "tar":
        if features:
            raise UserError(f"{uri}: --features are joined to a table ({', '.join(TABLES)})")
        return Packed(Tars(Shards(uri), inputs, layout, ids == "key"))
    if kind == "table":
        return Rows(open_table(uri, inputs, layout, features))
    if layout not in (None, Layout()):
        raise UserError(f"{uri}: columns, root and pattern are of tables ({', '.join(TABLES)})")
    if features:
        raise UserError(f"{uri}: --features are joined to a table ({', '.join(TABLES)})")
    name = sole_picture(inputs)
    if name is None:
        wanted = ", ".join(f"{name} ({one.type})" for name, one in inputs.items())
        raise UserError(f"{uri}: a folder holds pictures alone, but needed are {wanted}: a table")
    listed = None if inventory is None else Inventory(inventory)
    return Files(Folder(uri), name, suffixes, listed)


def kind_of(uri: str, stored: Stored | None = None) -> Stored:
    """How a collection is stored, as a flag or its URI says. Raises `UserError`."""
    told = told_by(uri)
    if stored and told and stored != told:
        raise UserError(f"--stored {stored}: {uri} is a {told} by its name; leave --stored off")
    if stored == "table" and not told:
        raise UserError(f"--stored table: {uri} is none by its name; name a {' or '.join(TABLES)}")
    return stored or told or "files"


def told_by(uri: str) -> Stored | None:
    """How what lies at a URI is stored, where its name says it."""
    if uri.lower().endswith(TABLES):
        return "table"
    return "tar" if uri.lower().endswith((SUFFIX, *PACKED)) else None


def collection_of(about: Mapping[str, Any]) -> Collection:
    """The collection from which a features or index artifact was made, as its manifest tells.

    Raises:
        UserError: it is not there any more.
    """
    how = {key: about[key] for key in HOW if key in about}
    layout = Layout(**about.get("layout", {}))
    return open_collection(about["images"], {"image": Picture()}, layout, **how)
