"""The order of the requests, the limit of time and an open breaker, with a clock and a target of the test."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands.bench.measure import Measurement, Plan
from gateway.commands.bench.report import Report, Run
from gateway.errors import BreakerOpen, EngineFailed, GatewayError, InvalidRequest
from tests.support.bench_report import run_of

PLAN = Plan(sizes=(8, 16), lengths=(64, 256, 1024), runs=2, limit_s=100.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Recorded:
    """Answers each request after a second. `failures`: number of the request -> errors of its attempts."""

    def __init__(self, clock: Clock, failures: dict[int, list[GatewayError]], grammars: bool = True) -> None:
        self.sent: list[tuple[int, bool]] = []
        self._clock = clock
        self._failures = failures
        self._grammars = grammars

    def run(self, text: str, tokens: int, *, limit_s: float, **fields: Any) -> Run:
        assert 0 < limit_s <= PLAN.limit_s
        if failures := self._failures.get(len(self.sent)):
            raise failures.pop(0)
        self.sent.append((tokens, bool(fields)))
        if fields and not self._grammars:
            raise InvalidRequest("This model does not support grammars.")
        self._clock.now += 1
        return run_of(tokens, 1.0, prompt=40 + len(text.split()))


def measured(plan: Plan = PLAN, *, grammars: bool = True, **failures: list[GatewayError]) -> tuple[Report, Recorded]:
    clock = Clock()
    target = Recorded(clock, {int(name[1:]): errors for name, errors in failures.items()}, grammars)
    report = Report(model="m", taken_at="", machine={}, context_length=1000)
    shown: list[str] = []
    Measurement(target, report, plan, shown.append, clock=clock, sleep=clock.sleep).run()
    assert all("left" in line or "next try" in line for line in shown)
    return report, target


def test_measurement_sends_answers_prompts_and_grammar() -> None:
    report, target = measured()
    assert target.sent[:4] == [(8, False), (8, False), (16, False), (16, False)]
    assert target.sent[4:10] == [(1, False)] * 6  # two new prompts and a known one, of two lengths
    assert target.sent[10:] == [(16, True), (16, False), (16, True), (16, False), (16, True)]
    assert [prefill.length for prefill in report.prefill] == [64, 256]  # 1024 do not fit into the context
    assert [len(answers.runs) for answers in report.answers] == [2, 2] and report.stopped == ""
    assert report.prefill[1].runs[0].prompt_tokens == pytest.approx(256, abs=30)


def test_model_without_grammars_has_no_figure_of_them() -> None:
    assert measured(grammars=False)[0].grammar is None


def test_limit_of_time_keeps_what_is_measured() -> None:
    report, _ = measured(Plan(sizes=(8, 16), lengths=(64,), runs=2, limit_s=3.0))
    assert [len(answers.runs) for answers in report.answers] == [2, 1]
    assert report.stopped.startswith("The limit of 3 s was reached; `--seconds`")


def test_open_breaker_is_waited_for() -> None:
    report, target = measured(_1=[BreakerOpen("It is slow.", retry_after_s=9.0)] * 2)
    assert report.stopped == "" and len(target.sent) == 15


def test_breaker_that_stays_open_ends_the_measurement_with_its_sentence() -> None:
    report, _ = measured(_1=[BreakerOpen("It is slow.", retry_after_s=9.0) for _ in range(3)])
    assert report.stopped == "The circuit breaker refuses requests: It is slow."
    assert [len(answers.runs) for answers in report.answers] == [1]


def test_prompt_above_an_unknown_context_ends_the_prompts_only() -> None:
    report, _ = measured(_4=[InvalidRequest("It is too long.")])
    assert report.prefill == [] and report.grammar is not None


def test_other_failure_is_raised() -> None:
    with pytest.raises(EngineFailed):
        measured(_1=[EngineFailed("It fell.")])
