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


class Pace:
    """Seconds per pixel of a model whose pictures keep their sizes, of one replica.

    What passes take counts half at once. Without passes the estimate returns to the least that was
    ever measured: otherwise a slow moment would refuse for good the very pictures that could show
    it to be over.

    Args:
        seconds: that a request has.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.best = self.lately = self.at = 0.0
        self.pixels = 0
        """Of the pictures in work and waiting."""

    def measured(self, seconds: float, pixels: int, pictures: int) -> None:
        """Learn from a pass. Small pictures teach nothing."""
        if pixels < pictures * LEAST:
            return
        rate, before = seconds / pixels, self.rate
        self.best = min(self.best or rate, rate)
        self.lately = (rate + before) / 2 if before else rate
        self.at = time.monotonic()

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
        need = pixels * self.rate
        if need > self.seconds:
            side = math.sqrt(0.8 * self.seconds / need) * max(width, height) // STEP * STEP
            way = f"ask with longest={side:.0f}" if scaled else "send a smaller picture"
            raise Rejected(
                f"{width} x {height} pixels would take some {need:.0f} s, of {self.seconds:g} s "
                f"that a request has; {way}"
            )
        if self.pixels and need + self.pixels * self.rate > self.seconds:
            metrics().rejected.inc(1, {"reason": "pixels"})
            raise UserError("too much to do (pixels); come again")

    @contextmanager
    def counted(self, pixels: int) -> Iterator[None]:
        """Within the block, these pixels are in work."""
        self.pixels += pixels
        try:
            yield
        finally:
            self.pixels -= pixels
