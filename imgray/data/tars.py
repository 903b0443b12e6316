"""Tars as WebDataset writes them: members that share a key, one after the other, are a record.

The key of `a/b.seg.png` is `a/b`, its extension `seg.png`. A tar is never unpacked: its headers are
read once, and then its members by the bytes that they take.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from imgray.artifacts.walk import Entry, Skipped
from imgray.data.fields import Boundaries, Input, Label, Picture, Text, Values, first_picture
from imgray.data.layout import Layout
from imgray.data.members import members
from imgray.data.pixels import MAX_BYTES, SUFFIXES, Rejected
from imgray.data.records import Ids, Parts, Places, records
from imgray.data.shards import Shards, shard_of
from imgray.data.windows import Windows
from imgray.errors import CHANGED, Missing, UserError, brief

SCANS = 8
"""Tars whose headers are read at a time, and of which the entries may wait in memory."""
FOUND = 16
"""Tars of which the places of the records are held, to find pictures by their ids."""
HEAD = 512
"""Bytes of the header before a member, which tell whether the tar is still the one listed."""

Tar = tuple[str, str]
"""The name of a tar, and its version where that is known before it is read."""
Listed = tuple[str, str, Entry]
"""The name of a tar, and the key and the entry of a record in it."""
Scan = Callable[[Sequence[Tar], Skipped], Iterator[Listed]]
"""What reads the headers of tars, in their order."""
Read = Callable[[str, int, int], bytes]
"""The bytes of a tar from one offset to another."""


class Tars:
    """The records of tars.

    Args:
        shards: which tars.
        inputs: by name.
        layout: its columns say which extension holds an input, or several with `;` between them, of
            which the first that is there counts. Else pictures are what has the suffix of one, if
            one input is a picture, texts are `txt`, if one is a text, and labels `cls`.
        by_key: whether the key alone is the id, not SHARD/KEY.

    Raises:
        UserError: an input cannot be read from a tar, or it is not known from which member.
    """

    def __init__(
        self,
        shards: Shards,
        inputs: Mapping[str, Input],
        layout: Layout | None = None,
        by_key: bool = False,
    ) -> None:
        self.shards, self.inputs, self.uri = shards, inputs, shards.uri
        self.layout, self.by_key = layout or Layout(), by_key
        self.extensions = _extensions(shards.uri, inputs, self.layout)
        self._wanted = frozenset(e for own in self.extensions.values() for e in own)
        labels = [name for name, one in inputs.items() if isinstance(one, Label)]
        self._told = tuple(f".{e}" for name in labels for e in self.extensions.get(name, ()))
        self.windows = Windows(shards.folder)
        self._found: OrderedDict[tuple[str, str], Places] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.shards, self.inputs, self.layout, self.by_key)

    def entries(self, skipped: Skipped, scan: Scan | None = None) -> Iterator[Entry]:
        """Records in the order of tars, then of their places.

        In memory are the tars' names, and the keys of a tar, or of all tars where they are ids;
        beside what `scan` holds, which is `scanned` where there is none.

        Raises:
            UserError: a tar cannot be read or is not there, or an id is there twice.
        """
        tars = list(self.shards.found(skipped))
        seen = Ids(self.shards, [name for name, _ in tars], self.by_key)
        for name, key, entry in (scan or self.scanned)(tars, skipped):
            seen.add(name, key)
            yield entry

    def values(self, entry: Entry) -> Values:
        """The inputs of a record.

        Raises:
            Rejected: a member is missing or not what its input takes, or the tar is gone.
            UserError: the tar cannot be read, or is another one by now.
        """
        name, parts = json.loads(entry.where)
        found = {}
        for input, one in self.inputs.items():
            own = self.extension(input, parts)
            if own is not None:
                found[input] = self.value(input, name, own, parts[own])
            elif not one.optional:
                raise Rejected(f"member '{';'.join(self.extensions[input])}': missing")
        return found

    def extension(self, input: str, parts: Container[str]) -> str | None:
        """Which of a record's members is an input; None where none is."""
        return next((e for e in self.extensions.get(input, ()) if e in parts), None)

    def value(
        self, input: str, name: str, extension: str, part: Sequence[int], direct: bool = False
    ) -> Any:
        """One input, from its place in a tar, with its neighbours or directly. As `values`."""
        read = self._directly if direct else self.windows.read
        try:
            if part[1] > MAX_BYTES:
                raise Rejected(f"{part[1]:,} bytes; at most {MAX_BYTES:,} are read")
            return _decoded(self.inputs[input], self._part(read, name, part))
        except Missing:
            raise Rejected("missing: its tar was listed, and is not there any more") from None
        except Rejected as error:
            raise Rejected(f"member '{extension}': {error}") from None

    def picture(self, id: str) -> bytes:
        """The picture of a record, found by the headers of its tar. Raises `UserError`."""
        input = first_picture(self.inputs) or ""
        for name, key in self._candidates(id):
            parts = self._places(name, key) or {}
            own = self.extension(input, parts)
            if own is not None:
                return self._part(self._directly, name, parts[own])
        raise UserError(f"{self.uri}: no picture of '{brief(id)}'")

    def _part(self, read: Read, name: str, part: Sequence[int]) -> bytes:
        offset, size, check = part[:3]
        found = read(name, offset - HEAD, offset + size)
        if len(found) != HEAD + size or zlib.crc32(found[:HEAD]) != check:
            raise UserError(f"{self.shards.folder.place(name)}: {CHANGED}")
        return found[HEAD:]

    def _directly(self, name: str, start: int, end: int) -> bytes:
        return self.shards.folder.read(name, end - start, start)

    def scanned(self, tars: Sequence[Tar], skipped: Skipped) -> Iterator[Listed]:
        """What all tars hold, in order; `SCANS` are read beside each other, and then in memory.

        Raises `UserError`.
        """
        if len(tars) == 1:
            yield from self.listed(*tars[0], skipped)
            return
        waiting: deque[Future[tuple[list[Listed], Skipped]]] = deque()
        threads = ThreadPoolExecutor(SCANS)
        try:
            for name, version in tars:
                waiting.append(threads.submit(self._in_thread, name, version))
                if len(waiting) >= SCANS:
                    yield from _taken(waiting.popleft(), skipped)
            while waiting:
                yield from _taken(waiting.popleft(), skipped)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _in_thread(self, name: str, version: str) -> tuple[list[Listed], Skipped]:
        skipped = Skipped()
        return list(self.listed(name, version, skipped)), skipped

    def listed(self, name: str, version: str, skipped: Skipped) -> Iterator[Listed]:
        """What a tar holds. Raises `UserError`."""
        version = version or self.shards.folder.version(name)
        for key, parts in self._records(name, int(version.split()[0]), skipped):
            yield name, key, self._entry(name, version, key, parts)

    def _records(self, name: str, size: int, skipped: Skipped) -> Iterator[tuple[str, Parts]]:
        found = members(self.shards.folder, name, size, skipped, self._told)
        return records(found, self.shards.folder.place(name), self._wanted, skipped)

    def _entry(self, name: str, version: str, key: str, parts: Parts) -> Entry:
        first = min((part[0] for part in parts.values()), default=0)
        return Entry(
            key if self.by_key else f"{shard_of(name)}/{key}",
            sum(part[1] for part in parts.values()),
            f"{version} {first}",
            json.dumps([name, parts], separators=(",", ":")),
        )

    def _candidates(self, id: str) -> Iterator[tuple[str, str]]:
        """The tars that may hold a record, with its key there."""
        if self.by_key:
            return ((name, id) for name, _ in self.shards.found(Skipped()))
        return self.shards.candidates(id)

    def _places(self, name: str, key: str) -> Parts | None:
        """Where the members of a record lie; None where there is none."""
        folder = self.shards.folder
        if self.shards.name is None and not folder.exists(name):
            return None
        version = folder.version(name)
        with self._lock:
            size = int(version.split()[0])
            places = self._found.pop((name, version), None) or Places(
                self._records(name, size, Skipped())
            )
            found = places.find(key)
            self._found[name, version] = places  # unless the tar could not be read
            if len(self._found) > FOUND:
                self._found.popitem(last=False)
            return found


def _taken(future: Future[tuple[list[Listed], Skipped]], skipped: Skipped) -> list[Listed]:
    found, passed = future.result()
    skipped.update(passed)
    return found


def _decoded(one: Input, data: bytes) -> Any:
    if isinstance(one, Picture):
        return one.value(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Rejected("a text that is not UTF-8") from None
    if isinstance(one, Label):
        text = text.strip()
        return one.value(int(text) if text.isdecimal() and len(text) < 10 else text)
    return one.value(text)


def _extensions(
    uri: str, inputs: Mapping[str, Input], layout: Layout
) -> dict[str, tuple[str, ...]]:
    if layout.root is not None or layout.pattern is not None:
        raise UserError(f"{uri}: root and pattern are of tables; a tar holds what it names")
    for name, column in layout.columns.items():
        if name not in inputs:
            raise UserError(
                f"--columns {name}={column}: nothing is called {name!r} in a tar; "
                f"there are {', '.join(inputs)}"
            )
        if not column.strip(" .;"):
            raise UserError(f"--columns {name}={column}: names no extension, such as jpg;png")
    kinds = [one.type for one in inputs.values()]
    usual = {
        Picture.type: tuple(s[1:] for s in SUFFIXES),
        Text.type: ("txt",),
        Label.type: ("cls",),
    }
    usual = {kind: own for kind, own in usual.items() if kinds.count(kind) == 1}
    found = {}
    for name, one in inputs.items():
        given = layout.columns.get(name, "").lower().split(";")
        own = tuple(e.strip().lstrip(".") for e in given if e.strip(" .")) or usual.get(one.type)
        if own and not isinstance(one, Boundaries):
            found[name] = own
        elif not one.optional:
            way = "take a table" if isinstance(one, Boundaries) else f"say --columns {name}=EXT"
            raise UserError(f"{uri}: of which members {name} ({one.type}) is, is not known; {way}")
    return found
