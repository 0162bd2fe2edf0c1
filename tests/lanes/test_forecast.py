"""Forecast: predictions from measurements. test_lane_forecast.py compares them with the times of an engine."""

from __future__ import annotations

import math
import random

import pytest

from gateway.engines.base import Plan
from gateway.generation import Meter
from gateway.lanes.forecast import Forecast, PrefillTimes

PLAN = Plan(prompt_tokens=50, max_tokens=64)


def test_no_prediction_before_first_measurement() -> None:
    assert PrefillTimes().seconds(100, 128) is None
    assert Forecast().first_token_s(PLAN, others=0) is None
    assert Forecast().remaining_s(PLAN, Meter(), 64, others=0) is None


def test_fit_finds_fixed_chunk_cost_after_two_prompts() -> None:
    npu = PrefillTimes()
    npu.learn(40, 128, 0.131)
    assert 0.131 < (npu.seconds(128, 128) or 0) < 0.131 * 2  # after one measurement each term explains half
    npu.learn(300, 128, 3 * 0.131)
    for tokens, passes in ((1, 1), (128, 1), (129, 2), (1500, 12)):
        assert npu.seconds(tokens, 128) == pytest.approx(passes * 0.131, rel=1e-3)


def test_fit_finds_token_cost() -> None:
    cpu = PrefillTimes()
    for tokens in (30, 500):
        cpu.learn(tokens, 64, 0.006 * math.ceil(tokens / 64) + 0.001 * tokens)
    assert cpu.seconds(1500, 64) == pytest.approx(0.006 * 24 + 1.5, rel=1e-3)


def test_infinite_chunk_width_is_one_call() -> None:
    times = PrefillTimes()
    times.learn(40, math.inf, 0.5)
    assert times.seconds(4000, math.inf) == pytest.approx(0.5)


def test_fit_of_noise_is_never_negative() -> None:
    dice = random.Random(0)
    times = PrefillTimes()
    for _ in range(500):
        times.learn(dice.randint(1, 2000), 128, dice.uniform(0.001, 5))
        assert (times.seconds(1, 128) or 0) >= 0
        assert (times.seconds(100_000, 128) or 0) > 0


def test_measurement_below_half_replaces_older_ones() -> None:
    times = PrefillTimes()
    for _ in range(50):
        times.learn(128, 128, 0.3)
    times.learn(128, 128, 0.1)
    assert times.seconds(128, 128) == pytest.approx(0.1)


def test_newest_measurement_weighs_most() -> None:
    times = PrefillTimes()
    for _ in range(50):
        times.learn(128, 128, 0.1)
    for _ in range(20):
        times.learn(128, 128, 0.3)
    assert times.seconds(128, 128) == pytest.approx(0.3, rel=0.3)


def measured(forecast: Forecast, tokens: int, *, shared: float = 1.0, others: int = 0) -> None:
    """One request: a prompt of 1 s, then 10 tokens of 0.1 s, with a limit of `tokens`."""
    meter = Meter(
        prompt_tokens=50, completion_tokens=10, device_s=1.9, first_token_at=1.0, prompt_s=1.0, shared_s=shared
    )
    forecast.learn_first_token(PLAN, meter, others)
    forecast.learn_end(meter, tokens)


def test_remaining_time_follows_meter() -> None:
    forecast = Forecast(lambda: 0.0)
    measured(forecast, 10)
    assert forecast.remaining_s(PLAN, Meter(), 11, 0) == pytest.approx(1.0 + 10 * 0.1)
    assert forecast.remaining_s(PLAN, Meter(device_s=0.4), 11, 0) == pytest.approx(0.6 + 10 * 0.1)
    talking = Meter(device_s=1.5, first_token_at=1.0, completion_tokens=6)
    assert forecast.remaining_s(PLAN, talking, 11, 0) == pytest.approx(5 * 0.1)


def test_remaining_time_follows_used_share_of_max_tokens() -> None:
    forecast = Forecast(lambda: 0.0)
    for _ in range(40):
        measured(forecast, 100)
    assert forecast.remaining_s(PLAN, Meter(), 200, 0) == pytest.approx(1.0 + 19 * 0.1, rel=0.01)


def test_contention_is_measured() -> None:
    forecast = Forecast(lambda: 0.0)
    measured(forecast, 10)
    assert forecast.first_token_s(PLAN, others=2) == pytest.approx(3.0)  # contention 1 before the first measurement
    for _ in range(40):
        measured(forecast, 10, shared=1.5, others=1)
    assert forecast.first_token_s(PLAN, others=2) == pytest.approx(2.0, rel=0.01)


def test_one_request_in_30_s_of_refusals_is_let_through() -> None:
    time = 0.0
    forecast = Forecast(lambda: time)
    outcomes = []
    for _ in range(100):
        outcomes.append(forecast.should_refuse())
        time += 1.0
    assert outcomes.count(False) == 3
    measured(forecast, 10)
    assert all(forecast.should_refuse() for _ in range(10))


def test_time_without_the_device_teaches_nothing() -> None:
    """A request that waited, for example for the compiler of its grammar, until its limit had passed."""
    forecast = Forecast(lambda: 0.0)
    forecast.learn_timeout(PLAN, Meter())
    assert forecast.first_token_s(PLAN, others=0) is None
    measured(forecast, 10)
    forecast.learn_timeout(PLAN, Meter())
    assert forecast.first_token_s(PLAN, others=0) == pytest.approx(1.0)


def test_time_limit_during_the_prefill_teaches_a_longer_prefill() -> None:
    forecast = Forecast(lambda: 0.0)
    measured(forecast, 10)
    forecast.learn_timeout(PLAN, Meter(device_s=4.0))
    assert 4.0 < (forecast.first_token_s(PLAN, others=0) or 0) <= 8.0
