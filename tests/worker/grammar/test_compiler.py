"""The limits of one grammar in the sandbox, and what the worker gets back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gateway.errors import InvalidRequest, Unavailable
from gateway.generation import Grammar
from gateway.worker.grammar.compiler import LIMITS, GrammarCompiler
from tests.support.structured import lark, regex, schema_grammar
from tests.support.tiny import VOCABULARY
from tests.support.workers import PATIENCE_S
from tests.worker.grammar.test_compile_queue import CRASH, SLOW

Make = Callable[..., GrammarCompiler]


@pytest.fixture
def make(tokenizer_path: Path) -> Iterator[Make]:
    made, limits = [], LIMITS._replace(wall_s=60 * PATIENCE_S)  # a busy machine gives a background process little time

    def make(**changes: float) -> GrammarCompiler:
        made.append(GrammarCompiler(tokenizer_path, VOCABULARY, (2, 0), limits=limits._replace(**changes)))
        return made[-1]

    yield make
    for compiler in made:
        compiler.close()


def refusal(compiler: GrammarCompiler, grammar: Grammar) -> str:
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(grammar)
    return caught.value.message


#: Each would take minutes, or end the process, at another step of the way from a client's text to a compiled grammar.
BOMBS = {
    "schema": SLOW,
    "stack": CRASH,
    "start_of_gbnf": lark("\n" * 200_000 + "a ::= b"),
    "gbnf_rules": lark("\n".join(f"r{i} ::= r{i + 1}" for i in range(9000)) + '\nr9000 ::= "a"\nroot ::= r0 root'),
}


@pytest.mark.parametrize("grammar", BOMBS.values(), ids=BOMBS)
def test_bomb_ends_only_the_sandbox(make: Make, grammar: Grammar) -> None:
    compiler = make(cpu_s=1.0)
    compiler.compile(regex("first"))
    pid = compiler._patient.pid
    assert pid is not None
    child = psutil.Process(pid)
    assert "compiling it takes more than 1 seconds or 768 MiB" in refusal(compiler, grammar)
    assert not child.is_running()
    compiler.compile(regex("next"))


def test_sandbox_above_memory_limit_is_ended(make: Make) -> None:
    compiler = make(cpu_s=PATIENCE_S, resident_bytes=100 << 20)
    assert "or 100 MiB" in refusal(compiler, SLOW)


def test_machine_that_is_too_busy_is_not_the_grammars_fault(make: Make) -> None:
    compiler = make(cpu_s=PATIENCE_S)
    compiler.compile(regex("first"))  # the process is set up
    usual, compiler._limits = compiler._limits, compiler._limits._replace(wall_s=0.0)
    with pytest.raises(
        Unavailable, match=r"^The machine is too busy: the grammar was not read in 0 seconds\. Try again"
    ):
        compiler.compile(SLOW)
    compiler._limits = usual
    compiler.compile(regex("next"))


def test_quick_try_gives_up_and_keeps_working(make: Make) -> None:
    compiler = make()
    assert compiler.compile_quickly(SLOW) is None
    assert compiler.compile_quickly(regex("next")) is not None


def test_quick_try_reports_mistakes(make: Make) -> None:
    with pytest.raises(InvalidRequest, match=r"at '#/items/format': 'format' must be a string, not \["):
        make().compile_quickly(schema_grammar({"items": {"format": ["date"]}}))


def test_rest_ends_the_process_for_slow_grammars(make: Make) -> None:
    compiler = make()
    compiler.compile(regex("once"))
    pid = compiler._patient.pid
    assert pid is not None
    child = psutil.Process(pid)
    compiler.rest()
    assert psutil.wait_procs([child], timeout=PATIENCE_S)[1] == []
    compiler.compile(regex("again"))


def test_library_names_special_tokens_by_text_and_id(make: Make) -> None:
    compiler = make()
    compiler.compile(lark("start: <|im_start|> <[383]>"))
    assert "too large" in refusal(compiler, lark("start: <[384]>"))
