"""The collection as it was when an output was begun: workers and later runs see that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, WORK, FileEntry, entry_of_file, read_manifest, scratch
from imgray.artifacts.walk import Skipped
from imgray.data.collections import Collection
from imgray.engine.earlier import VANISHED, Earlier
from imgray.engine.headers import HEADERS, entries_of
from imgray.engine.listing import LISTING, write
from imgray.engine.progress import say
from imgray.errors import CHANGED, UserError

LISTED = f"{WORK}/listing.json"
COLLECTION = "collection"
"""What a manifest tells of the digest of a collection that has one."""


class Listing(BaseModel):
    """What was listed when an output was begun.

    Attributes:
        images: how many records there are.
        file: the listing itself.
        digest: what tells the collection from another version of it.
        vanished: those of an earlier extraction that are not there any more, if there was one.
    """

    images: int
    file: FileEntry
    digest: str | None = None
    vanished: FileEntry | None = None

    @property
    def files(self) -> list[FileEntry]:
        """All of the artifact."""
        return [self.file] + ([self.vanished] if self.vanished else [])


def freeze(collection: Collection, output: Folder, other_than: Sequence[str] = ()) -> Listing:
    """The listing of an output: as it was when that was begun, or else as it is now.

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
        return _begun(collection, output, other_than)
    if listing.digest != collection.digest:
        raise UserError(f"{collection.uri}: {CHANGED}")
    return listing


def _begun(collection: Collection, output: Folder, other_than: Sequence[str]) -> Listing:
    earlier = _opened(collection, other_than)
    with scratch() as folder:
        listing = _listed(collection, output, earlier, folder)
        for file in listing.files:
            output.upload(folder / file.name, file.name)
    output.write(LISTED, listing.model_dump_json().encode())
    return listing


def _listed(
    collection: Collection, output: Folder, earlier: Earlier | None, folder: Path
) -> Listing:
    skipped = Skipped()
    entries = entries_of(collection, output, skipped)
    total = write(earlier.fresh(entries) if earlier else entries, folder / LISTING)
    if not total + (earlier.unchanged if earlier else 0):
        output.remove(HEADERS)
        found = f", but {skipped}" if skipped.counts else ""
        way = "--stored tar" if ".tar" in skipped.counts else "--suffixes"
        raise UserError(f"{collection.uri}: no images here{found}; see {way}")
    if skipped.counts:
        say(f"{collection.uri}: passed over {skipped}")
    listing = Listing(
        images=total, file=entry_of_file(folder / LISTING, total), digest=collection.digest
    )
    if earlier:
        gone = earlier.write_vanished(folder / VANISHED)
        listing.vanished = entry_of_file(folder / VANISHED, gone)
        say(
            f"{collection.uri}: {earlier.unchanged:,} images are as they were listed before (with "
            f"{earlier.rejected:,} rejected ones), {total:,} new or changed, {gone:,} vanished"
        )
    return listing


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
