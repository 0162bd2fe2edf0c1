"""Race, FirstTimes and Credit, in virtual time. tests/system/targets/ has the same with servers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from gateway.engines.upstream.hedge import ENOUGH, MOST_CREDIT, MOST_LOSSES, SHARE, WINDOW, FirstTimes, Hedging, Race
from gateway.errors import InvalidRequest, UpstreamFailed
from tests.support.virtual_time import in_virtual_time, now

LATE_S = 1.0


class Runner:
    """An attempt whose first content comes after `seconds`, or that fails then."""

    def __init__(self, seconds: float, error: Exception | None = None, *, leaving_s: float = 0.0) -> None:
        self.seconds, self.error, self.leaving_s = seconds, error, leaving_s
        self.is_running = False
        self.is_open = self.was_begun = self.was_cancelled = False

    async def __aenter__(self) -> None:
        self.is_open = self.was_begun = True

    async def __aexit__(self, *_: Any) -> None:
        assert self.is_open and not self.is_running
        self.is_open = False

    async def first(self) -> None:
        self.is_running = True
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.was_cancelled = True
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(self.leaving_s)
            await asyncio.sleep(0)
            raise
        finally:
            self.is_running = False
        if self.error:
            raise self.error


def race_of(first: Runner, second: Runner | None) -> Race[Runner]:
    return Race(first, lambda: LATE_S, lambda: second, lambda error: isinstance(error, InvalidRequest))


@pytest.mark.parametrize(
    ("first_s", "second_s", "wins", "at_s"),
    [
        pytest.param(0.5, 0.1, "first", 0.5, id="in time"),
        pytest.param(3.0, 0.5, "second", 1.5, id="late"),
        pytest.param(1.5, 3.0, "first", 1.5, id="late, but before the second"),
        pytest.param(2.0, 1.0, "first", 2.0, id="at the same time"),
    ],
)
@in_virtual_time
async def test_first_content_wins_and_the_other_is_closed(
    first_s: float, second_s: float, wins: str, at_s: float
) -> None:
    first, second = Runner(first_s), Runner(second_s)
    winner, loser = (first, second) if wins == "first" else (second, first)
    async with race_of(first, second) as race:
        assert await race.winner() is winner and now() == pytest.approx(at_s)
        assert winner.is_open and not loser.is_open and race.is_hedged == second.was_begun == (first_s > LATE_S)
    assert not winner.is_open and not race.errors


@in_virtual_time
async def test_without_a_second_target_the_first_has_all_the_time() -> None:
    first = Runner(30.0)
    async with race_of(first, None) as race:
        assert await race.winner() is first and not race.is_hedged


@in_virtual_time
async def test_target_for_the_second_attempt_is_looked_for_again() -> None:
    first, second, free_at = Runner(30.0), Runner(0.5), 5.0
    race = Race(first, lambda: LATE_S, lambda: second if now() >= free_at else None, lambda _: False)
    async with race:
        assert await race.winner() is second and now() == pytest.approx(5.0 + 0.5)


@pytest.mark.parametrize(("late_s", "at_s"), [(1.0, 4.0), (6.0, 6.0)])
@in_virtual_time
async def test_time_that_is_measured_meanwhile_counts(late_s: float, at_s: float) -> None:
    first, second = Runner(30.0), Runner(0.5)
    async with Race(first, lambda: late_s if now() > 3.0 else None, lambda: second, lambda _: False) as race:
        assert await race.winner() is second and now() == pytest.approx(at_s + 0.5)


@pytest.mark.parametrize(("first_s", "second_s", "at_s"), [(2.0, 3.0, 4.0), (8.0, 0.5, 8.0)])
@in_virtual_time
async def test_attempt_that_fails_leaves_the_race_to_the_other(first_s: float, second_s: float, at_s: float) -> None:
    fails_first = first_s < LATE_S + second_s
    first = Runner(first_s, UpstreamFailed("x") if fails_first else None)
    second = Runner(second_s, None if fails_first else UpstreamFailed("x"))
    async with race_of(first, second) as race:
        assert await race.winner() is (second if fails_first else first) and now() == pytest.approx(at_s)
        assert list(race.errors) == [first if fails_first else second] and race.lost is None
    assert not first.is_open and not second.is_open


@in_virtual_time
async def test_first_attempt_that_fails_in_time_is_no_race() -> None:
    first, second = Runner(0.5, UpstreamFailed("x")), Runner(0.1)
    async with race_of(first, second) as race:
        assert await race.winner() is None and not race.is_hedged and now() == pytest.approx(0.5)


@in_virtual_time
async def test_two_failures_are_both_known() -> None:
    first, second = Runner(2.0, UpstreamFailed("x")), Runner(3.0, UpstreamFailed("y"))
    async with race_of(first, second) as race:
        assert await race.winner() is None
        assert [error.message for error in race.errors.values()] == ["x", "y"]


@in_virtual_time
async def test_mistake_of_the_client_ends_the_race() -> None:
    first, second = Runner(2.0, InvalidRequest("x")), Runner(60.0)
    async with race_of(first, second) as race:
        assert await race.winner() is None and now() == pytest.approx(2.0)
    assert second.was_cancelled and not second.is_open


@in_virtual_time
async def test_request_that_is_cancelled_closes_both() -> None:
    first, second = Runner(60.0), Runner(60.0)

    async def run() -> None:
        async with race_of(first, second) as race:
            await race.winner()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5.0):
            await run()
    assert [(each.was_cancelled, each.is_open) for each in (first, second)] == [(True, False)] * 2


@in_virtual_time
async def test_request_that_is_cancelled_while_the_loser_is_closed_waits_for_it() -> None:
    first, second = Runner(60.0, leaving_s=5.0), Runner(0.5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3.0), race_of(first, second) as race:
            await race.winner()
    assert not first.is_open and not second.is_open


@in_virtual_time
async def test_request_that_is_cancelled_twice_closes_both() -> None:
    first, second = Runner(60.0, leaving_s=5.0), Runner(60.0, leaving_s=5.0)

    async def run() -> None:
        async with race_of(first, second) as race:
            await race.winner()

    task = asyncio.create_task(run())
    for _ in range(2):
        await asyncio.sleep(3.0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not first.is_open and not second.is_open


@in_virtual_time
async def test_exception_of_another_kind_is_not_hidden() -> None:
    first, second = Runner(2.0, ZeroDivisionError()), Runner(60.0)
    with pytest.raises(ZeroDivisionError):
        async with race_of(first, second) as race:
            await race.winner()
    assert not first.is_open and not second.is_open


def test_percentile_needs_enough_times_and_forgets_the_oldest() -> None:
    times = FirstTimes()
    for number in range(1, ENOUGH):
        times.answered(number)
    assert times.late_s is None
    times.answered(ENOUGH)
    assert times.late_s == 19  # of 20
    for _ in range(WINDOW):
        times.answered(1.0)
    assert times.late_s == 1.0


def test_lost_races_raise_the_percentile_and_several_in_a_row_are_no_answer() -> None:
    times = FirstTimes()
    for _ in range(ENOUGH):
        times.answered(1.0)
    assert [times.lost(9.0) for _ in range(MOST_LOSSES)] == [False] * (MOST_LOSSES - 1) + [True]
    assert times.late_s == 9.0
    times.answered(1.0)
    assert not times.lost(9.0)


def test_target_without_enough_times_is_late_after_the_longest_time_of_the_others() -> None:
    hedging = Hedging(["a", "b", "new"])
    assert hedging.late_s("new") is None
    for _ in range(ENOUGH):
        hedging.answered("a", 1.0)
        hedging.answered("b", 3.0)
    assert [hedging.late_s(target) for target in ("a", "b", "new")] == [1.0, 3.0, 3.0]


def test_credit_limits_the_share_and_the_number_in_a_row() -> None:
    hedging, hedged = Hedging(["a"]), 0
    for _ in range(1000):
        hedging.earn()
        hedged += spends(hedging)
    assert hedged == pytest.approx(1000 * SHARE, abs=1)
    for _ in range(1000):
        hedging.earn()
    assert sum(spends(hedging) for _ in range(1000)) == MOST_CREDIT


def spends(hedging: Hedging) -> bool:
    if not hedging.has_credit():
        return False
    hedging.spend()
    return True
