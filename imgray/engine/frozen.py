"""The collection as it was when an output was begun: workers and later runs see that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, WORK, entry_of_file, read_manifest, scratch
from imgray.artifacts.walk import Entry, Skipped
from imgray.data.collections import Collection
from imgray.engine.earlier import VANISHED, Earlier
from imgray.engine.growing import Growing, Whole
from imgray.engine.headers import HEADERS, entries_of
from imgray.engine.listing import LISTING, Listing, write
from imgray.engine.pieces import PIECES, Pieces, in_order
from imgray.engine.progress import counted, say
from imgray.errors import CHANGED, UserError

LISTED = f"{WORK}/listing.json"
BEGUN = (LISTED, PIECES, HEADERS)
"""Notes of which the first that is there says that there is work to go on with."""
COLLECTION = "collection"
"""What a manifest tells of the digest of a collection that has one."""


def look(collect: Callable[[], Collection], output: Folder, anew: bool) -> None:
    """Refuse what a glance tells to be a mistake, before anything is loaded, started or removed.

    Unless all is to begin anew, work that has begun goes on with what it has. Raises `UserError`.
    """
    if anew or not any(map(output.sizes, (*BEGUN, NAME))):
        collect().look()


@contextlib.contextmanager
def freeze(
    collection: Collection, output: Folder, other_than: Sequence[str] = ()
) -> Iterator[Whole | Growing]:
    """The listing of an output: as it was when that was begun, or else as it is now.

    Where there is much to list, it goes on within the block.

    Args:
        collection: what is listed.
        output: where the listing is kept.
        other_than: features artifacts; only what they have not is listed.

    Raises:
        UserError: there is nothing, or the collection is known to have changed.
    """
    if output.exists(LISTED):
        listing = Listing.model_validate_json(output.read(LISTED))
    elif output.exists(NAME):
        listing = _published(output)
        output.write(LISTED, listing.model_dump_json().encode())
    else:
        with _begun(collection, output, other_than) as found:
            yield found
        return
    if listing.digest != collection.digest:
        raise UserError(f"{collection.uri}: {CHANGED}")
    yield Whole(listing, output)


@contextlib.contextmanager
def _begun(
    collection: Collection, output: Folder, other_than: Sequence[str]
) -> Iterator[Whole | Growing]:
    earlier, pieces = _opened(collection, other_than), Pieces(output)
    # What has vanished is told by all that there is.
    goes_on = collection.grows and not earlier
    skipped = pieces.skipped if goes_on else Skipped()
    making = _Making(collection, output, earlier, pieces, skipped)
    entries = making.entries(pieces.after if goes_on else "")
    resumed = bool(pieces.known.pieces)
    if collection.grows and not pieces.known.pieces:
        entries = pieces.begin(entries, making.skipped)
    if not pieces.known.pieces:
        listing = making.end(partial(write, entries))
        making.tell(listing)
        yield Whole(listing, output)
        return
    if pieces.known.whole and not earlier:
        entries = iter(())
    rest = in_order(entries, pieces.after, collection.uri, resumed)
    with Growing(pieces, rest, making.skipped, making.end, making.tell) as growing:
        yield growing


@dataclass(frozen=True)
class _Making:
    """A listing while it is made."""

    collection: Collection
    output: Folder
    earlier: Earlier | None
    pieces: Pieces
    skipped: Skipped

    def entries(self, after: str) -> Iterator[Entry]:
        """What is to be listed after an id."""
        if after:
            return self.collection.rest(after, self.skipped)
        entries = entries_of(self.collection, self.output, self.skipped)
        told = f"{self.collection.uri}: listed"
        entries = counted(entries, told, lambda: not self.pieces.known.pieces)
        return self.earlier.fresh(entries) if self.earlier else entries

    def end(self, write: Callable[[Path], int]) -> Listing:
        """Keep all of it, which `write` writes to a file: how many there are."""
        with scratch() as folder:
            total = write(folder / LISTING)
            if not total + (self.earlier.unchanged if self.earlier else 0):
                raise self._nothing()
            file = entry_of_file(folder / LISTING, total)
            listing = Listing(images=total, file=file, digest=self.collection.digest)
            if self.earlier:
                gone = self.earlier.write_vanished(folder / VANISHED)
                listing.vanished = entry_of_file(folder / VANISHED, gone)
            for one in listing.files:
                self.output.upload(folder / one.name, one.name)
        self.output.write(LISTED, listing.model_dump_json().encode())
        return listing

    def tell(self, listing: Listing) -> None:
        """Say what is not in it."""
        if self.skipped.counts:
            say(f"{self.collection.uri}: passed over {self.skipped}")
        if self.earlier and listing.vanished:
            say(
                f"{self.collection.uri}: {self.earlier.unchanged:,} images are as they were listed "
                f"before (with {self.earlier.rejected:,} rejected ones), {listing.images:,} new or "
                f"changed, {listing.vanished.rows:,} vanished"
            )

    def _nothing(self) -> UserError:
        found = f", but {self.skipped}" if self.skipped.counts else ""
        way = "--stored tar" if ".tar" in self.skipped.counts else "--suffixes"
        return UserError(f"{self.collection.uri}: no images here{found}; see {way}")


def _opened(collection: Collection, other_than: Sequence[str]) -> Earlier | None:
    if not other_than:
        return None
    if not collection.named:
        raise UserError(
            f"--except: {collection.uri} has no ids but the numbers of its rows, which tell none "
            "from another; say --columns id=COLUMN"
        )
    try:
        return Earlier([Folder(uri) for uri in other_than])
    except UserError as error:
        raise UserError(f"--except: {error}") from None


def _published(output: Folder) -> Listing:
    manifest = read_manifest(output)
    file = manifest.file(LISTING)
    vanished = next(iter(manifest.named(VANISHED)), None)
    digest = manifest.about.get(COLLECTION)
    return Listing(images=file.rows, file=file, digest=digest, vanished=vanished)
