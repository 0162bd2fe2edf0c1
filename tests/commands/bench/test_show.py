"""The printed report: fields between tabs in a pipe, lines that fit in a narrow terminal."""

from __future__ import annotations

from contextlib import redirect_stdout

import pytest

from gateway.commands.bench.report import Grammar, Report
from gateway.commands.bench.show import show
from gateway.config.tables import BreakerConfig
from tests.support.bench_report import report_of, run_of
from tests.support.terminal import Terminal

#: Tests of a terminal of 50 columns.
narrow = pytest.mark.parametrize("terminal", [50], indirect=True)


def shown(terminal: Terminal, report: Report) -> str:
    with redirect_stdout(terminal):
        show(report, BreakerConfig())
    return terminal.getvalue()


def test_pipe_gets_fields_between_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    show(report_of(published_tokens_per_s=21.2), BreakerConfig())
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {line[0] for line in lines} == {"answer", "speed", "prefill", "fact", "verdict"}
    answer = next(line for line in lines if line[:2] == ["answer", "64"])
    assert [float(field) for field in answer[2:]] == pytest.approx([3.6, 3.465, 3.51, 13.61], rel=1e-3)
    assert "no answer of this table opens" in lines[-1][1]
    facts = {line[1]: line[2] for line in lines if line[0] == "fact"}
    assert facts["first answer after the start"] == "800 ms"
    assert facts["published speed"] == "21.2 tokens/s; measured: 83% of it"


@narrow
def test_terminal_of_50_columns_shows_the_table(terminal: Terminal) -> None:
    text = shown(terminal, report_of())
    assert max(map(len, text.splitlines())) <= 50 and "\x1b" not in text
    assert "tokens  first run  later runs  average   limit\n" in text
    assert "    64     3.60 s      3.47 s   3.51 s  13.6 s\n" in text
    assert "prompt     new  tokens/s  from cache\n" in text and "23%" in text


@narrow
def test_grammar_within_the_spread_is_as_fast(terminal: Terminal) -> None:
    grammar = Grammar(plain=[run_of(32, 1.6), run_of(32, 2.0)], constrained=[run_of(32, 1.9), run_of(32, 1.9)])
    assert "as fast as" in " ".join(shown(terminal, report_of(grammar=grammar)).split())


@narrow
def test_report_without_any_answer_is_shown(terminal: Terminal) -> None:
    nothing = report_of(answers=[], prefill=[], grammar=None, memory=None, budget=None)
    assert "small & quick on npu" in shown(terminal, nothing)
