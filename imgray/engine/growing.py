"""Listing goes on in a thread while workers do the shards of which all entries are known."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import Entry, Skipped
from imgray.engine.listing import Listing, ShardRows, shards, whole_shards, write_tables
from imgray.engine.pieces import Known, Pieces
from imgray.errors import UserError

SHARE = 4
"""Workers start anew with every batch of shards; one has at least the fourth part of the pieces of
all before it. So of 2^30 images they start fifty times at most, and wait where listing is slow."""
GRACE = 10.0
"""Seconds for which the whole is waited for at first: workers take as long to start anew."""
TICK = 1.0
"""Seconds between two words about a listing that is waited for."""
PATIENCE = 5.0
"""Seconds for which a listing that Ctrl-C stops is waited for."""

Item = TypeVar("Item")
Tell = Callable[[Known], None]


@dataclass(frozen=True)
class Whole:
    """A listing that has ended, as those see it who work on it."""

    listing: Listing
    output: Folder

    def known(self) -> Known:
        return Known(self.listing.images, True)

    def shards(self, size: int, tell: Tell) -> Iterator[tuple[Known, range]]:
        yield self.known(), range(ShardRows(self.output, size).shards)

    def ended(self) -> Listing:
        return self.listing


class Growing:
    """A listing that goes on beside the work on it, within a `with` block.

    Args:
        pieces: that there are, to which it adds.
        entries: those that are not in them.
        skipped: what was passed over before them, to which they add.
        end: what makes the whole of all pieces: given what writes them to a file, and says how
            many entries they have.
        told: says what there is to say of the whole.
    """

    def __init__(
        self,
        pieces: Pieces,
        entries: Iterator[Entry],
        skipped: Skipped,
        end: Callable[[Callable[[Path], int]], Listing],
        told: Callable[[Listing], None],
    ) -> None:
        self.pieces, self._entries, self._skipped = pieces, entries, skipped
        self._end, self._told = end, told
        self._changed, self._stopped = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._list, daemon=True)
        self._listing: Listing | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Growing:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What is refused waits for what is being written: after it another run may own all."""
        self._stopped.set()
        refused = kind is not None and issubclass(kind, Exception)
        self._thread.join(None if refused else PATIENCE)

    def known(self) -> Known:
        """How far it has come. Raises what has ended it."""
        if self._error:
            raise self._error
        return self.pieces.known

    def shards(self, size: int, tell: Tell) -> Iterator[tuple[Known, range]]:
        """The shards whose rows are all known, as they come, and at the end what is left.

        While they are waited for, `tell` is told how far the listing has come.
        """
        given, known = 0, Known()
        with self._changed:
            self._changed.wait_for(self._over, GRACE)
        while not known.whole:
            while not self._came(partial(self._enough, known)):
                tell(self.pieces.known)
            known = self.known()
            count = (shards if known.whole else whole_shards)(known.images, size)
            if count > given or known.whole:
                yield known, range(given, count)
            given = count

    def ended(self) -> Listing:
        """The whole, once there is all of it."""
        self._thread.join()
        self.known()
        assert self._listing
        self._told(self._listing)
        return self._listing

    def _came(self, enough: Callable[[], bool]) -> bool:
        """Whether there is enough, after a while at most."""
        with self._changed:
            return self._changed.wait_for(enough, TICK)

    def _over(self) -> bool:
        return self.pieces.known.whole or self._error is not None

    def _enough(self, before: Known) -> bool:
        more = self.pieces.known.pieces - before.pieces
        return self._over() or more >= max(1, before.pieces // SHARE)

    def _list(self) -> None:
        try:
            while not self.pieces.known.whole:
                some = itertools.islice(self._going(self._entries), self.pieces.most)
                self.pieces.add(list(some), self._skipped.counts)
                self._tell()
            for _ in self._going(self._entries):  # what vanished is told by all that there is
                pass
            tables = self._going(self.pieces.tables())
            self._listing = self._end(lambda path: write_tables(tables, path))
        except BaseException as error:
            self._error = error
            self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _going(self, items: Iterable[Item]) -> Iterator[Item]:
        """As long as it is not to stop."""
        for item in items:
            if self._stopped.is_set():
                raise UserError("the listing was stopped")
            yield item
