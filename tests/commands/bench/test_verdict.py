"""The verdict against the breaker, and the proposed table."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest

from gateway.commands.bench.report import Answers, Report
from gateway.commands.bench.verdict import proposal, verdict
from gateway.config.tables import BreakerConfig
from gateway.lanes.breaker import Budget
from gateway.worker.frames import PassTimes
from tests.support.bench_report import report_of, run_of

#: 1 s and 0.1 s a token: 1.7 s for 8 tokens
BUDGET = Budget(1000, 0, 100)


def report(*totals: float, **fields: Any) -> Report:
    answers = [Answers(new_tokens=8, runs=[run_of(8, total) for total in totals])]
    values: dict[str, Any] = {"answers": answers, "budget": BUDGET} | fields
    return report_of(**values)


@pytest.mark.parametrize(
    ("totals", "config", "text"),
    [
        (
            (0.5, 0.9),
            BreakerConfig(),
            "8 tokens took 0.9 s; the limit is 1.7 s: no answer of this table opens the circuit breaker.",
        ),
        ((2.0, 0.5), BreakerConfig(), "8 tokens took 2 s; the limit is 1.7 s. 1 of 2 answers were slow: not enough"),
        ((2.0,) * 5, BreakerConfig(), "5 of 5 answers were slow: with these limits the circuit breaker opens."),
        ((2.0, 0.5, 0.5), BreakerConfig(min_calls=1), "1 of 3 answers were slow: with these limits"),
        ((), BreakerConfig(), ""),
    ],
)
def test_verdict_names_the_worst_answer(totals: tuple[float, ...], config: BreakerConfig, text: str) -> None:
    assert text in verdict(report(*totals), config)


def test_verdict_without_breaker() -> None:
    assert "is off in the configuration" in verdict(report(9.0, budget=None), BreakerConfig(enabled=False))


def test_proposal_is_the_budget_of_the_passes_as_valid_configuration() -> None:
    passes = PassTimes(wide_s=0.4, step_s=0.05, wide_tokens=16)
    table, text = proposal(report_of(passes=passes))
    budget = Budget.of(BreakerConfig(), passes)
    proposed = msgspec.convert(tomllib.loads(table)["breaker"], BreakerConfig)
    assert (proposed.latency_ms, proposed.prompt_token_ms, proposed.token_ms) == (2400, 150, 300)
    assert (budget.latency_ms, budget.prompt_token_ms, budget.token_ms) == pytest.approx((2400, 150, 300))
    assert "6 times what was measured" in text and "may take 36.3 s" in text


def test_proposal_for_an_engine_without_passes_uses_the_answers() -> None:
    table, _ = proposal(report_of(10.0))
    assert tomllib.loads(table)["breaker"]["token_ms"] == pytest.approx(6 * 550, rel=0.2)


def test_proposal_without_answers_says_so() -> None:
    assert proposal(report_of(answers=[])) == ("", "Nothing was measured from which limits can be computed.")
