"""How fast a model goes through pictures, and which cannot be done in time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from imgray.data.pixels import Rejected
from imgray.errors import UserError
from imgray.serving.metrics import metrics

LEAST = 96 * 96
"""Pixels of the smallest picture that tells how long larger ones take: a pass has a fixed cost."""
HALF_LIFE = 60.0
"""Seconds in which half of what a slow moment has taught is forgotten."""
STEP = 8
"""Pixels of `longest` at least, and its steps, where it is offered as a way out."""
SURPRISE = 8.0
"""Times the estimate that one pass counts at most: a frozen machine is not the model's pace."""
TRIAL = 600.0
"""Seconds after which one picture that is thought to take too long is tried, if all is idle."""


class Pace:
    """Seconds per pixel of a model whose pictures keep their sizes, of one replica.

    What passes take counts half at once. Without passes the estimate returns to the least that was
    measured, by which alone a picture is refused for good: after a slow moment it may come again.
    That least at most doubles with a pass that was given up; where it is too high, so that nothing
    is let through that could correct it, a trial now and then does.

    Args:
        seconds: that a request has.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.best = self.lately = self.at = 0.0
        self.tried = time.monotonic()
        self.pixels = 0
        """Of the pictures in work and waiting."""

    def measured(self, seconds: float, pixels: int, pictures: int) -> None:
        """Learn from a pass. Small pictures teach nothing."""
        if pixels >= pictures * LEAST:
            rate = seconds / pixels
            self._learnt(rate, min(self.best or rate, rate))

    def given_up(self, seconds: float, pixels: int, pictures: int) -> None:
        """Learn from a pass that did not come to its end: it was half done, for all one knows.

        Only if it had taken longer than was thought; otherwise its client may just have gone.
        """
        rate = seconds / pixels if pixels else 0.0
        if pixels >= pictures * LEAST and rate > self.rate:
            self._learnt(2 * rate, min(2 * (self.best or rate), 2 * rate))

    def _learnt(self, rate: float, best: float) -> None:
        before = self.rate
        self.lately = (min(rate, SURPRISE * before) + before) / 2 if before else rate
        self.best, self.at = best, time.monotonic()

    @property
    def rate(self) -> float:
        """Seconds per pixel by now; 0 before anything was measured."""
        age = time.monotonic() - self.at
        return self.best + (self.lately - self.best) * 0.5 ** (age / HALF_LIFE)

    def check(self, width: int, height: int, pixels: int, scaled: bool) -> None:
        """Refuse, before work, what cannot be done in time.

        Args:
            width: of the largest picture of a record as the model will see it.
            height: of that picture.
            pixels: of all pictures of the record.
            scaled: whether a request may have pictures scaled down.

        Raises:
            Rejected: it could not be done even by itself.
            UserError: it could not after those that wait; it may come again.
        """
        alone = pixels * self.best
        if alone > self.seconds:
            if self._trial():
                return
            side = math.sqrt(0.8 * self.seconds / alone) * max(width, height) // STEP * STEP
            way = f"ask with longest={max(STEP, side):.0f}" if scaled else "send a smaller picture"
            raise Rejected(
                f"{width} x {height} pixels would take some {alone:.0f} s, of {self.seconds:g} s "
                f"that a request has; {way}"
            )
        if (self.pixels + pixels) * self.rate > self.seconds:
            metrics().rejected.inc(1, {"reason": "pixels"})
            raise UserError("too much to do (pixels); come again")

    def _trial(self) -> bool:
        """Whether it is time to try what is thought to take too long."""
        now = time.monotonic()
        if self.pixels or now - self.tried < TRIAL:
            return False
        self.tried = now
        return True

    @contextmanager
    def counted(self, pixels: int) -> Iterator[None]:
        """Within the block, these pixels are in work."""
        self.pixels += pixels
        try:
            yield
        finally:
            self.pixels -= pixels
