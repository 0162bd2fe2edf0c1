"""Limits: what a request takes from its key and gives back, and the errors of those above a limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.config.tables import KeyLimits, LimitsConfig
from gateway.errors import LimitReached
from gateway.generation import UNLIMITED, Generation, Text
from gateway.lanes.limits.counters import Levels, MemoryCounters
from gateway.lanes.limits.limits import KeyUse, Limits
from gateway.monitoring.observers import CANCELLED, AnswerRecord
from tests.support.manual_clock import ManualClock

TEXT = Text("x" * 40)  # about 10 tokens


class Case:
    """Limits of the key "laptop" with a clock of the test."""

    def __init__(self, **limits: Any) -> None:
        self.clock = ManualClock()
        self.limits = Limits(LimitsConfig(**limits), MemoryCounters(self.clock))

    def begin(self, *texts: Text, id: str = "req", context_length: int = 4096, **fields: Any) -> None:
        fields = {"max_tokens": 100, **fields}
        generations = [Generation(id=id, model="m", prompt=text, **fields) for text in texts or (TEXT,)]
        asyncio.run(self.limits.begin("laptop", generations, context_length))

    def refusal(self, *texts: Text, **fields: Any) -> LimitReached:
        with pytest.raises(LimitReached) as caught:
            self.begin(*texts, id="refused", **fields)
        return caught.value

    def ended(self, id: str = "req", **fields: Any) -> None:
        self.limits.ended(AnswerRecord(at=0.0, id=id, requested="m", **{"ending": "stop", **fields}))

    @property
    def levels(self) -> Levels:
        quota = self.limits.quota("laptop")
        assert quota is not None
        return self.limits.counters.levels("laptop", quota)


def test_request_takes_prompt_and_answer_and_ends_with_what_it_used() -> None:
    case = Case(requests_per_minute=60, tokens_per_minute=1000)
    case.begin(n=3)
    assert case.levels == Levels(requests=1, tokens=310, running=1)
    case.ended(prompt_tokens=12, completion_tokens=40)
    case.limits.end("req")
    case.limits.end("req")
    assert case.levels == Levels(requests=1, tokens=52)
    assert case.limits._leases == {}


@pytest.mark.parametrize(
    ("record", "requests", "tokens"),
    [
        ({"ending": "rate_limit_exceeded", "status": 429}, 0, 0),
        ({"ending": "model_not_ready", "status": 503, "prompt_tokens": 12}, 0, 0),
        ({"ending": "cancelled", "status": CANCELLED, "prompt_tokens": 12}, 0, 0),  # before the device began
        ({"ending": "cancelled", "status": CANCELLED, "prompt_tokens": 12, "device_ms": 5.0}, 1, 12),
        ({"ending": "cancelled", "status": CANCELLED, "completion_tokens": 3}, 1, 13),  # of another server
        ({"ending": "engine_failed", "status": 503, "prompt_tokens": 12, "completion_tokens": 5}, 1, 17),
        ({"prompt_tokens": 500, "completion_tokens": 900}, 1, 1400),
    ],
)
def test_request_counts_what_a_model_did_for_it(record: dict[str, Any], requests: int, tokens: int) -> None:
    case = Case(requests_per_minute=60, tokens_per_minute=1000)
    case.begin()
    case.ended(**record)
    case.limits.end("req")
    assert case.levels == Levels(requests=requests, tokens=tokens)


def test_request_without_a_record_gives_everything_back() -> None:
    case = Case(requests_per_minute=60, tokens_per_minute=1000)
    case.begin()
    assert not case.limits.is_complete("req")
    case.limits.end("req")
    case.ended(prompt_tokens=12)  # too late
    assert case.levels == Levels()


def test_many_prompts_are_one_request_with_the_tokens_of_all() -> None:
    case = Case(requests_per_minute=60, tokens_per_minute=1000)
    case.begin(TEXT, TEXT, TEXT)
    assert case.levels == Levels(requests=1, tokens=330, running=1)
    case.ended(prompt_tokens=10, completion_tokens=20)
    case.ended(status=503, ending="engine_failed")  # and the third was not begun
    assert not case.limits.is_complete("req")
    case.limits.end("req")
    assert case.levels == Levels(requests=1, tokens=30)


@pytest.mark.parametrize(
    ("limits", "retry_after_s", "message"),
    [
        (
            {"requests_per_minute": 1},
            60.0,
            "The API key 'laptop' is at its limit of 1 request per minute. Try again in 60 s, or raise "
            "'requests_per_minute' in [limits.keys.laptop] of the gateway's config.",
        ),
        (
            {"tokens_per_minute": 150},
            28.0,
            "The API key 'laptop' is at its limit of 150 tokens per minute: this request needs 110. "
            "Try again in 28 s, or raise 'tokens_per_minute' in [limits.keys.laptop] of the gateway's config.",
        ),
        (
            {"concurrent_requests": 1},
            1.0,
            "The API key 'laptop' is at its limit of 1 request in progress. Try again when one has ended, or "
            "raise 'concurrent_requests' in [limits.keys.laptop] of the gateway's config.",
        ),
    ],
)
def test_refusal_names_limit_key_seconds_and_next_step(
    limits: dict[str, Any], retry_after_s: float, message: str
) -> None:
    case = Case(**limits)
    case.begin()
    error = case.refusal()
    assert (error.message, error.requested, error.should_retry) == (message, "m", None)
    assert error.retry_after_s == pytest.approx(retry_after_s)
    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert case.levels.running == 1


@pytest.mark.parametrize(
    ("fields", "context_length"), [({"max_tokens": 10**9}, 0), ({"n": 1000}, 0), ({"max_tokens": 10**9}, 4096)]
)
def test_request_that_can_never_run_is_refused_for_good(fields: dict[str, Any], context_length: int) -> None:
    case = Case(tokens_per_minute=1000)
    error = case.refusal(context_length=context_length, **fields)
    assert "may use 1000 per minute, so a retry never succeeds. Send a smaller token limit or a" in error.message
    assert (error.retry_after_s, error.should_retry) == (None, False)
    assert case.levels == Levels()


def test_answer_that_only_the_context_limits_takes_a_part_of_it() -> None:
    case = Case(tokens_per_minute=2000)
    case.begin(max_tokens=UNLIMITED, context_length=100_000)
    assert case.levels.tokens == 10 + 1024
    case.ended(prompt_tokens=10, completion_tokens=5000)
    case.limits.end("req")
    assert case.refusal().retry_after_s == pytest.approx((5010 + 110 - 2000) * 60 / 2000)


def test_number_of_tokens_that_no_model_makes_does_not_lock_a_key_for_ever() -> None:
    case = Case(tokens_per_minute=1000)
    case.begin()
    case.ended(prompt_tokens=10**15, completion_tokens=10**15)
    case.limits.end("req")
    case.clock.now += 62 * 60
    case.begin(id="next")


def test_keys_have_their_own_limits_and_those_without_limits_are_not_counted() -> None:
    limits = Limits(LimitsConfig(requests_per_minute=5, keys={"free": KeyLimits(requests_per_minute="unlimited")}))
    assert limits.quota("free") is None
    assert asyncio.run(limits.begin("free", [Generation(id="a", model="m", prompt=TEXT)], 0)) is None
    assert list(limits.used(["free", "laptop"])) == [
        KeyUse(
            key="laptop",
            requests=0.0,
            requests_per_minute=5,
            tokens=0.0,
            tokens_per_minute=None,
            running=0,
            concurrent_requests=None,
        )
    ]


def test_reload_counts_at_once_and_keeps_what_was_used() -> None:
    case = Case(requests_per_minute=2)
    case.begin(id="one")
    case.begin(id="two")
    case.refusal()
    case.limits.apply(LimitsConfig(requests_per_minute=3, models=("m",)))
    case.begin(id="three")
    case.refusal()
    assert case.limits.models("laptop") == {"m"}
    case.limits.apply(LimitsConfig())
    assert (case.limits.quota("laptop"), case.limits.models("laptop")) == (None, None)
    for id in ("one", "two", "three"):
        case.ended(id, prompt_tokens=1)
        case.limits.end(id)
    case.limits.apply(LimitsConfig(requests_per_minute=3))
    case.refusal()
    assert case.levels == Levels(requests=3)
