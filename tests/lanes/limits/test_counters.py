"""Counters of one gateway. The clock is a number, so nothing here depends on time."""

from __future__ import annotations

import asyncio
import math

import pytest

from gateway.lanes.limits.counters import Levels, MemoryCounters, Quota, Refusal
from tests.support.manual_clock import ManualClock

QUOTA = Quota(requests=60, tokens=600, concurrent=3)


class Counted:
    """Counters with the key and the quota of a test."""

    def __init__(self, quota: Quota = QUOTA) -> None:
        self.clock = ManualClock()
        self.counters = MemoryCounters(self.clock)
        self.quota = quota

    def take(self, tokens: int = 0, key: str = "laptop") -> Refusal | None:
        return asyncio.run(self.counters.take(key, self.quota, tokens))

    def give_back(self, requests: int = 0, tokens: int = 0) -> None:
        self.counters.give_back("laptop", self.quota, requests=requests, tokens=tokens)

    @property
    def levels(self) -> Levels:
        return self.counters.levels("laptop", self.quota)


def test_whole_minute_can_be_used_at_once_and_then_one_request_each_second() -> None:
    counted = Counted(Quota(requests=60))
    assert [counted.take() for _ in range(60)] == [None] * 60
    assert counted.take() == Refusal("requests", pytest.approx(1.0))
    counted.clock.now += 0.25
    assert counted.take() == Refusal("requests", pytest.approx(0.75))
    counted.clock.now += 0.75
    assert counted.take() is None
    assert counted.take() == Refusal("requests", pytest.approx(1.0))


def test_wait_of_a_refusal_is_enough_for_any_limit() -> None:
    for limit in (1, 7, 60, 999, 100_003):
        counted = Counted(Quota(tokens=limit))
        for _ in range(20):
            while (refusal := counted.take(max(1, limit // 3))) is None:
                counted.give_back()
            assert refusal.wait_s is not None and 0 < refusal.wait_s <= 60
            counted.clock.now += refusal.wait_s
            assert counted.take(max(1, limit // 3)) is None
            counted.give_back()


def test_refused_request_counts_nothing() -> None:
    counted = Counted()
    assert counted.take(400) is None
    before = counted.levels
    assert counted.take(300) == Refusal("tokens", pytest.approx(10.0))
    assert counted.levels == before


def test_request_above_the_limit_is_refused_for_ever_and_that_comes_first() -> None:
    counted = Counted(Quota(tokens=600, concurrent=1))
    assert counted.take(600) is None
    assert counted.take(601) == Refusal("tokens", math.inf)
    assert counted.take(1) == Refusal("concurrent", None)


def test_unused_tokens_come_back_and_more_than_reserved_is_charged() -> None:
    counted = Counted()
    counted.take(500)
    counted.give_back(tokens=400)
    assert counted.levels == Levels(requests=1.0, tokens=100.0)
    counted.take(100)
    counted.give_back(tokens=-1000)
    assert counted.levels.tokens == 1200
    assert counted.take(1) == Refusal("tokens", pytest.approx(60.1))


def test_request_that_no_model_worked_for_does_not_count() -> None:
    counted = Counted()
    counted.take(500)
    counted.give_back(requests=1, tokens=500)
    assert counted.levels == Levels()


def test_concurrent_requests_are_free_again_at_their_end() -> None:
    counted = Counted(Quota(concurrent=2))
    assert [counted.take(), counted.take(), counted.take()] == [None, None, Refusal("concurrent", None)]
    counted.give_back()
    assert counted.take() is None


def test_new_limit_counts_at_once_and_keeps_what_was_used() -> None:
    counted = Counted(Quota(requests=10))
    for _ in range(10):
        counted.take()
    counted.quota = Quota(requests=20)
    assert [counted.take() for _ in range(10)] == [None] * 10
    counted.quota = Quota(requests=10)
    assert counted.take() == Refusal("requests", pytest.approx(66.0))


def test_keys_do_not_share() -> None:
    counted = Counted(Quota(requests=1))
    assert counted.take() is None
    assert counted.take(key="other") is None
    assert counted.take() is not None


def test_clock_that_jumps_back_loses_nothing_and_one_that_jumps_ahead_frees_the_limit_once() -> None:
    counted = Counted(Quota(requests=2))
    counted.take()
    counted.take()
    counted.clock.now -= 500
    assert counted.take() == Refusal("requests", pytest.approx(30.0))
    counted.clock.now += 1e9
    assert [counted.take(), counted.take()] == [None, None]
    assert counted.take() is not None


def test_real_use_is_at_most_one_limit_and_what_time_gives() -> None:
    """Reservations that come back late give no more than the limit allows."""
    counted, used = Counted(Quota(tokens=1000)), 0
    for step in range(200):
        counted.clock.now += (step * 7) % 13
        if counted.take(900) is None:
            counted.clock.now += (step * 5) % 40
            used += (step * 37) % 900
            counted.give_back(tokens=900 - (step * 37) % 900)
    assert used <= 1000 + (counted.clock.now - 1000.0) * 1000 / 60
