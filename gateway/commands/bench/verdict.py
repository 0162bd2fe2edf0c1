"""Compares measured answers with the budget of the circuit breaker, and proposes a budget."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from gateway.commands.bench.report import Report, Run
from gateway.config.tables import BreakerConfig
from gateway.lanes.breaker import MARGIN, Breaker, Budget
from gateway.worker.frames import PassTimes


def limit_s(run: Run, budget: Budget) -> float:
    """The time that the breaker allows this answer. It judges device time, of which a client sees a little more."""
    return budget.seconds(run.computed_tokens, run.tokens - 1)


def verdict(report: Report, breaker: BreakerConfig) -> str:
    """Whether answers of these times open the breaker, with the one that was nearest to its limit."""
    runs = [run for answers in report.answers for run in answers.runs]
    if not runs:
        return ""
    if report.budget is None:
        return "The circuit breaker is off in the configuration: no answer is refused for slowness."
    budget = report.budget
    worst = max(runs, key=lambda run: run.total_s / limit_s(run, budget))
    text = f"{worst.tokens} tokens took {worst.total_s:.2g} s; the limit is {limit_s(worst, budget):.3g} s"
    slow = [run for run in runs if run.total_s > limit_s(run, budget)]
    if not slow:
        return f"{text}: no answer of this table opens the circuit breaker."
    what = f"{text}. {len(slow)} of {len(runs)} answers were slow"
    if _opens(runs, budget, breaker):
        return f"{what}: with these limits the circuit breaker opens. `npu-gateway bench --calibrate` proposes others."
    share = f"{breaker.rate:.0%} of the last {breaker.window}, at least {breaker.min_calls},"
    return f"{what}: not enough to open the circuit breaker, which needs {share} to be slow."


def _opens(runs: Sequence[Run], budget: Budget, config: BreakerConfig) -> bool:
    breaker = Breaker(config)
    for run in runs:
        if breaker.state != "closed":
            return True
        breaker.admit().settle("slow" if run.total_s > limit_s(run, budget) else "ok")
    return breaker.state != "closed"


def measured_passes(report: Report) -> PassTimes | None:
    """What the gateway measured when it loaded the model; of an engine that does not: from the answers."""
    runs = [run for answers in report.answers for run in answers.runs]
    speeds = [run.tokens_per_s for run in runs if run.tokens_per_s]
    if report.passes or not speeds:
        return report.passes
    first = min(
        (run for prefill in report.prefill for run in prefill.runs), key=lambda run: run.first_s, default=runs[0]
    )
    return PassTimes(first.first_s, 1 / statistics.median(speeds), first.computed_tokens)


def proposal(report: Report) -> tuple[str, str]:
    """A `[breaker]` table to paste, and what it means."""
    passes = measured_passes(report)
    if passes is None:
        return "", "Nothing was measured from which limits can be computed."
    budget = Budget.of(BreakerConfig(), passes)
    values = {"latency_ms": budget.latency_ms, "prompt_token_ms": budget.prompt_token_ms, "token_ms": budget.token_ms}
    table = "\n".join(["[breaker]", *(f"{name} = {_rounded(value)}" for name, value in values.items())])
    needed_s = passes.wide_s * 100 / passes.wide_tokens + passes.step_s * 63
    text = (
        f"The limit of an answer is {budget}: {MARGIN:g} times what was measured, and never below 1 s + 10 ms a prompt "
        f"token + 100 ms a token. 64 tokens after a prompt of 100 need about {needed_s:.2g} s of device time and may "
        f"take {budget.seconds(100, 63):.3g} s. Without this table the gateway measures the limits at each start of "
        "the model. Paste it into config.toml to keep them (`npu-gateway config path` shows the file)."
    )
    return table, text


def _rounded(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
