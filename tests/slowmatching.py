"""The tasks of matching, slowed down, so that they can be killed in the middle."""

import time
from typing import Any

from torch import Tensor

from imgray.matching.matcher import Matching
from imgray.matching.mmc import Mmc, MmcSettings
from imgray.matching.settings import MatchingSettings
from imgray.training.task import At, Batch, Learner


class SlowSettings(MatchingSettings):
    pause: float = 0.0
    """Seconds that a step waits."""


class SlowMmcSettings(MmcSettings, SlowSettings):
    pass


class Slow:
    settings: Any

    def learner(self, initial: bool = True) -> Learner:
        found: Learner = super().learner(initial)
        step = found.step

        def slow(batch: Batch, at: At) -> dict[str, Tensor]:
            time.sleep(self.settings.pause)
            return step(batch, at)

        found.step = slow
        return found


class SlowMatching(Slow, Matching):
    Settings = SlowSettings


class SlowMmc(Slow, Mmc):
    Settings = SlowMmcSettings
