"""What an earlier extraction listed: what of a collection is new or changed, and what has gone.

Of every record two numbers are held that stand for its id, and one for its version: 25 bytes, 2.5
GB for a hundred million. Neither listing need be sorted.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.artifacts.walk import Entry
from imgray.engine.listing import GROUP, LISTING

VANISHED = "vanished.parquet"
_VANISHED = pa.schema([("id", pa.string())])


class Earlier:
    """The listing of a features artifact, against which another is held.

    Args:
        features: the artifact.

    Attributes:
        unchanged: how many records `fresh` has left out.

    Raises:
        UserError: there is none.
    """

    def __init__(self, features: Folder) -> None:
        self.uri = features.uri
        read_manifest(features, "features").file(LISTING)
        self.file = pq.ParquetFile(features.open(LISTING))
        # Listings of earlier versions have no versions: there the size alone tells.
        self.versioned = "version" in self.file.schema_arrow.names
        found = [self._numbers(block) for block in self._blocks()]
        ids = np.concatenate([np.empty((0, 2), np.uint64), *(ids for ids, _ in found)])
        versions = np.concatenate([np.empty(0, np.uint64), *(versions for _, versions in found)])
        self.order = np.lexsort((ids[:, 1], ids[:, 0]))
        self.ids, self.versions = ids[self.order], versions[self.order]
        self.seen = np.zeros(len(ids), bool)
        self.unchanged = 0

    def fresh(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Those that it has not, or has in another version."""
        rest = iter(entries)
        while some := list(itertools.islice(rest, GROUP)):
            ids, versions = self._numbers(some)
            places = self._places(ids)
            known = places >= 0
            self.seen[places[known]] = True
            same = known.copy()
            same[known] = self.versions[places[known]] == versions[known]
            self.unchanged += int(same.sum())
            yield from itertools.compress(some, ~same)

    def write_vanished(self, path: Path) -> int:
        """Write the ids that `fresh` has not met: how many there are."""
        gone = np.empty_like(self.seen)
        gone[self.order] = ~self.seen
        row = total = 0
        with pq.ParquetWriter(path, _VANISHED, compression="zstd") as writer:
            for block in self._blocks():
                part = gone[row : row + len(block)]
                ids = [entry.id for entry in itertools.compress(block, part)]
                writer.write_table(pa.table([ids], schema=_VANISHED))
                row, total = row + len(block), total + len(ids)
        return total

    def _blocks(self) -> Iterator[list[Entry]]:
        for batch in self.file.iter_batches(GROUP):
            yield [Entry(**row) for row in batch.to_pylist()]

    def _numbers(self, entries: Sequence[Entry]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Of ids (N, 2) and of versions (N,)."""
        ids = b"".join(_digest(entry.id, 16) for entry in entries)
        versions = b"".join(
            _digest(f"{entry.size} {entry.version if self.versioned else ''}", 8)
            for entry in entries
        )
        return np.frombuffer(ids, np.uint64).reshape(-1, 2), np.frombuffer(versions, np.uint64)

    def _places(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where ids are (N,); -1 where they are not."""
        found = np.searchsorted(self.ids[:, 0], ids[:, 0])
        places = np.full(len(ids), -1)
        open_ = np.arange(len(ids))
        while len(open_):
            open_ = open_[found[open_] < len(self.ids)]
            open_ = open_[self.ids[found[open_], 0] == ids[open_, 0]]
            hit = self.ids[found[open_], 1] == ids[open_, 1]
            places[open_[hit]] = found[open_[hit]]
            open_ = open_[~hit]
            found[open_] += 1
        return places


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()
