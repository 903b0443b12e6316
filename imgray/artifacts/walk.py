"""Every file below a folder in the order of their names, one at a time: none is left unnamed."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

HIDDEN, MARKER, SPECIAL = "hidden", "marker of a folder", "pipe, socket or device"
NOT_UTF8, CIRCLE = "with a name that is not UTF-8", "link in a circle"
KINDS = (HIDDEN, MARKER, SPECIAL, NOT_UTF8, CIRCLE)
"""What is passed over whatever its suffix is."""


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
    """Files that a listing passed over, counted by suffix or by one of `KINDS`."""

    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {s or 'without suffix'}" for s, n in sorted(self.counts.items()))
        return f"{self.counts.total()} files of other types ({counts})"


def on_disk(root: str, skipped: Skipped) -> Iterator[Entry]:
    """The files below a folder; links are followed, and one that leads nowhere is listed.

    Only the names of the folders on the way to a file are held. Raises `OSError`.
    """
    waiting = [_sorted(root, "", (_identity(root),))]
    while waiting:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
            continue
        one, id, above = found
        if one.name.startswith("."):
            skipped.counts[HIDDEN] += 1
        elif not _is_text(one.name):
            skipped.counts[NOT_UTF8] += 1
        elif not _is_folder(one):
            yield from _file(one, id, skipped)
        elif (identity := _identity(one.path)) in above:
            skipped.counts[CIRCLE] += 1
        else:
            waiting.append(_sorted(one.path, f"{id}/", (*above, identity)))


def in_s3(file_system: Any, root: str, skipped: Skipped) -> Iterator[Entry]:
    """The objects below a prefix, a page at a time. Raises `OSError`."""
    bucket, _, prefix = root.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    wanted = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = file_system.call_s3("list_objects_v2", **wanted)
        for one in page.get("Contents", ()):
            id = one["Key"][len(prefix) :]
            if not id or id.endswith("/"):
                skipped.counts[MARKER] += 1
            elif id.startswith(".") or "/." in id:
                skipped.counts[HIDDEN] += 1
            else:
                yield Entry(id, int(one["Size"]), str(one.get("ETag", "")).strip('"'))
        if not page.get("IsTruncated"):
            return
        wanted["ContinuationToken"] = page["NextContinuationToken"]


Found = tuple["os.DirEntry[str]", str, tuple[tuple[int, int], ...]]
"""A name in a folder, its id, and what the folders above it are."""


def _sorted(top: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    """What lies in a folder, where the order of whole paths wants it."""
    with os.scandir(top) as found:
        ordered = sorted(found, key=lambda one: f"{one.name}/" if _is_folder(one) else one.name)
    for one in ordered:
        yield one, f"{prefix}{one.name}", above


def _file(one: os.DirEntry[str], id: str, skipped: Skipped) -> Iterator[Entry]:
    try:
        found = one.stat()
    except FileNotFoundError:
        yield Entry(id, 0)
        return
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        skipped.counts[CIRCLE] += 1
        return
    if stat.S_ISREG(found.st_mode):
        yield Entry(id, found.st_size, str(found.st_mtime_ns))
    else:
        skipped.counts[SPECIAL] += 1


def _is_folder(one: os.DirEntry[str]) -> bool:
    try:
        return one.is_dir()
    except OSError:  # `_file` says what it is
        return False


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
