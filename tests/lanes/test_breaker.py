"""Breaker: verdicts on recorded latencies and on random orders of events."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from gateway.config.tables import BreakerConfig
from gateway.engines.base import EngineStatus
from gateway.errors import BreakerOpen
from gateway.generation import Meter
from gateway.lanes.breaker import Breaker, Budget, Permit
from gateway.lanes.run import Watch
from gateway.worker.frames import PassTimes
from tests.support.paths import ROOT


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


PLAIN = BreakerConfig(latency_ms=1000.0, probe_itself=False)
PER_TOKEN = BreakerConfig(token_ms=20.0, probe_itself=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settle(breaker: Breaker, *outcomes: str) -> None:
    for outcome in outcomes:
        breaker.admit().settle(outcome)  # type: ignore[arg-type]


def opened(clock: Clock, **changes: object) -> Breaker:
    breaker = Breaker(replace(PLAIN, **changes), clock)
    settle(breaker, *["slow"] * 5)
    assert breaker.state == "open"
    return breaker


# --- recorded latencies: one prompt, answers of growing length, a device that is 20 % too slow

WARM_UP = (16021, 8)
RECORD = [(715, 8), (1201, 16), (1206, 16), (1294, 32), (1294, 32), (1347, 64), (1297, 64), (1292, 128), (1299, 128)]
RECOVERED = [(715, 8), (720, 8), (718, 16)]


def play(config: BreakerConfig) -> Iterator[str]:
    """A client that sends again at once after an answer, and 3 s after a refusal. One line for each request."""
    clock = Clock()
    start_s = clock.now
    breaker = Breaker(config, clock)
    answers = iter(RECORD + RECOVERED)
    while answer := next(answers, None):
        while True:
            at = f"{clock.now - start_s:4.1f} s"
            try:
                permit = breaker.admit()
                break
            except BreakerOpen as refusal:
                yield f"{at}  refused, retry after {refusal.retry_after_s:.1f} s"
                clock.now += 3.0
        ms, tokens = answer
        clock.now += ms / 1000
        meter = Meter(completion_tokens=tokens, device_s=ms / 1000)
        outcome = "slow" if breaker.is_slow(meter) else "ok"
        permit.settle(outcome)
        budget_ms = breaker.budget_s(meter) * 1000
        yield f"{at}  {ms} ms for {tokens} tokens, budget {budget_ms:.0f}: {outcome}, {breaker.state}"


def test_recorded_requests_under_plain_budget() -> None:
    assert list(play(PLAIN)) == [
        " 0.0 s  715 ms for 8 tokens, budget 1000: ok, closed",
        " 0.7 s  1201 ms for 16 tokens, budget 1000: slow, closed",
        " 1.9 s  1206 ms for 16 tokens, budget 1000: slow, closed",
        " 3.1 s  1294 ms for 32 tokens, budget 1000: slow, closed",
        " 4.4 s  1294 ms for 32 tokens, budget 1000: slow, open",
        " 5.7 s  refused, retry after 10.0 s",
        " 8.7 s  refused, retry after 7.0 s",
        "11.7 s  refused, retry after 4.0 s",
        "14.7 s  refused, retry after 1.0 s",
        "17.7 s  1347 ms for 64 tokens, budget 1000: slow, open",
        "19.1 s  refused, retry after 10.0 s",
        "22.1 s  refused, retry after 7.0 s",
        "25.1 s  refused, retry after 4.0 s",
        "28.1 s  refused, retry after 1.0 s",
        "31.1 s  1297 ms for 64 tokens, budget 1000: slow, open",
        "32.4 s  refused, retry after 10.0 s",
        "35.4 s  refused, retry after 7.0 s",
        "38.4 s  refused, retry after 4.0 s",
        "41.4 s  refused, retry after 1.0 s",
        "44.4 s  1292 ms for 128 tokens, budget 1000: slow, open",
        "45.6 s  refused, retry after 10.0 s",
        "48.6 s  refused, retry after 7.0 s",
        "51.6 s  refused, retry after 4.0 s",
        "54.6 s  refused, retry after 1.0 s",
        "57.6 s  1299 ms for 128 tokens, budget 1000: slow, open",
        "58.9 s  refused, retry after 10.0 s",
        "61.9 s  refused, retry after 7.0 s",
        "64.9 s  refused, retry after 4.0 s",
        "67.9 s  refused, retry after 1.0 s",
        "70.9 s  715 ms for 8 tokens, budget 1000: ok, half_open",
        "71.7 s  720 ms for 8 tokens, budget 1000: ok, closed",
        "72.4 s  718 ms for 16 tokens, budget 1000: ok, closed",
    ]


def test_recorded_requests_under_token_budget_never_open() -> None:
    assert list(play(PER_TOKEN)) == [
        " 0.0 s  715 ms for 8 tokens, budget 1140: ok, closed",
        " 0.7 s  1201 ms for 16 tokens, budget 1300: ok, closed",
        " 1.9 s  1206 ms for 16 tokens, budget 1300: ok, closed",
        " 3.1 s  1294 ms for 32 tokens, budget 1620: ok, closed",
        " 4.4 s  1294 ms for 32 tokens, budget 1620: ok, closed",
        " 5.7 s  1347 ms for 64 tokens, budget 2260: ok, closed",
        " 7.1 s  1297 ms for 64 tokens, budget 2260: ok, closed",
        " 8.4 s  1292 ms for 128 tokens, budget 3540: ok, closed",
        " 9.6 s  1299 ms for 128 tokens, budget 3540: ok, closed",
        "10.9 s  715 ms for 8 tokens, budget 1140: ok, closed",
        "11.7 s  720 ms for 8 tokens, budget 1140: ok, closed",
        "12.4 s  718 ms for 16 tokens, budget 1300: ok, closed",
    ]


def summary(name: str, config: BreakerConfig) -> str:
    """A row of the table in docs/reliability.md."""
    lines = list(play(config))
    answers = [line for line in lines if " tokens, " in line]
    refused = len(lines) - len(answers)
    opened = [number for number, line in enumerate(answers, 1) if line.endswith(", open")]
    if not opened:
        return f"| {name} | never | {refused} of {len(lines)} requests | |"
    closed = next(number for number, line in enumerate(answers, 1) if number > opened[-1] and line.endswith(", closed"))
    opens = f"with answer {opened[0]}, again with {', '.join(map(str, opened[1:]))}"
    return f"| {name} | {opens} | {refused} of {len(lines)} requests | with answer {closed} |"


def test_documentation_table_equals_replay() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for name, config in (("plain: 1000 ms", PLAIN), ("per token: 1000 ms + 20 ms a token", PER_TOKEN)):
        assert summary(name, config) in page.splitlines()
        assert "```text\n" + "\n".join(play(config)) + "\n```" in page


def test_warm_up_alone_does_not_open_breaker(clock: Clock) -> None:
    breaker = Breaker(PER_TOKEN, clock)
    for ms, tokens in [WARM_UP, *RECORD]:
        meter = Meter(completion_tokens=tokens, device_s=ms / 1000)
        settle(breaker, "slow" if breaker.is_slow(meter) else "ok")
    assert breaker.verdict == (1, 10)
    assert breaker.state == "closed"


# --- the budget


def test_budget_counts_computed_prompt_tokens_and_later_tokens(clock: Clock) -> None:
    breaker = Breaker(BreakerConfig(latency_ms=500, prompt_token_ms=2, token_ms=30), clock)
    assert breaker.budget_s(Meter()) == pytest.approx(0.5)
    meter = Meter(prompt_tokens=100, cached_tokens=60, completion_tokens=11)
    assert breaker.budget_s(meter) == pytest.approx(0.5 + 40 * 0.002 + 10 * 0.030)


def test_running_call_has_the_budget_of_one_more_token(clock: Clock) -> None:
    breaker = Breaker(BreakerConfig(latency_ms=500, token_ms=30), clock)
    meter = Meter(completion_tokens=11, device_s=0.8, call_since=clock.now)
    assert not breaker.is_slow(meter)
    clock.now += 0.029
    assert not breaker.is_slow(meter)
    clock.now += 0.002
    assert breaker.is_slow(meter)


@pytest.mark.parametrize(
    ("config", "passes", "budget"),
    [
        ({}, None, Budget(1000, 20, 200)),
        ({}, PassTimes(0.32, 0.05, wide_tokens=16), Budget(1920, 120, 300, is_measured=True)),
        ({}, PassTimes(0.02, 0.002, wide_tokens=64), Budget(1000, 10, 100, is_measured=True)),
        ({"latency_ms": 700.0}, PassTimes(9.0, 9.0), Budget(700, 0, 0)),
        ({"token_ms": 30.0}, PassTimes(9.0, 9.0), Budget(1000, 0, 30)),
        ({"token_ms": 0.0}, PassTimes(9.0, 9.0), Budget(1000, 0, 0)),
    ],
)
def test_configured_budget_wins_over_the_measured_one(
    config: dict[str, float], passes: PassTimes | None, budget: Budget
) -> None:
    assert Budget.of(BreakerConfig(**config), passes) == budget  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens_per_s", [3.0, 35.0])
def test_unconfigured_breaker_admits_a_slow_model_until_it_is_ten_times_slower(
    clock: Clock, tokens_per_s: float
) -> None:
    step_s = 1 / tokens_per_s
    passes = PassTimes(4 * step_s, step_s, wide_tokens=16)
    breaker = Breaker(BreakerConfig(), clock, status=lambda: EngineStatus(state="ready", passes=passes))

    def answer(slower: float) -> None:
        device_s = slower * (3 * 4 + 64) * step_s
        meter = Meter(prompt_tokens=48, completion_tokens=64, device_s=device_s)
        breaker.admit().settle("slow" if breaker.is_slow(meter) else "ok", meter)

    for _ in range(50):
        answer(1.5)
    assert breaker.verdict == (0, breaker.config.window)
    for _ in range(breaker.config.window // 2):
        answer(10)
    assert breaker.state == "open"


@pytest.mark.parametrize(("latency_ms", "is_slow"), [(None, False), (500.0, True)])
def test_another_server_is_slow_only_against_a_configured_budget(
    clock: Clock, latency_ms: float | None, is_slow: bool
) -> None:
    remote = EngineStatus(state="ready", device="remote")
    breaker = Breaker(BreakerConfig(latency_ms=latency_ms), clock, status=lambda: remote)
    assert breaker.is_slow(Meter(prompt_tokens=48, completion_tokens=1, device_s=50.0)) is is_slow
    assert (breaker.status.budget is not None) is is_slow


# --- opening


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        (["slow"] * 4, "closed"),  # fewer than min_calls
        (["slow"] * 5, "open"),
        (["failed", "slow", "ok", "ok", "failed"], "open"),
        (["ok", "ok", "ok", "slow", "slow"], "closed"),
        (["ok"] * 5 + ["slow"] * 5, "open"),  # half of the window is enough
        (["slow"] * 2 + ["ok"] * 8 + ["slow"] * 4, "closed"),  # the first two have left the window
        (["released"] * 100 + ["slow"] * 4, "closed"),
        (["ok"] * 10, "closed"),
    ],
)
def test_breaker_opens_at_rate_and_min_calls(clock: Clock, outcomes: list[str], state: str) -> None:
    breaker = Breaker(PLAIN, clock)
    settle(breaker, *outcomes)
    assert breaker.state == state


def test_refusal_has_reason_and_seconds(clock: Clock) -> None:
    breaker = Breaker(PLAIN, clock, name="smollm2")
    settle(breaker, *["slow"] * 5)
    clock.now += 3.5
    with pytest.raises(BreakerOpen) as caught:
        breaker.admit()
    assert caught.value.retry_after_s == pytest.approx(6.5)
    assert caught.value.message == (
        "smollm2 is too slow now: 5 of its last 5 answers were slow or failed. It is tried again in 6.5 s."
    )


def test_refusal_after_a_slow_answer_has_its_time_and_its_limit(clock: Clock) -> None:
    breaker = Breaker(replace(PLAIN, min_calls=1), clock, name="smollm2")
    breaker.admit().settle("slow", Meter(device_s=1.914))
    assert breaker.refusal().message == (
        "smollm2 is too slow now: 1 of its last 1 answers were slow or failed; the last slow one took 1.91 s of device "
        "time, the limit was 1 s. It is tried again in 10.0 s."
    )


def test_disabled_breaker_admits_everything(clock: Clock) -> None:
    breaker = Breaker(replace(PLAIN, enabled=False), clock)
    settle(breaker, *["failed"] * 50)
    assert (breaker.state, breaker.verdict) == ("closed", (0, 0))


def test_permit_settles_once(clock: Clock) -> None:
    breaker = Breaker(PLAIN, clock)
    permit = breaker.admit()
    for _ in range(20):
        permit.settle("slow")
    permit.settle("ok")
    assert breaker.verdict == (1, 1)


def test_permit_settles_released_on_context_exit(clock: Clock) -> None:
    breaker = opened(clock, probes=1)
    clock.now += 10
    for _ in range(5):  # refused if the previous permit were still out
        with pytest.raises(ZeroDivisionError), breaker.admit():
            _ = 1 / 0
    assert breaker.state == "half_open"


# --- half-open


def test_good_probes_close_half_open_breaker(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 9.999
    with pytest.raises(BreakerOpen):
        breaker.admit()
    clock.now += 0.001
    first, second = breaker.admit(), breaker.admit()
    with pytest.raises(BreakerOpen):
        breaker.admit()
    first.settle("ok")
    with pytest.raises(BreakerOpen):  # one good and one running probe are the two that close it
        breaker.admit()
    second.settle("ok")
    assert (breaker.state, breaker.verdict) == ("closed", (0, 0))


@pytest.mark.parametrize("outcome", ["slow", "failed"])
def test_bad_probe_opens_breaker_for_full_open_time(clock: Clock, outcome: str) -> None:
    breaker = opened(clock)
    clock.now += 10
    good, bad = breaker.admit(), breaker.admit()
    good.settle("ok")
    bad.settle(outcome)  # type: ignore[arg-type]
    assert breaker.state == "open"
    assert breaker.retry_after_s == 10.0


def test_released_probe_permits_another_probe(clock: Clock) -> None:
    breaker = opened(clock, probes=1)
    clock.now += 10
    for _ in range(3):
        breaker.admit().settle("released")
    breaker.admit().settle("ok")
    assert breaker.state == "closed"


def test_permit_from_before_state_change_is_ignored(clock: Clock) -> None:
    breaker = Breaker(PLAIN, clock)
    early = [breaker.admit() for _ in range(10)]
    settle(breaker, *["slow"] * 5)
    clock.now += 10
    assert breaker.state == "half_open"
    for permit in early[:5]:
        permit.settle("ok")
    for permit in early[5:]:
        permit.settle("failed")
    assert breaker.state == "half_open"
    settle(breaker, "ok", "ok")
    assert breaker.state == "closed"


def test_half_open_breaker_with_own_probes_admits_no_request(clock: Clock) -> None:
    breaker = opened(clock, probe_itself=True)
    clock.now += 10
    with pytest.raises(BreakerOpen):
        breaker.admit()
    breaker.admit(own_probe=True).settle("ok")
    with pytest.raises(BreakerOpen):
        breaker.admit()
    breaker.admit(own_probe=True).settle("ok")
    breaker.admit().settle("ok")


def test_half_open_breaker_admits_only_probes_of_thousand_requests(clock: Clock) -> None:
    breaker = opened(clock, probes=3)
    clock.now += 10
    permits: list[Permit] = []
    for _ in range(1000):
        try:
            permits.append(breaker.admit())
        except BreakerOpen as refusal:
            assert refusal.retry_after_s == 1.0
    assert len(permits) == 3


def test_on_change_is_called_once_for_each_state(clock: Clock) -> None:
    states: list[str] = []
    breaker = Breaker(PLAIN, clock, on_change=states.append)
    settle(breaker, *["slow"] * 5)
    clock.now += 10
    for _ in range(3):
        assert breaker.state == "half_open"
    settle(breaker, "ok", "ok")
    assert states == ["open", "half_open", "closed"]


class Orders(RuleBasedStateMachine):
    """Any order of admissions, outcomes and pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(BreakerConfig(window=6, min_calls=3, probes=2, probe_itself=False), self.clock)
        self.out: list[tuple[Permit, bool]] = []  # and True if admitted in this half-open state

    @rule()
    def request(self) -> None:
        state = self.breaker.state
        try:
            self.out.append((self.breaker.admit(), state == "half_open"))
            assert state != "open"
        except BreakerOpen as refusal:
            assert state != "closed"
            assert refusal.retry_after_s is not None and 0 < refusal.retry_after_s <= 10

    @precondition(lambda self: self.out)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "slow", "failed", "released"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        permit, _ = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        state = self.breaker.state
        permit.settle(outcome)  # type: ignore[arg-type]
        if self.breaker.state != state:
            self.out = [(each, False) for each, _ in self.out]

    @rule(seconds=st.sampled_from([0.1, 5.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        _ = self.breaker.state

    @invariant()
    def never_too_many_probes(self) -> None:
        assert sum(half_open for _, half_open in self.out) <= 2

    @invariant()
    def never_stuck(self) -> None:
        if self.breaker.state == "half_open" and not self.out:
            self.breaker.admit().settle("released")


TestOrders = Orders.TestCase
TestOrders.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# --- Watch


class Timers:
    """`call_later` on the clock of the test."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.woken = 0
        self._due = math.inf
        self._function = lambda: None

    def __call__(self, seconds: float, function: object) -> Timers:
        self._due, self._function = self.clock.now + seconds, function  # type: ignore[assignment]
        return self

    def cancel(self) -> None:
        self._due = math.inf

    def advance(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self._due <= end:
            self.clock.now, self._due = self._due, math.inf
            self.woken += 1
            self._function()
        self.clock.now = end


def test_watch_settles_hung_call_slow_at_its_budget(clock: Clock) -> None:
    breaker = Breaker(PLAIN, clock)
    settle(breaker, *["slow"] * 4)
    timers, permit = Timers(clock), breaker.admit()
    Watch(breaker, Meter(call_since=clock.now), permit, timers)
    timers.advance(0.99)
    assert breaker.state == "closed"
    timers.advance(0.02)
    assert breaker.state == "open"
    permit.settle("ok")  # the call returned later
    assert breaker.state == "open"


def test_watch_wakes_a_few_times_within_budget(clock: Clock) -> None:
    breaker = Breaker(BreakerConfig(latency_ms=200, token_ms=50, min_calls=1), clock)
    timers, meter, permit = Timers(clock), Meter(), breaker.admit()
    watch = Watch(breaker, meter, permit, timers)
    for _ in range(200):  # 45 ms for each token, 9 s together
        meter.call_since = clock.now
        timers.advance(0.045)
        meter.call_since = None
        meter.device_s += 0.045
        meter.completion_tokens += 1
    watch.stop()
    assert timers.woken < 50
    permit.settle("ok")
    assert breaker.verdict == (0, 1)


def test_waiting_request_uses_no_budget(clock: Clock) -> None:
    breaker = Breaker(replace(PLAIN, min_calls=1), clock)
    timers = Timers(clock)
    watch = Watch(breaker, Meter(), breaker.admit(), timers)
    timers.advance(3600)
    assert breaker.state == "closed"
    watch.stop()
    timers.advance(3600)
    assert timers.woken == 3600


def test_watch_stop_after_verdict_does_nothing(clock: Clock) -> None:
    breaker = Breaker(PLAIN, clock)
    watch = Watch(breaker, Meter(device_s=2.0), breaker.admit(), Timers(clock))
    watch.stop()
    assert breaker.verdict == (1, 1)
