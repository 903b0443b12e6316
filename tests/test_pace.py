"""What cannot be done in time is refused before work, by what passes have taken."""

import pytest

from imgray.data.pixels import Rejected
from imgray.errors import UserError
from imgray.serving import pace as module
from imgray.serving.pace import HALF_LIFE, LEAST, Pace

MEGA = 1_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moment, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def _pace(seconds: float = 30.0, rate: float = 16 / MEGA) -> Pace:
    found = Pace(seconds)
    found.measured(rate * MEGA, MEGA, 1)
    return found


def test_what_takes_longer_than_a_request_has_is_refused_with_the_way_out(
    clock: list[float],
) -> None:
    pace = _pace()
    pace.check(1300, 1400, 1300 * 1400, scaled=True)  # 29 s
    said = "4000 x 3000 pixels would take some 192 s, of 30 s that a request has; ask with longest="
    with pytest.raises(Rejected, match=said) as refused:
        pace.check(4000, 3000, 12 * MEGA, scaled=True)
    longest = int(str(refused.value).rpartition("=")[2])
    assert longest % 8 == 0
    assert 0.7 * 30 < 16 / MEGA * longest * longest * 3 / 4 < 30, "it fits, and not by far"
    with pytest.raises(Rejected, match="send a smaller picture"):
        pace.check(4000, 3000, 12 * MEGA, scaled=False)


def test_before_anything_is_measured_nothing_is_refused() -> None:
    Pace(1.0).check(9999, 9999, 9999**2, scaled=True)


def test_what_waits_counts_and_may_come_again(clock: list[float]) -> None:
    pace = _pace()
    with pace.counted(MEGA):
        pace.check(800, 1000, 800_000, scaled=True)
        with pytest.raises(UserError, match=r"too much to do \(pixels\)"):
            pace.check(1000, 1000, MEGA, scaled=True)
    pace.check(1000, 1000, MEGA, scaled=True)


def test_passes_teach_and_a_slow_moment_is_forgotten(clock: list[float]) -> None:
    pace = _pace()
    pace.measured(48.0, MEGA, 1)
    assert pace.rate == pytest.approx(32 / MEGA)
    clock[0] += HALF_LIFE
    assert pace.rate == pytest.approx(24 / MEGA)
    pace.measured(4.0, MEGA, 1)
    assert pace.rate == pytest.approx(14 / MEGA)
    clock[0] += 100 * HALF_LIFE
    assert pace.rate == pytest.approx(4 / MEGA), "the least that was measured"


def test_small_pictures_teach_nothing(clock: list[float]) -> None:
    pace = _pace()
    pace.measured(9.0, 16 * (LEAST - 1), 16)
    assert pace.rate == pytest.approx(16 / MEGA)
