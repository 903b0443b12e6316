"""Progress of long work on standard error: count, rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

TERMINAL_SECONDS, LOG_SECONDS = 0.2, 10.0
Item = TypeVar("Item")


class Progress:
    """Rewrites one line on a terminal; prints one line every ten seconds into a log."""

    def __init__(
        self, what: str, total: int, done: int = 0, unit: str = "images", whole: bool = True
    ) -> None:
        self.what, self.total, self.unit, self.whole = what, total, unit, whole
        self.first, self.done, self.rejected = done, done, 0
        self.started = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def add(self, done: int, rejected: int = 0) -> None:
        """Count finished items, and show it when it is time."""
        self.done += done
        self.rejected += rejected
        pause = TERMINAL_SECONDS if self.terminal else LOG_SECONDS
        if time.monotonic() - self.shown >= pause or self._ended:
            self.shown = time.monotonic()
            self._print(end="" if self.terminal and not self._ended else "\n")

    def grow(self, total: int, whole: bool) -> None:
        """Know of more items, and whether these are all."""
        late = whole and not self.whole and self.done > self.first
        self.total, self.whole = total, whole
        if late and self._ended:
            self.add(0)

    @property
    def rate(self) -> float:
        """Items per second of this run, what earlier runs did left out."""
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.started)

    @property
    def _ended(self) -> bool:
        return self.whole and self.done >= self.total

    def _print(self, end: str) -> None:
        left = (self.total - self.done) / self.rate if self.rate > 0 else float("inf")
        set_aside = f", {self.rejected:,} rejected" if self.rejected else ""
        start = "\r\x1b[K" if self.terminal else ""
        if self.whole:
            share = f"{self.done / max(1, self.total):.0%}"
            told = f"{self.done:,} / {self.total:,} {self.unit} ({share})"
            rate = f"{self.rate:,.1f}/s, {_span(left)} left"
        else:
            told = f"{self.done:,} of {self.total:,} {self.unit} so far"
            rate = f"{self.rate:,.1f}/s"
        print(
            f"{start}{self.what}: {told}, {rate}{set_aside}", end=end, file=sys.stderr, flush=True
        )


def counted(items: Iterable[Item], what: str, alone: Callable[[], bool]) -> Iterator[Item]:
    """The same items, and a line every ten seconds that says how many there were so far.

    As long as nothing else says what is done.
    """
    shown = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - shown >= LOG_SECONDS and alone():
            say(f"{what} {number:,} so far")
            shown = time.monotonic()
        yield item


def say(text: str) -> None:
    """One line to the person who watches."""
    print(text, file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
