"""Members of tars grouped to records, found by their keys, and held against each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from imgray.artifacts.walk import Skipped
from imgray.data.members import Member
from imgray.data.shards import Shards, shard_of
from imgray.errors import UserError, brief

Parts = dict[str, list[Any]]
"""By extension the offset of a member, its size, the checksum of its header, and the text of a
label, if that is short."""


class Places:
    """The places of a tar's records, whose headers are read as far as they are asked for."""

    def __init__(self, found: Iterator[tuple[str, Parts]]) -> None:
        self.rest, self.known = found, dict[str, Parts]()

    def find(self, key: str) -> Parts | None:
        """Where the members of a record lie; None where there is none. Raises `UserError`."""
        if key not in self.known:
            for other, parts in self.rest:
                self.known[other] = parts
                if other == key:
                    break
        return self.known.get(key)


class Ids:
    """Refuses an id that was there before, holding no more keys than that takes."""

    def __init__(self, shards: Shards, names: Sequence[str], by_key: bool) -> None:
        self.shards, self.by_key = shards, by_key
        own = dict[str, str]()
        for one in names:
            if (other := own.setdefault(shard_of(one), one)) != one:
                places = f"{shards.folder.place(other)} and {shards.folder.place(one)}"
                raise UserError(f"{places} stand for the same ids; rename one of them")
        above = {shard: _above(shard) & own.keys() for shard in own if "/" in shard}
        self.below = {shard for shard, found in above.items() if found}
        self.above = set[str]().union(*above.values())
        self.name, self.keys = "", dict[str, str]()
        self.shared: dict[str, str] = {}

    def add(self, name: str, key: str) -> None:
        """Raises `UserError`."""
        if name != self.name and not self.by_key:
            self.keys = {}
        self.name = name
        self._add(self.keys, name, key, "leave --ids off")
        shard = shard_of(name)
        if not self.by_key and (shard in self.below or (shard in self.above and "/" in key)):
            self._add(self.shared, name, f"{shard}/{key}", "rename one of them")

    def _add(self, seen: dict[str, str], name: str, id: str, way: str) -> None:
        before, place = seen.get(id), self.shards.folder.place
        seen[id] = name
        if before == name:
            raise UserError(
                f"{place(name)}: '{brief(id)}' is there again, where members of one "
                "record lie next to each other; pack it anew in the order of names, or rename one"
            )
        if before:
            raise UserError(
                f"{place(before)} and {place(name)} both have "
                f"'{brief(id)}', where an id is for one record alone; {way}"
            )


def records(
    found: Iterable[Member], place: str, wanted: frozenset[str], skipped: Skipped
) -> Iterator[tuple[str, Parts]]:
    """Members by key, of which those of the wanted extensions are kept; as WebDataset groups them.

    Raises `UserError`: two members of a record have the same extension.
    """
    key, there, parts = "", set[str](), Parts()
    for member in found:
        own, extension = split(member.name)
        if not extension:
            skipped.add("")
            continue
        if own != key:
            if there:
                yield key, parts
            key, there, parts = own, set(), {}
        if extension in there:
            raise UserError(
                f"{place}: '{brief(key)}' has two members '{extension}'; rename or remove one"
            )
        there.add(extension)
        if extension in wanted:
            parts[extension] = [member.offset, member.size, member.check]
            if member.data is not None:
                parts[extension].append(member.data.decode("utf-8-sig", "surrogateescape"))
    if there:
        yield key, parts


def split(name: str) -> tuple[str, str]:
    """The key of a member and its extension in lower case; that is empty where it has none."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _above(shard: str) -> set[str]:
    parts = shard.split("/")
    return {"/".join(parts[:count]) for count in range(1, len(parts))}
