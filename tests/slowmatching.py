"""The tasks of matching, slowed down, so that they can be killed in the middle."""

from slowed import Slow

from imgray.matching.matcher import Matching
from imgray.matching.mmc import Mmc, MmcSettings
from imgray.matching.settings import MatchingSettings


class SlowSettings(MatchingSettings):
    pause: float = 0.0
    """Seconds that a step waits."""


class SlowMmcSettings(MmcSettings, SlowSettings):
    pass


class SlowMatching(Slow, Matching):
    Settings = SlowSettings


class SlowMmc(Slow, Mmc):
    Settings = SlowMmcSettings
