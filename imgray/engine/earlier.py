"""What an earlier extraction listed: what of a collection is new or changed, and what has gone.

Of every record two numbers are held that stand for its id, one for its version, and its place: 33
bytes, and about 90 while they are sorted, 9 GB for a hundred million. No listing need be sorted.
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
from imgray.engine.listing import GROUP, LISTING, writing_parquet
from imgray.errors import UserError

VANISHED = "vanished.parquet"
_VANISHED = pa.schema([("id", pa.string())])


class Earlier:
    """The listings of features artifacts, against which another is held; of an id the last counts.

    Args:
        features: the artifacts.

    Attributes:
        unchanged: how many records `fresh` has left out.
        rejected: how many images the artifacts have rejected, which count as listed.

    Raises:
        UserError: there is none, or a listing is not as it was published.
    """

    def __init__(self, features: Sequence[Folder]) -> None:
        self.features, self.rejected = features, 0
        # Listings of earlier versions have no versions: there the size alone tells.
        self.versioned = True
        for one in features:
            manifest = read_manifest(one, "features")
            self.rejected += manifest.counts.get("rejected", 0)
            if one.sha256(LISTING) != manifest.file(LISTING).sha256:
                raise UserError(f"{one.uri}/{LISTING}: not as it was published; extract anew")
            self.versioned &= "version" in _listing(one).schema_arrow.names
        found = [self._numbers(block) for block in self._blocks()]
        ids = np.concatenate([np.empty((0, 2), np.uint64), *(ids for ids, _ in found)])
        versions = np.concatenate([np.empty(0, np.uint64), *(versions for _, versions in found)])
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        after = np.append(np.any(ids[order[1:]] != ids[order[:-1]], axis=1), np.True_)
        self.order, self.count = order[after[: len(order)]], len(order)
        self.ids, self.versions = ids[self.order], versions[self.order]
        self.seen = np.zeros(len(self.order), bool)
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
        gone = np.zeros(self.count, bool)
        gone[self.order] = ~self.seen
        row = total = 0
        with writing_parquet(path, _VANISHED) as write:
            for block in self._blocks():
                part = gone[row : row + len(block)]
                ids = [entry.id for entry in itertools.compress(block, part)]
                write(pa.table([ids], schema=_VANISHED), GROUP)
                row, total = row + len(block), total + len(ids)
        return total

    def _blocks(self) -> Iterator[list[Entry]]:
        for one in self.features:
            for batch in _listing(one).iter_batches(GROUP):
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


def _listing(features: Folder) -> pq.ParquetFile:
    return pq.ParquetFile(features.open(LISTING))


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()
