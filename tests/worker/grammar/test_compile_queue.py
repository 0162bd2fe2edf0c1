"""Compiling beside the token loop: nobody waits for somebody else's grammar, and no grammar ends the worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil
import pytest

from gateway.errors import EngineFailed, InvalidRequest
from gateway.generation import Grammar
from gateway.sampling import Sampling
from gateway.worker.frames import Cancel, Ended, Failed, Ready, Shutdown, Submit, Tokens, WorkerSpec
from gateway.worker.grammar import compile_sandbox
from gateway.worker.grammar.compile_queue import Compiled, GrammarQueue
from gateway.worker.grammar.compile_sandbox import CompileSandbox, TooMuch
from gateway.worker.grammar.constraint import GrammarCompiler, special_tokens
from tests.support.structured import lark, regex, schema_grammar
from tests.support.tiny import VOCABULARY
from tests.worker.test_worker import Worker

PATIENCE_S = 60.0
#: Minutes and gigabytes, if it were let.
SLOW = schema_grammar({"properties": {"a": {"type": "integer", "multipleOf": 999_983}}})
#: Overflows the stack of whatever compiles it.
CRASH = lark("start: r0\n" + "".join(f'r{i}: r{i + 1} "x"\n' for i in range(12_000)) + 'r12000: "a"')
#: As much of that as has to be borne.
DEEP = lark("start: r0\n" + "".join(f'r{i}: r{i + 1} "x"\n' for i in range(2_500)) + 'r2500: "a"')


def submit(id: int, grammar: Grammar | None, **options: object) -> Submit:
    fields: dict[str, object] = {"ids": [5, 6, 7], "sampling": Sampling(temperature=0), "max_tokens": 8} | options
    return Submit(id=id, grammar=grammar, **fields)  # type: ignore[arg-type]


class TestCompileSandbox:
    @pytest.fixture
    def sandbox(self, tokenizer_path: Path) -> Iterator[CompileSandbox]:
        sandbox = CompileSandbox(VOCABULARY, lambda: special_tokens(tokenizer_path))
        yield sandbox
        sandbox.close()

    @pytest.fixture
    def hurried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compile_sandbox, "MAX_SECONDS", 1.0)

    @staticmethod
    def source(lark: str) -> str:
        return json.dumps({"grammars": [{"lark_grammar": lark}]})

    @staticmethod
    def pid(sandbox: CompileSandbox) -> int:
        assert sandbox._process is not None
        return sandbox._process.pid

    def test_says_what_the_library_says(self, sandbox: CompileSandbox) -> None:
        assert sandbox.run(self.source('start: "a"')) == ""
        assert "unknown name" in sandbox.run(self.source("start: a"))
        assert sandbox.run(self.source("start: <|im_start|> <[383]>")) == ""
        assert "too large" in sandbox.run(self.source("start: <[384]>"))

    def test_one_process_for_all(self, sandbox: CompileSandbox) -> None:
        sandbox.run(self.source('start: "a"'))
        first = self.pid(sandbox)
        sandbox.run(self.source('start: "b"'))
        assert self.pid(sandbox) == first

    @pytest.mark.parametrize("bomb", [CRASH.source, 'start: %json {"multipleOf": 999983, "type": "integer"}'])
    @pytest.mark.usefixtures("hurried")
    def test_a_bomb_goes_off_where_it_harms_nobody(self, sandbox: CompileSandbox, bomb: str) -> None:
        started = time.monotonic()
        with pytest.raises(TooMuch, match="more than 1 seconds or 768 MiB"):
            sandbox.run(self.source(bomb))
        assert time.monotonic() - started < 5
        assert sandbox.run(self.source('start: "a"')) == ""

    def test_memory_is_bounded_too(self, sandbox: CompileSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compile_sandbox, "MAX_SECONDS", PATIENCE_S)
        monkeypatch.setattr(compile_sandbox, "MAX_BYTES", 100 * 1024 * 1024)
        with pytest.raises(TooMuch):
            sandbox.run(self.source("start: /" + "|".join("x" * length + "y" for length in range(4000)) + "/"))

    def test_the_child_dies_with_its_parent(self, tokenizer_path: Path) -> None:
        """Also in the middle of a grammar: the parent's end of the pipe is gone, and that is all it needs."""
        sandbox = CompileSandbox(VOCABULARY, lambda: special_tokens(tokenizer_path))
        sandbox.run(self.source('start: "a"'))
        child = psutil.Process(self.pid(sandbox))
        process = sandbox._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(self.source('start: %json {"multipleOf": 999983}')).encode() + b"\n")
        process.stdin.close()
        assert psutil.wait_procs([child], timeout=PATIENCE_S)[1] == []
        process.stdout.close()
        process.wait()


class TestDesk:
    @pytest.fixture
    def inbox(self) -> SimpleQueue[Compiled]:
        return SimpleQueue()

    @pytest.fixture
    def queue(self, grammars: GrammarCompiler, inbox: SimpleQueue[Compiled]) -> GrammarQueue:
        return GrammarQueue(grammars, inbox.put)

    def test_a_grammar_is_waited_for_once(self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]) -> None:
        assert not queue.defer(submit(1, None))
        assert queue.defer(submit(2, regex("once")))
        compiled = inbox.get(timeout=PATIENCE_S)
        assert compiled.frame.id == 2 and queue.finish(compiled)
        assert not queue.defer(submit(3, regex("once")))
        assert queue(regex("once")) is not queue(regex("once"))

    def test_so_is_what_is_wrong_with_it(self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]) -> None:
        queue.defer(submit(1, regex("(wrong")))
        assert queue.finish(inbox.get(timeout=PATIENCE_S))
        assert not queue.defer(submit(2, regex("(wrong")))
        other = Grammar(kind="regex", source="(wrong", param="guided_regex")
        with pytest.raises(InvalidRequest, match="unclosed group") as caught:
            queue(other)
        assert caught.value.param == "guided_regex"

    def test_who_is_cancelled_does_not_come_back(self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]) -> None:
        queue.defer(submit(1, regex("cancelled")))
        queue.cancel(1)
        assert not queue.finish(inbox.get(timeout=PATIENCE_S))
        assert not queue.defer(submit(2, regex("cancelled")))

    def test_the_oldest_are_forgotten(self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]) -> None:
        for index in range(40):
            assert queue.defer(submit(index, regex(f"old{index}")))
            queue.finish(inbox.get(timeout=PATIENCE_S))
            queue(regex("old0"))  # used, so it stays
        assert queue.defer(submit(50, regex("old1")))
        assert not queue.defer(submit(51, regex("old0"))) and not queue.defer(submit(52, regex("old39")))
        inbox.get(timeout=PATIENCE_S)

    def test_a_failure_of_ours_is_not_kept(
        self, tokenizer_path: Path, inbox: SimpleQueue[Compiled], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiler = GrammarCompiler(tokenizer_path, VOCABULARY, (2, 0))
        queue = GrammarQueue(compiler, inbox.put)
        monkeypatch.setattr(compile_sandbox, "__file__", str(tokenizer_path))
        monkeypatch.setattr("sys.executable", str(tokenizer_path))  # nothing that can be started
        queue.defer(submit(1, regex("ours")))
        queue.finish(inbox.get(timeout=PATIENCE_S))
        with pytest.raises(EngineFailed):
            queue(regex("ours"))
        monkeypatch.undo()
        assert queue.defer(submit(2, regex("ours")))
        queue.finish(inbox.get(timeout=PATIENCE_S))
        queue(regex("ours"))
        with pytest.raises(Empty):
            inbox.get_nowait()
        compiler.close()

    def test_grammar_as_deep_as_sandbox_permits_compiles(
        self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]
    ) -> None:
        queue.defer(submit(1, DEEP))
        queue.finish(inbox.get(timeout=PATIENCE_S))
        queue(DEEP)


@pytest.fixture
def start(tiny: Path) -> Iterator[Callable[[], Worker]]:
    workers = []

    def start() -> Worker:
        workers.append(Worker(WorkerSpec(bundle=str(tiny), threads=1)))
        workers[-1].hear_until(Ready)
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def test_a_bomb_stalls_nobody(start: Callable[[], Worker]) -> None:
    worker = start()
    worker.say(submit(1, SLOW))
    started = time.monotonic()
    worker.say(submit(2, None, max_tokens=300))
    frames = worker.hear_until(Ended)
    assert frames[-1] == Ended(2, "length") and time.monotonic() - started < 4
    assert sum(len(frame.ids) for frame in frames if isinstance(frame, Tokens)) == 300
    failed = worker.hear_until(Failed)[-1]
    assert (failed.id, failed.kind, failed.param) == (1, "InvalidRequest", "p")
    assert "compiling it takes more than 5 seconds" in failed.message


def test_bad_deep_and_cancelled_grammars_are_their_requests_own(start: Callable[[], Worker]) -> None:
    worker = start()
    worker.say(submit(1, CRASH))
    worker.say(submit(2, schema_grammar({"items": {"type": "hiccup"}})))
    worker.say(submit(3, regex("[0-9]{3}")))
    worker.say(Cancel(3))
    worker.say(submit(4, DEEP, max_tokens=300))
    worker.say(submit(5, regex("[a-z]{4}"), n=2))
    worker.say(submit(6, None))
    frames: list[Any] = []
    while sum(isinstance(frame, Ended | Failed) for frame in frames) < 6:
        frames += worker.hear_until(Ended, Failed)
    failed = [(frame.id, frame.kind) for frame in frames if isinstance(frame, Failed)]
    assert failed == [(1, "InvalidRequest"), (2, "InvalidRequest")]
    ended = [(frame.id, frame.choice, frame.reason) for frame in frames if isinstance(frame, Ended)]
    assert sorted(ended) == [(4, 0, "length"), (5, 0, "stop"), (5, 1, "stop"), (6, 0, "length")]
    worker.say(Shutdown())
    assert worker.exit_code() == 0


def test_the_child_is_gone_with_a_worker_that_is_killed(start: Callable[[], Worker]) -> None:
    worker = start()
    worker.say(submit(1, regex("[a-z]{4}")))
    worker.hear_until(Ended)
    children = psutil.Process(worker.process.pid).children()
    assert len(children) == 1
    worker.process.kill()
    assert psutil.wait_procs(children, timeout=PATIENCE_S)[1] == []
