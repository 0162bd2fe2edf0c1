"""A complete report of `npu-gateway bench` with known figures."""

from __future__ import annotations

from typing import Any

from gateway.commands.bench.report import Answers, Grammar, Memory, Prefill, Report, Run
from gateway.lanes.breaker import Budget


def run_of(tokens: int, total_s: float, *, first_s: float = 0.1, prompt: int = 40, cached: int = 0) -> Run:
    return Run(prompt_tokens=prompt, cached_tokens=cached, tokens=tokens, first_s=first_s, total_s=total_s)


def report_of(factor: float = 1.0, **fields: Any) -> Report:
    """Answers at 20 tokens/s times 1 / factor, with a spread of a tenth."""
    answers = [
        Answers(
            new_tokens=n,
            runs=[
                run_of(n, factor * (0.4 + n / 20), first_s=0.4 * factor),
                *(run_of(n, factor * (0.1 + n / 20) * share, first_s=0.1 * factor, cached=39) for share in (1.0, 1.1)),
            ],
        )
        for n in (8, 64)
    ]
    prompts = [run_of(1, s * factor, first_s=s * factor, prompt=256) for s in (2.0, 2.2)]
    again = run_of(1, 0.1 * factor, first_s=0.1 * factor, prompt=256, cached=255)
    values: dict[str, Any] = {
        "model": "small & quick",
        "taken_at": "2026-11-30T10:00:00+0000",
        "machine": {"cores": 2},
        "device": "npu",
        "gateway_version": "0.1.0",
        "start_to_ready_s": 3.2 * factor,
        "budget": Budget(1000, 10, 200),
        "answers": answers,
        "prefill": [Prefill(length=256, runs=prompts, again=again)],
        "grammar": Grammar(plain=[run_of(32, 1.65)], constrained=[run_of(32, 2.1)]),
        "memory": Memory(gateway_bytes=60_000_000, worker_bytes=400_000_000, peak_bytes=460_000_000),
    }
    return Report(**(values | fields))
