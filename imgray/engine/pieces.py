"""A listing in pieces, for a collection that is worked on while it is still listed.

A piece is a file of as many entries as every other, the next ones in the order of their ids; one
that has fewer is the last. It is made once (`Folder.create`) by a run of the chain that began the
output, and what it has is never listed anew: the runs that follow go on after its last id.
"""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import WORK
from imgray.artifacts.walk import Entry, Skipped
from imgray.engine.listing import GROUP, LISTING, ShardRows, span, table_of
from imgray.engine.receipts import of_chain
from imgray.errors import UserError, brief

PIECES = f"{WORK}/pieces"
_SKIPPED, _END = b"skipped", b"PAR1"


class Known(NamedTuple):
    """How far a listing has come: its images so far, whether these are all, and its pieces."""

    images: int = 0
    whole: bool = False
    pieces: int = 0


class Pieces:
    """The pieces of an output.

    Attributes:
        most: entries of every one but the last.
        known: how far they go.
        after: the id of the last entry.
        skipped: what was passed over up to there.
    """

    def __init__(self, output: Folder) -> None:
        self.output, self.known, self.most = output, Known(), GROUP
        self.after, self.skipped = "", Skipped()
        sizes = output.sizes(of_chain(output, PIECES))
        count = sum(name.endswith(".parquet") for name in sizes)
        if count and not _ends(output, name := _name(output, count - 1), sizes[name]):
            count -= 1  # killed in writing it, where it could not be made at once
            output.remove(name)
        if count:
            first, last = _read(output, 0), _read(output, count - 1)
            self.most = len(first)
            self.known = Known((count - 1) * self.most + len(last), len(last) < self.most, count)
            self.after = last["id"][-1].as_py() if len(last) else ""
            self.skipped.counts = Counter(json.loads(last.schema.metadata[_SKIPPED]))

    def begin(self, entries: Iterator[Entry], skipped: Skipped) -> Iterator[Entry]:
        """Keep the first piece, if there are more entries than it has: those that are in none.

        A store that lists in no order, as S3 Express does, has no pieces.
        """
        first = list(itertools.islice(entries, self.most))
        counts = skipped.counts.copy()
        more = list(itertools.islice(entries, 1))
        ordered = all(a.id < b.id for a, b in itertools.pairwise([*first, *more]))
        if not more or not ordered:
            return itertools.chain(first, more, entries)
        self.add(first, counts)
        return itertools.chain(more, entries)

    def add(self, entries: Sequence[Entry], skipped: Mapping[str, int]) -> None:
        """Keep the next piece. Raises `UserError` where it is there, or another run owns all."""
        table = table_of(entries).replace_schema_metadata({_SKIPPED: json.dumps(skipped)})
        images, _, number = self.known
        name, data = _name(self.output, number), io.BytesIO()
        pq.write_table(table, data, compression="zstd")
        self.output.hold(name)
        if not self.output.create(name, data.getvalue()):
            raise UserError(
                f"{self.output.place(name)}: another run made it; run it again to go on"
            )
        self.known = Known(images + len(entries), len(entries) < self.most, number + 1)
        self.after = entries[-1].id if entries else self.after

    def tables(self) -> Iterator[pa.Table]:
        """Those that have entries, one after the other."""
        tables = (_read(self.output, number) for number in range(self.known.pieces))
        return (table for table in tables if len(table))


class PieceRows:
    """The rows of a listing in pieces by shard, as `ShardRows`; one piece is held.

    Args:
        output: that has the pieces.
        size: rows of the first shards.
    """

    def __init__(self, output: Folder, size: int) -> None:
        self.output, self.size = output, size
        self._held = 0, _read(output, 0)
        self.most = len(self._held[1])

    def entries(self, shard: int) -> list[tuple[int, Entry]]:
        """The entries of a shard, with the numbers of their rows."""
        first, count = span(shard, self.size)
        found, end = [], first + count
        while first < end:
            piece = self._piece(first // self.most)
            rows = piece.slice(first % self.most, end - first).to_pylist()
            found += [(first + place, Entry(**row)) for place, row in enumerate(rows)]
            first += len(rows)
            if len(piece) < self.most:
                break
        return found

    def _piece(self, number: int) -> pa.Table:
        if self._held[0] != number:
            self._held = number, _read(self.output, number)
        return self._held[1]


def rows_of(output: Folder, size: int) -> ShardRows | PieceRows:
    """The rows of an output's listing by shard: from its pieces while it is not whole."""
    return (ShardRows if output.exists(LISTING) else PieceRows)(output, size)


def in_order(
    entries: Iterable[Entry], after: str, uri: str, resumed: bool = True
) -> Iterator[Entry]:
    """Those after an id; before it there may be some where a listing was `resumed`.

    Raises `UserError` where one that follows comes no later than the last.
    """
    last = after
    for entry in entries:
        if entry.id > last:
            last = entry.id
            yield entry
        elif last != after or not resumed:
            raise UserError(
                f"{uri}: '{brief(entry.id)}' was listed after '{brief(last)}', out of order: names "
                "there were changed meanwhile, so run it again to go on; or else the store has no "
                "order, and --inventory has to list it"
            )


def _name(output: Folder, number: int) -> str:
    return f"{of_chain(output, PIECES)}/{number:06d}.parquet"


def _ends(output: Folder, name: str, size: int) -> bool:
    """Whether a piece was written to its end."""
    return output.read(name, len(_END), max(0, size - len(_END))) == _END


def _read(output: Folder, number: int) -> pa.Table:
    name = _name(output, number)
    try:
        return pq.read_table(io.BytesIO(output.read(name)))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{output.place(name)}: damaged; start anew with --overwrite") from error
