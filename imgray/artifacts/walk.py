"""Every file below a folder in the order of their names, one at a time: none is left unnamed."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from imgray.errors import brief

HIDDEN, MARKER, SPECIAL = "hidden", "marker of a folder", "pipe, socket or device"
NOT_UTF8, CIRCLE = "with a name that is not UTF-8", "link in a circle"
"""What is passed over whatever its suffix is."""
Object = tuple[str, int, str]
"""Key, size and ETag of an object in S3."""
MANY, KINDS = 10, 1000
"""Suffixes that a line names, and those that are counted each by itself."""
OTHERS = "of further suffixes"


@dataclass(frozen=True)
class Entry:
    """One record of a collection.

    Attributes:
        id: of a file its path relative to the root.
        size: in bytes, where that is known before it is read.
        version: what changes when it is written anew; empty where that is not known.
        where: how its collection finds it, where the id does not say it.
    """

    id: str
    size: int
    version: str = ""
    where: str = ""


@dataclass
class Skipped:
    """What a listing passed over, counted by suffix or by what else it is.

    places: by what is damaged the first thing that is.
    """

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, place: str = "") -> None:
        """Count one."""
        self._count(kind, 1)
        if place:
            self.places.setdefault(kind, place)

    def update(self, others: Skipped) -> None:
        """Count what another has counted, after this."""
        for kind, count in others.counts.items():
            self._count(kind, count)
        self.places = others.places | self.places

    def _count(self, kind: str, count: int) -> None:
        own = kind in self.counts or len(self.counts) < KINDS
        self.counts[kind if own else OTHERS] += count

    def __str__(self) -> str:
        named = dict(self.counts.most_common(MANY)) | {k: self.counts[k] for k in self.places}
        counts = [f"{n} {self._told(kind)}" for kind, n in sorted(named.items())]
        if rest := len(self.counts) - len(named):
            counts.append(f"{rest} more kinds")
        return f"{self.counts.total()}: {', '.join(counts)}"

    def _told(self, kind: str) -> str:
        place = f" (first: {self.places[kind]})" if kind in self.places else ""
        return f"{brief(kind) or 'without suffix'}{place}"


def on_disk(root: str, skipped: Skipped, after: str = "") -> Iterator[Entry]:
    """The files below a folder; links are followed, and one that leads nowhere is listed.

    What comes no later than the id `after` is left out, whole folders unread. What lies in the
    folders on the way to a file is held, about 1 kB a name. Raises `OSError`.
    """
    waiting = [_sorted(root, "", (_identity(root),), after)]
    while waiting:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
            continue
        one, id, above = found
        if is_hidden(one.name):
            skipped.add(HIDDEN)
        elif not is_text(one.name):
            skipped.add(NOT_UTF8)
        elif not _is_folder(one):
            yield from _file(one, id, skipped)
        elif (identity := _identity(one.path)) in above:
            skipped.add(CIRCLE)
        elif identity:
            waiting.append(_sorted(one.path, f"{id}/", (*above, identity), after))


def in_s3(file_system: Any, root: str, skipped: Skipped, after: str = "") -> Iterator[Entry]:
    """The objects below a prefix, after an id, a page at a time. Raises `OSError`."""
    bucket, prefix = bucket_and_prefix(root)
    wanted = {"Bucket": bucket, "Prefix": prefix}
    if after:
        wanted["StartAfter"] = prefix + after
    return objects(_pages(file_system, wanted), prefix, skipped)


def bucket_and_prefix(root: str) -> tuple[str, str]:
    """The bucket of a folder in S3, and what the keys in it begin with."""
    bucket, _, prefix = root.partition("/")
    return bucket, f"{prefix}/" if prefix else ""


def objects(found: Iterable[Object], prefix: str, skipped: Skipped) -> Iterator[Entry]:
    """The files among objects whose keys begin with a prefix."""
    for key, size, etag in found:
        id = key[len(prefix) :]
        if not id or id.endswith("/"):
            skipped.add(MARKER)
        elif is_hidden(id):
            skipped.add(HIDDEN)
        else:
            yield Entry(id, size, etag.strip('"'))


def with_suffix(
    entries: Iterable[Entry], suffixes: Sequence[str], skipped: Skipped
) -> Iterator[Entry]:
    """Those of some suffixes, in lower case with a dot; all where `*` is one of them."""
    for entry in entries:
        suffix = os.path.splitext(entry.id)[1].lower()
        if suffix in suffixes or "*" in suffixes:
            yield entry
        else:
            skipped.add(suffix)


def _pages(file_system: Any, wanted: dict[str, str]) -> Iterator[Object]:
    while True:
        page = file_system.call_s3("list_objects_v2", **wanted)
        for one in page.get("Contents", ()):
            yield one["Key"], int(one["Size"]), str(one.get("ETag", ""))
        if not page.get("IsTruncated"):
            return
        if not page.get("NextContinuationToken"):
            raise OSError("the store says that there are more objects, but not how to go on")
        wanted["ContinuationToken"] = page["NextContinuationToken"]


Identity = tuple[int, ...]
"""Of a folder, by whatever path; empty where there is none."""
Found = tuple["os.DirEntry[str]", str, tuple[Identity, ...]]
"""A name in a folder, its id, and what the folders above it are."""


def _sorted(top: str, prefix: str, above: tuple[Identity, ...], after: str) -> Iterator[Found]:
    """What lies in a folder, where the order of whole paths wants it."""
    try:
        with os.scandir(top) as found:
            ordered = sorted(found, key=_key)
    except FileNotFoundError:
        if not prefix or _identity(top[: -len(prefix)]) != above[0]:
            raise  # all has gone, as what is unmounted has
        return  # it went while its parent was listed
    for one in ordered:
        if not after or _reaches(prefix + _key(one), after):
            yield one, f"{prefix}{one.name}", above


def _key(one: os.DirEntry[str]) -> str:
    return f"{one.name}/" if _is_folder(one) else one.name


def _reaches(path: str, after: str) -> bool:
    """Whether a file, or anything in a folder, whose path ends with a slash, comes after an id."""
    return path > after or (path.endswith("/") and after.startswith(path))


def _file(one: os.DirEntry[str], id: str, skipped: Skipped) -> Iterator[Entry]:
    try:
        found = one.stat()
    except FileNotFoundError:
        yield Entry(id, 0)
        return
    except OSError as error:
        if error.errno == errno.ELOOP:
            skipped.add(CIRCLE)
        elif error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):  # where a link leads
            yield Entry(id, 0)
        else:
            raise
        return
    if stat.S_ISREG(found.st_mode):
        yield Entry(id, found.st_size, str(found.st_mtime_ns))
    else:
        skipped.add(SPECIAL)


def _is_folder(one: os.DirEntry[str]) -> bool:
    try:
        return one.is_dir()
    except OSError:  # `_file` says what it is
        return False


def _identity(path: str) -> Identity:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return ()
    return found.st_dev, found.st_ino


def is_hidden(name: str) -> bool:
    """Whether a path, or a folder on it, begins with a dot."""
    return name.startswith(".") or "/." in name


def is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
