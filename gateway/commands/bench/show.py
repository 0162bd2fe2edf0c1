"""Prints a report: tables in a terminal, fields between tabs in a pipe with the name of the table in front."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from gateway.bundles.disk import megabytes
from gateway.commands.bench.report import Answers, Grammar, Prefill, Report, overlap, speeds
from gateway.commands.bench.verdict import limit_s, verdict
from gateway.commands.tables import Column, wrapped, write_table
from gateway.config.tables import BreakerConfig
from gateway.monitoring.output import escape


def seconds(value: Any) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def per_second(value: Any) -> str:
    return f"{value:.1f}"


def show(report: Report, breaker: BreakerConfig) -> None:
    where = f"{report.model} on {report.device or 'an unknown device'}"
    say(f"{where}, {report.gateway or 'a gateway for this measurement'}, npu-gateway {report.gateway_version}")
    _table("answer", "Answers; the second run has the same prompt (prefix cache)", _answers(report))
    _table("speed", "Speed, of the last run", _speeds(report))
    _table("prefill", "Time to first token by length of the prompt", _prefill(report))
    _table("fact", "", _facts(report))
    _verdict(verdict(report, breaker))


def _verdict(text: str) -> None:
    if text and is_terminal():
        say("")
        say(text)
    elif text:
        write_table([("verdict", text)], ["", ""])


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def say(text: str) -> None:
    """A line for a person: not in a pipe."""
    if is_terminal():
        print(*(wrapped(escape(text), shutil.get_terminal_size().columns) or [""]), sep="\n")


def _table(name: str, title: str, table: tuple[Sequence[Column], Sequence[Sequence[object]]]) -> None:
    columns, rows = table
    if not rows:
        return
    if is_terminal():
        say("")
        if title:
            say(title)
        write_table(rows, columns)
    else:
        write_table([(name, *row) for row in rows], [Column(), *columns])


def _answers(report: Report) -> tuple[list[Column], list[list[object]]]:
    measured = [answers for answers in report.answers if answers.runs]
    later = "second run" if max((len(answers.runs) for answers in measured), default=2) == 2 else "later runs"
    time = partial(Column, right=True, shown=seconds)
    columns = [Column("tokens", right=True), time("first run"), time(later), time("average"), time("limit")]
    return columns, [_answer_row(answers, report) for answers in measured]


def _speeds(report: Report) -> tuple[list[Column], list[list[object]]]:
    columns = [Column("tokens", right=True), Column("first token", right=True, shown=seconds)]
    columns.append(Column("tokens/s", right=True, shown=per_second))
    measured = [answers for answers in report.answers if answers.runs]
    return columns, [
        [each.new_tokens, each.runs[-1].first_s, statistics.median(speeds(each.runs) or [0])] for each in measured
    ]


def _answer_row(answers: Answers, report: Report) -> list[object]:
    totals = [run.total_s for run in answers.runs]
    last = answers.runs[-1]
    return [
        answers.new_tokens,
        totals[0],
        statistics.median(totals[1:]) if totals[1:] else None,
        statistics.fmean(totals),
        limit_s(last, report.budget) if report.budget else None,
    ]


def _prefill(report: Report) -> tuple[list[Column], list[list[object]]]:
    time, speed = partial(Column, right=True, shown=seconds), partial(Column, right=True, shown=per_second)
    columns = [Column("prompt", right=True), time("new"), speed("tokens/s"), time("from cache")]
    return columns, [_prefill_row(prefill) for prefill in report.prefill]


def _prefill_row(prefill: Prefill) -> list[object]:
    return [
        prefill.runs[0].prompt_tokens,
        statistics.median(run.first_s for run in prefill.runs),
        statistics.median(run.prefill_tokens_per_s for run in prefill.runs),
        prefill.again.first_s if prefill.again else None,
    ]


def _facts(report: Report) -> tuple[list[Column], list[list[object]]]:
    facts: list[list[object]] = []
    if report.start_to_ready_s is not None:
        facts.append(["start to ready", seconds(report.start_to_ready_s)])
        first = next((answers.runs[0] for answers in report.answers if answers.runs), None)
        facts += [["first answer after the start", seconds(first.total_s)]] if first else []
    measured = [speed for answers in report.answers for speed in speeds(answers.runs)]
    if report.published_tokens_per_s and measured:
        share = statistics.median(measured) / report.published_tokens_per_s
        facts.append(["published speed", f"{report.published_tokens_per_s:g} tokens/s; measured: {share:.0%} of it"])
    if report.grammar and (text := _grammar(report.grammar)):
        facts.append(["constrained by a grammar", text])
    if report.memory:
        facts.append(["memory of the gateway", megabytes(report.memory.gateway_bytes)])
        facts.append(["memory of the workers", megabytes(report.memory.worker_bytes)])
    if report.budget:
        facts.append(["limit of an answer", str(report.budget)])
    return [Column(), Column()], facts


def _grammar(grammar: Grammar) -> str:
    plain, constrained = speeds(grammar.plain), speeds(grammar.constrained)
    if not plain or not constrained:
        return ""
    with_it, without = statistics.median(constrained), statistics.median(plain)
    change = with_it / without - 1
    compared = f"{abs(change):.0%} {'faster' if change > 0 else 'slower'} than"
    if overlap(plain, constrained):
        compared = "as fast as"
    return f"{with_it:.1f} tokens/s, {compared} without one ({without:.1f})"
