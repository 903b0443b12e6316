"""Which tars a URI means: one, a range `x-{00..09}.tar`, those below a folder or of a part."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from imgray.artifacts.folder import Folder, located
from imgray.artifacts.walk import Skipped
from imgray.errors import UserError

SUFFIX = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
MOST = 10_000_000
"""Tars of a range at most."""


@dataclass(frozen=True)
class Shards:
    """The tars at a URI, by their names in a folder.

    Attributes:
        uri: as it was given.
        part: of the data set in a folder; empty where all below the folder are meant.
        folder: in which they lie.
        name: of the one, or the range; None where those of a folder are meant.
    """

    uri: str
    part: str = ""
    folder: Folder = field(init=False)
    name: str | None = field(init=False)

    def __post_init__(self) -> None:
        refuse_packed(self.uri)
        folder, name = located(self.uri) if _is_tar(self.uri) else (Folder(self.uri), None)
        if name and RANGE.search(folder.uri):
            raise UserError(f"{self.uri}: a range may stand in the name of the tar alone")
        object.__setattr__(self, "folder", folder)
        object.__setattr__(self, "name", name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri, self.part)

    def look(self) -> None:
        """Raise `UserError` where the first or the last is not there, or the folder of all."""
        if self.name is None:
            self.folder.look()
            return
        named = list(self._named)
        for name in (named[0], named[-1]):
            self.folder.version(name)

    def found(self, skipped: Skipped) -> Iterator[tuple[str, str]]:
        """The tars' names in their order, with their versions, where those are known.

        Raises `UserError`: the folder cannot be listed, or there is a compressed tar in it, or no
        such part.
        """
        named = self._named if self.name is not None else tars_of(self.folder, self.part)
        if named:
            yield from ((name, "") for name in named)
            return
        if self.part and not self.folder.exists(self.part):
            part = self.part
            raise UserError(
                f"part {part!r} of {self.uri}: neither {part}.tar, nor {part}-00000.tar and so on, "
                f"nor a folder {part} is here; see data.train, data.validate, data.stored"
            )
        folder = self.folder.below(self.part) if self.part else self.folder
        for entry in folder.walk(("*",), skipped):
            name = f"{self.part}/{entry.id}" if self.part else entry.id
            if _is_tar(name):
                yield name, f"{entry.size} {entry.version}" if entry.version else ""
            elif name.lower().endswith(PACKED):
                refuse_packed(self.folder.place(name))
            else:
                skipped.add(os.path.splitext(entry.id)[1].lower())

    def candidates(self, id: str) -> Iterator[tuple[str, str]]:
        """For SHARD/KEY the names of tars that may be meant, each with the key. No request."""
        for slash in re.finditer("/", id):
            shard, key = id[: slash.start()], id[slash.end() :]
            for name in (shard + SUFFIX, shard):
                if _is_tar(name) and shard_of(name) == shard and self._may_hold(name):
                    yield name, key

    def _may_hold(self, name: str) -> bool:
        return self.name is None or name in self._named

    @cached_property
    def _named(self) -> dict[str, None]:
        assert self.name is not None
        return dict.fromkeys(expanded(self.name, self.uri))


def shard_of(name: str) -> str:
    """What stands for a tar in ids."""
    return name.removesuffix(SUFFIX)


def tars_of(folder: Folder, part: str) -> list[str]:
    """The tars in a folder itself that are a part: PART.tar, or PART-00000.tar and so on.

    Raises `UserError` for a compressed one, and where both are there.
    """
    if not part:
        return []
    suffixes = "|".join(map(re.escape, (SUFFIX, *PACKED)))
    wanted = re.compile(rf"{re.escape(part)}(-\d+(-of-\d+)?)?(?i:{suffixes})")
    found = {name: one for name in folder.tops(folders=False) if (one := wanted.fullmatch(name))}
    for name in found:
        refuse_packed(folder.place(name))
    kinds = {one[2] or bool(one[1]): name for name, one in found.items()}
    if len(kinds) > 1:
        first, other, *_ = sorted(kinds.values())
        place = folder.place(first)
        raise UserError(f"{place}: beside {other}, each of which would be {part!r}; move one away")
    return list(found)


def expanded(name: str, uri: str) -> list[str]:
    """The names that a range stands for, in order, as a shell has them. Raises `UserError`."""
    found = [""]
    for text, *ends in re.findall(
        rf"([^{{]+|\{{(?!\d{{1,18}}\.\.\d{{1,18}}\}}))|{RANGE.pattern}", name
    ):
        if text:
            some = [text]
        else:
            first, last = map(int, ends)
            if last < first or (last - first + 1) * len(found) > MOST:
                raise UserError(f"{uri}: expected a range such as {{00..99}}, of {MOST:,} at most")
            width = max(map(len, ends)) if any(e[0] == "0" and len(e) > 1 for e in ends) else 0
            some = [f"{number:0{width}}" for number in range(first, last + 1)]
        found = [before + one for before in found for one in some]
    return found


def refuse_packed(uri: str) -> None:
    """Raises `UserError` for a compressed tar."""
    if uri.lower().endswith(PACKED):
        raise packed(uri)


def packed(place: str) -> UserError:
    """What is said of a compressed tar."""
    return UserError(
        f"{place}: a compressed tar cannot be read in parts; unpack it with gunzip or its like, "
        "as pictures are compressed anyway"
    )


def _is_tar(uri: str) -> bool:
    return uri.lower().endswith(SUFFIX)
