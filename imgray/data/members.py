"""The members of a tar, from its headers alone: nothing is unpacked, and nothing believed.

Headers are parsed by Python's `tarfile`, which is told where they lie and how much of the tar it
may read for one: a header that is wrong costs no memory and ends no job.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import HIDDEN, NOT_UTF8, SPECIAL, Skipped, is_hidden, is_text
from imgray.data.shards import packed
from imgray.errors import brief

FOLDER, LINK, SPARSE, UNKNOWN = "folder", "link", "sparse file", "of an unknown kind"
CUT, DAMAGED, BEHIND = "damaged end of a tar", "damaged part of a tar", "behind the end of a tar"
NO_TAR = "no tar"

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a header, and a multiple of which everything takes."""
SEQUENTIAL, NEAR = 8 * 2**20, 2**16
"""Bytes read at once for headers, in S3 and on disk; those that lie farther on are sought out."""
HEADER = 2**18
"""Bytes of a header with all that belongs to it: long names, PAX records, maps of sparse files."""
CHAIN = 16
"""Headers that may belong to one member."""
WASTED = 64 * 2**20
"""Bytes of a tar that may be no headers where some should be, before it is given up."""
LAST = 2**20
"""Bytes behind the end of a tar that are looked at."""
SHORT = 1000
"""Bytes at most of a member that comes along with its place."""
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
FAULTS = (tarfile.TarError, LookupError, ValueError, ArithmeticError, AttributeError, TypeError)
"""What `tarfile` raises for a header that is none."""


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: as the tar has it, without `./` before it.
        offset: of its first byte in the tar.
        size: in bytes, all of which are there.
        check: CRC-32 of the 512 bytes before, which change when the tar is written anew.
        data: its bytes, where those were asked for and are few.
    """

    name: str
    offset: int
    size: int
    check: int
    data: bytes | None = None


def members(
    folder: Folder, name: str, size: int, skipped: Skipped, told: tuple[str, ...] = ()
) -> Iterator[Member]:
    """The files in a tar of `size` bytes that are whole, in their order.

    What is passed over is counted. Where a header is damaged, the next one that is sound is sought,
    as GNU tar does. The bytes of short members whose names end as `told` come along, as they lie in
    what is read for the headers. Raises `UserError`: it cannot be read, or is a compressed one.
    """
    headers = _Headers(folder, name, size)
    at, wasted, lost, sound = 0, 0, False, False
    while at + BLOCK <= size and wasted < WASTED:
        if not lost and _blank(headers.look(at, BLOCK)):
            rest = headers.look(at, min(size - at, LAST))
            if at + LAST < size or not _blank(rest):
                skipped.counts[BEHIND] += 1
            return
        try:
            info, after = headers.read_one(at)
        except (*FAULTS, RecursionError):
            if at == 0 and headers.look(0, BLOCK).startswith(COMPRESSED):
                raise packed(brief(f"{folder.uri.rstrip('/')}/{name}", 500)) from None
            wasted, lost = wasted + headers.spent, True
            at += BLOCK
            continue
        if lost:
            skipped.counts[DAMAGED] += 1
        lost, sound, at = False, True, after
        if info.isreg() and not info.issparse() and info.offset_data + info.size > size:
            break
        if kind := _kind(info):
            skipped.counts[kind] += 1
        else:
            check, short = zlib.crc32(headers.block), info.size <= SHORT
            own = short and info.name.lower().endswith(told)
            data = headers.look(info.offset_data, info.size) if own else None
            yield Member(_name(info), info.offset_data, info.size, check, data)
    skipped.counts[CUT if sound else NO_TAR] += 1


class _Tar(tarfile.TarFile):
    """Reads nothing of itself, and remembers no member."""

    def next(self) -> None:
        return None


class _Headers:
    """The file that `tarfile` reads headers from: by blocks, and only so much for each.

    Attributes:
        block: the header that was read last, without what belongs to it.
        spent: bytes read for the present one.
    """

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        self.folder, self.name, self.size = folder, name, size
        self.step = SEQUENTIAL if folder.is_s3 else NEAR
        self.block, self.spent, self._at = b"", 0, 0
        self._held, self._start, self._chain = b"", 0, 0
        self._awaited: Literal["header", "records", "name", ""] = ""
        file: Any = self
        self.tar = _Tar(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")

    def read_one(self, at: int) -> tuple[tarfile.TarInfo, int]:
        """The header at an offset, and where the next one lies. Raises one of `FAULTS`."""
        self._at, self.spent, self._awaited, self._chain = at, 0, "header", 0
        info, after = tarfile.TarInfo.fromtarfile(self.tar), self.tar.offset
        if sum(map(len, self.tar.pax_headers.values())) > HEADER:
            self.tar.pax_headers = {}
            raise tarfile.ReadError("global headers without end")
        plain = info.isreg() and not info.issparse()
        if after <= at or (plain and not 0 <= after - info.offset_data - info.size < BLOCK):
            raise tarfile.ReadError("a size that cannot be")
        return info, after

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        """What `tarfile` asks for, unless that is too much."""
        if not 0 <= count <= HEADER - self.spent:
            raise tarfile.ReadError("a header too long")
        found = self.look(self._at, count)
        self._at += count
        self.spent += count
        self._follow(found)
        return found

    def look(self, at: int, count: int) -> bytes:
        """Bytes of the tar; fewer at its end. Raises `UserError`."""
        found = b""
        while len(found) < count and at < self.size:
            if not self._start <= at < self._start + len(self._held):
                most = min(self.step, self.size - at)
                self._held, self._start = self.folder.read(self.name, most, at), at
                if not self._held:
                    break
            first = at - self._start
            some = self._held[first : first + count - len(found)]
            found, at = found + some, at + len(some)
        return found

    def _follow(self, found: bytes) -> None:
        """Know which part of a header was read, to check PAX records before they are parsed."""
        if self._awaited == "header":
            self.block, kind, self._chain = found, found[156:157], self._chain + 1
            if self._chain > CHAIN:
                raise tarfile.ReadError("headers without end")
            self._awaited = "records" if kind in b"xgX" else "name" if kind in b"LK" else ""
        elif self._awaited:
            if self._awaited == "records":
                _check_records(found)
            self._awaited = "header"


_LENGTH, _DIGITS = re.compile(rb"(\d{1,9}) "), re.compile(rb"\d{500}")


def _check_records(data: bytes) -> None:
    """Refuse PAX records that are none: they would cost `tarfile` much time and memory."""
    at = 0
    while at < len(data) and data[at]:
        found = _LENGTH.match(data, at)
        end = at + int(found[1]) if found else 0
        if not found or data[end - 1 : end] != b"\n" or data.find(b"=", found.end(), end) < 0:
            raise tarfile.ReadError("PAX records that are none")
        at = end
    if _DIGITS.search(data):
        raise tarfile.ReadError("PAX records of digits")


def _kind(info: tarfile.TarInfo) -> str:
    """As what a member is passed over; empty where it is a file."""
    if info.isdir():
        return FOLDER
    if info.issym() or info.islnk():
        return LINK
    if info.isdev():
        return SPECIAL
    if info.issparse():
        return SPARSE
    if not info.isreg():
        return UNKNOWN
    if not is_text(info.name):
        return NOT_UTF8
    return HIDDEN if is_hidden(_name(info)) else ""


def _name(info: tarfile.TarInfo) -> str:
    name = info.name
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _blank(data: bytes) -> bool:
    return data.count(0) == len(data)
