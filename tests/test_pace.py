"""What cannot be done in time is refused before work, by what passes have taken."""

import pytest

from imgray.data.pixels import Rejected
from imgray.errors import UserError
from imgray.serving import pace as module
from imgray.serving.pace import HALF_LIFE, LEAST, TRIAL, Pace

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


def test_a_frozen_machine_is_no_reason_to_refuse_for_good(clock: list[float]) -> None:
    pace = _pace(rate=5 / MEGA)
    pace.measured(600.0, 16384, 1)
    with pytest.raises(UserError, match="come again"):
        pace.check(1400, 1000, 1_400_000, scaled=True)
    clock[0] += 2 * HALF_LIFE
    pace.check(1400, 1000, 1_400_000, scaled=True)


def test_the_way_out_is_one_that_is_accepted(clock: list[float]) -> None:
    pace = _pace(rate=30.0)
    with pytest.raises(Rejected, match=r"ask with longest=8$"):
        pace.check(300, 300, 90_000, scaled=True)


def test_passes_that_are_given_up_teach_until_the_like_is_refused(clock: list[float]) -> None:
    """Five times slower than small pictures say."""
    pace, given_up = _pace(rate=15 / MEGA), 0
    for _ in range(60):
        try:
            pace.check(1200, 1200, 1_440_000, scaled=True)
        except UserError:
            clock[0] += 30
        except Rejected:
            break
        else:
            pace.given_up(29.0, 1_440_000, 1)
            given_up += 1
    else:
        pytest.fail("never refused for good")
    assert 1 <= given_up <= 4


def test_a_client_that_has_gone_teaches_nothing(clock: list[float]) -> None:
    pace = _pace()
    pace.given_up(12.0, MEGA, 1)
    assert pace.rate == pytest.approx(16 / MEGA)


def test_what_a_bad_start_would_refuse_for_good_is_tried_once_in_a_while(
    clock: list[float],
) -> None:
    pace = _pace(rate=60 / MEGA)

    def refused() -> bool:
        try:
            pace.check(1000, 1000, MEGA, scaled=True)
        except Rejected:
            return True
        return False

    assert refused()
    clock[0] += TRIAL
    with pace.counted(100):
        assert refused(), "not beside others"
    assert not refused()
    assert refused(), "once"
    pace.measured(10.0, MEGA, 1)
    clock[0] += 9 * HALF_LIFE
    assert not refused()


def test_small_pictures_teach_nothing(clock: list[float]) -> None:
    pace = _pace()
    pace.measured(9.0, 16 * (LEAST - 1), 16)
    assert pace.rate == pytest.approx(16 / MEGA)
