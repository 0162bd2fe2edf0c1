"""One line a minute for each cause."""

from __future__ import annotations

from gateway.monitoring.throttle import Throttle


def test_same_cause_is_written_once_a_minute_with_the_number_of_the_others() -> None:
    now = 1000.0
    throttle = Throttle(lambda: now)
    assert [throttle.suffix("a"), throttle.suffix("a"), throttle.suffix("b"), throttle.suffix("a")] == [
        "",
        None,
        "",
        None,
    ]
    now += 59
    assert throttle.suffix("a") is None
    now += 2
    assert throttle.suffix("a") == " (3 more of this kind since the last line)"
    assert throttle.suffix("a") is None
    now += 61
    assert (throttle.suffix("b"), throttle.suffix("b")) == ("", None)


def test_number_of_causes_is_bounded() -> None:
    now = 0.0
    throttle = Throttle(lambda: now)
    written = sum(throttle.suffix(str(number)) is not None for number in range(10_000))
    assert written == 101  # 100 causes, and one for all others
    assert len(throttle._causes) == 101
    now += 61
    assert throttle.suffix("new") == "" and len(throttle._causes) == 1
