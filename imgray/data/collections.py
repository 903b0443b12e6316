"""What a batch job passes over: records in a fixed order, each with its inputs by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from imgray.artifacts.folder import Entry, Folder, Skipped
from imgray.data.fields import Input, Values, sole_picture
from imgray.data.pixels import MAX_BYTES, SUFFIXES, Rejected
from imgray.errors import UserError


class Collection(ABC):
    """Records at a URI, to be read on any worker.

    Attributes:
        uri: where they lie.
    """

    uri: str

    @abstractmethod
    def entries(self, skipped: Skipped) -> Iterator[Entry]:
        """Its records in their order; what is none is counted in `skipped`. Raises `UserError`."""

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
    """

    def __init__(self, folder: Folder, name: str, suffixes: Sequence[str] = SUFFIXES) -> None:
        self.folder, self.name, self.suffixes = folder, name, tuple(suffixes)
        self.uri = folder.uri

    def entries(self, skipped: Skipped) -> Iterator[Entry]:
        return self.folder.walk(self.suffixes, skipped)

    def values(self, number: int, entry: Entry) -> Values:
        if entry.size > MAX_BYTES:
            raise Rejected(f"file of {entry.size:,} bytes; at most {MAX_BYTES:,}")
        try:
            return {self.name: self.folder.read(entry.id)}
        except UserError as error:
            if not isinstance(error.__cause__, FileNotFoundError | PermissionError):
                raise
            raise Rejected(str(error)) from None

    def picture(self, id: str) -> bytes:
        return self.folder.read(id)


def open_collection(
    uri: str, inputs: Mapping[str, Input], suffixes: Sequence[str] = SUFFIXES
) -> Collection:
    """The collection at a URI, for a job that takes these inputs. Raises `UserError`."""
    name = sole_picture(inputs)
    if name is None:
        wanted = ", ".join(f"{name} ({one.type})" for name, one in inputs.items())
        raise UserError(f"{uri}: a folder holds pictures alone, but this takes {wanted}")
    return Files(Folder(uri), name, suffixes)
