"""The members of a tar, from its headers alone: nothing is unpacked, and nothing believed.

Headers are parsed by Python's `tarfile`, which is told where they lie and how much of the tar it
may read for one: a header that is wrong costs no memory and ends no job.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import HIDDEN, NOT_UTF8, SPECIAL, Skipped, is_hidden, is_text
from imgray.data.shards import packed
from imgray.errors import CHANGED, UserError

FOLDER, LINK, SPARSE, UNKNOWN = "folder", "link", "sparse file", "of an unknown kind"
CUT, DAMAGED, BEHIND = "damaged end of a tar", "damaged part of a tar", "behind the end of a tar"
GAP, NO_TAR = "gap of zeros in a tar", "no tar"

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a header, and a multiple of which everything takes."""
SEQUENTIAL, NEAR = 8 * 2**20, 2**16
"""Bytes read at once for headers, in S3 and on disk, multiples of `BLOCK`; what lies farther on is
sought out."""
HEADER = 2**18
"""Bytes of a header with all that belongs to it: long names, PAX records, maps of sparse files."""
CHAIN = 16
"""Headers that may belong to one member."""
MAGIC, MAGIC_AT = b"ustar", 257
"""By which a header is known where it is sought: those from before POSIX have none."""
NAME, SIZE, KIND = slice(0, 100), slice(124, 136), slice(156, 157)
"""Fields of a header."""
EXTENDED = (b"x", b"X", b"L", b"K")
"""Kinds of headers that belong to the next one."""
WASTED = 64 * 2**20
"""Bytes read for headers that are none, before a tar is given up: they may be made to cost time."""
GLOBAL = 2**14
"""Bytes of PAX records for all that follows, which every member takes over."""
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

    What is passed over is counted. Where a header is damaged, or zeros stand in its place, the next
    one that is sound is sought: where the damaged one says that it lies, or else block by block. A
    member that may have lost its long name there is lost with it. The bytes of short members whose
    names end as `told` come along, as they lie in what is read for the headers.

    Raises `UserError`: the tar cannot be read, or is a compressed one.
    """
    headers = _Headers(folder, name, size)
    at, fault, sound, unnamed, zeros = 0, "", False, False, True
    while at + BLOCK <= size and headers.wasted < WASTED:
        info, after = headers.header(at) or (None, 0)
        beyond = info is not None and _plain(info) and info.offset_data + info.size > size
        if beyond and not fault:
            break
        if info is None or beyond:
            block = headers.look(at, BLOCK)
            if at == 0 and block.startswith(COMPRESSED):
                raise packed(headers.place)
            fault, unnamed = fault or (GAP if _blank(block) else DAMAGED), block[KIND] in EXTENDED
            at, blank = headers.next(at)
            zeros &= blank
            continue
        if fault:
            skipped.add(fault, headers.place)
            unnamed |= headers.cut_name
        kind = _kind(info)
        if kind:
            skipped.add(kind)
        elif not unnamed:
            check, short = zlib.crc32(headers.block), info.size <= SHORT
            own = short and info.name.lower().endswith(told)
            data = headers.look(info.offset_data, info.size) if own else None
            yield Member(_name(info), info.offset_data, info.size, check, data)
        at, fault, sound, unnamed, zeros = after, "", True, False, True
    if fault != GAP:
        skipped.add(CUT if sound else NO_TAR, headers.place)
    elif not zeros:
        skipped.add(BEHIND, headers.place)


class _Tar(tarfile.TarFile):
    """Reads nothing of itself, and remembers no member."""

    def next(self) -> None:
        return None


class _Headers:
    """The file that `tarfile` reads headers from: by blocks, and only so much for each.

    Attributes:
        place: the tar, for messages.
        block: the header that was read last, without what belongs to it.
        spent: bytes read for the present one.
        wasted: bytes read, beyond their own blocks, for headers that are none.
    """

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        self.folder, self.name, self.size = folder, name, size
        self.step = SEQUENTIAL if folder.is_s3 else NEAR
        self.place = folder.place(name)
        self.block, self.spent, self.wasted, self._at = b"", 0, 0, 0
        self._held, self._start, self._chain = b"", 0, 0
        self._awaited: Literal["header", "records", "name", ""] = ""
        file: Any = self
        self.tar = _Tar(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")

    def header(self, at: int) -> tuple[tarfile.TarInfo, int] | None:
        """The header at an offset, and where the next one lies; None where there is none."""
        self._at, self.spent, self._awaited, self._chain = at, 0, "header", 0
        found = self._parsed(at)
        if found is None:
            self.wasted += max(0, self.spent - BLOCK)
        return found

    def _parsed(self, at: int) -> tuple[tarfile.TarInfo, int] | None:
        try:
            info, after = tarfile.TarInfo.fromtarfile(self.tar), self.tar.offset
        except (*FAULTS, RecursionError):
            return None
        if sum(len(key) + len(value) + 64 for key, value in self.tar.pax_headers.items()) > GLOBAL:
            self.tar.pax_headers = {}
            return None
        if after <= at or (_plain(info) and not 0 <= after - info.offset_data - info.size < BLOCK):
            return None
        return info, after

    @property
    def cut_name(self) -> bool:
        """Whether the name in the header that was read last fills its field, and nothing else."""
        return self._chain == 1 and self.block[NAME][-1] != 0

    def next(self, at: int) -> tuple[int, bool]:
        """Where to go on behind a header that is none, and whether all up to there is zeros.

        That is the next block that looks like a header, but for those of a tar within; the end of
        this one where there is none.
        """
        blank = _blank(self.look(at, BLOCK))
        place, zeros = self._sought(at + BLOCK if blank else self._behind_tar(at))
        return place, blank and zeros

    def _behind_tar(self, at: int) -> int:
        """Where a tar ends, if a member with a damaged header is one; else where the member begins.

        It is one where headers follow each other from its first block on, to zeros or to one that
        reaches beyond its size, and another header is behind. The last member is none: its size
        may be what is damaged, and what follows not within.
        """
        begin = inner = at + BLOCK
        with contextlib.suppress(ValueError):
            size = int(self.look(at, BLOCK)[SIZE].strip(b" \0"), 8)
            end = begin + size + -size % BLOCK
            while inner < end and (found := self.header(inner)):
                inner = found[1]
            closed = begin < inner < end and _blank(self.look(inner, BLOCK))
            if (closed or inner > end) and self._begins(end):
                return end
        return begin

    def _begins(self, at: int) -> bool:
        """Whether a header is at an offset; what is held is not let go."""
        with contextlib.suppress(*FAULTS):
            found = self.folder.read(self.name, BLOCK, at) if at + BLOCK <= self.size else b""
            tarfile.TarInfo.frombuf(found, "utf-8", "surrogateescape")
            return True
        return False

    def _sought(self, at: int) -> tuple[int, bool]:
        zeros = True
        while at + BLOCK <= self.size:
            first = self._hold(at)
            found = self._held.find(MAGIC, first + MAGIC_AT)
            while found >= 0 and (found - first) % BLOCK != MAGIC_AT:
                found = self._held.find(MAGIC, found + 1)
            passed = self._held[first : found - MAGIC_AT if found >= 0 else None]
            zeros &= _blank(passed)
            at += len(passed)
            if found >= 0:
                return at, zeros
        return self.size, zeros

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
        """Bytes of the tar. Raises `UserError`: it cannot be read, or ends before it did."""
        found, count = b"", min(count, self.size - at)
        while len(found) < count:
            first = self._hold(at)
            some = self._held[first : first + count - len(found)]
            found, at = found + some, at + len(some)
        return found

    def _hold(self, at: int) -> int:
        """The place in what is held of an offset; from there on it is read if it is not held."""
        if not self._start <= at < self._start + len(self._held):
            most = min(self.step, self.size - at)
            self._held, self._start = self.folder.read(self.name, most, at), at
            if len(self._held) < most:
                raise UserError(f"{self.place}: {CHANGED}")
        return at - self._start

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


def _plain(info: tarfile.TarInfo) -> bool:
    """Whether it is a file whose bytes lie as they are."""
    return info.isreg() and not info.issparse()


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
