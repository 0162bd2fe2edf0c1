"""Grammars compile in parallel with the token loop: other requests do not wait, and no grammar ends the worker."""

from __future__ import annotations

import json
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
from gateway.worker.grammar.compile_sandbox import CompileLimitError, CompileSandbox
from gateway.worker.grammar.constraint import GrammarCompiler, special_tokens
from tests.support.structured import lark, regex, schema_grammar
from tests.support.tiny import VOCABULARY
from tests.support.workers import PATIENCE_S, SpawnedWorker

#: Would take minutes and gigabytes to compile.
SLOW = schema_grammar({"properties": {"a": {"type": "integer", "multipleOf": 999_983}}})
#: Overflows the stack of the process that compiles it.
CRASH = lark("start: r0\n" + "".join(f'r{i}: r{i + 1} "x"\n' for i in range(12_000)) + 'r12000: "a"')
#: The same with fewer rules: it compiles.
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

    @staticmethod
    def source(lark: str) -> str:
        return json.dumps({"grammars": [{"lark_grammar": lark}]})

    @staticmethod
    def pid(sandbox: CompileSandbox) -> int:
        assert sandbox._process is not None
        return sandbox._process.pid

    def test_run_returns_message_of_library(self, sandbox: CompileSandbox) -> None:
        assert sandbox.run(self.source('start: "a"')) == ""
        assert "unknown name" in sandbox.run(self.source("start: a"))
        assert sandbox.run(self.source("start: <|im_start|> <[383]>")) == ""
        assert "too large" in sandbox.run(self.source("start: <[384]>"))

    def test_runs_share_one_process(self, sandbox: CompileSandbox) -> None:
        sandbox.run(self.source('start: "a"'))
        first = self.pid(sandbox)
        sandbox.run(self.source('start: "b"'))
        assert self.pid(sandbox) == first

    @pytest.mark.parametrize(
        "bomb",
        [CRASH.source, 'start: %json {"multipleOf": 999983, "type": "integer"}'],
        ids=["stack_overflow", "processor_time"],
    )
    def test_bomb_ends_only_the_child(
        self, sandbox: CompileSandbox, monkeypatch: pytest.MonkeyPatch, bomb: str
    ) -> None:
        monkeypatch.setattr(compile_sandbox, "MAX_CPU_S", 1.0)
        sandbox.run(self.source('start: "a"'))
        child = psutil.Process(self.pid(sandbox))
        with pytest.raises(CompileLimitError, match="more than 1 seconds or 768 MiB"):
            sandbox.run(self.source(bomb))
        assert not child.is_running()
        assert sandbox.run(self.source('start: "a"')) == ""

    def test_child_above_memory_limit_is_killed(self, sandbox: CompileSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compile_sandbox, "MAX_CPU_S", PATIENCE_S)
        monkeypatch.setattr(compile_sandbox, "MAX_BYTES", 100 * 1024 * 1024)
        with pytest.raises(CompileLimitError):
            sandbox.run(self.source("start: /" + "|".join("x" * length + "y" for length in range(4000)) + "/"))

    def test_child_ends_when_pipe_closes_during_compilation(self, tokenizer_path: Path) -> None:
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


class TestGrammarQueue:
    @pytest.fixture
    def inbox(self) -> SimpleQueue[Compiled]:
        return SimpleQueue()

    @pytest.fixture
    def queue(self, grammars: GrammarCompiler, inbox: SimpleQueue[Compiled]) -> GrammarQueue:
        return GrammarQueue(grammars, inbox.put)

    def test_compiled_grammar_is_cached(self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]) -> None:
        assert not queue.defer(submit(1, None))
        assert queue.defer(submit(2, regex("once")))
        compiled = inbox.get(timeout=PATIENCE_S)
        assert compiled.frame.id == 2 and queue.finish(compiled)
        assert not queue.defer(submit(3, regex("once")))
        assert queue(regex("once"))() is not queue(regex("once"))()

    def test_error_of_grammar_is_cached(self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]) -> None:
        queue.defer(submit(1, regex("(wrong")))
        assert queue.finish(inbox.get(timeout=PATIENCE_S))
        assert not queue.defer(submit(2, regex("(wrong")))
        other = Grammar(kind="regex", source="(wrong", param="guided_regex")
        with pytest.raises(InvalidRequest, match="unclosed group") as caught:
            queue(other)
        assert caught.value.param == "guided_regex"

    def test_cancelled_request_is_not_wanted_after_compilation(
        self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]
    ) -> None:
        queue.defer(submit(1, regex("cancelled")))
        queue.cancel(1)
        assert not queue.finish(inbox.get(timeout=PATIENCE_S))
        assert not queue.defer(submit(2, regex("cancelled")))

    def test_cache_evicts_least_recently_used_grammar(self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]) -> None:
        for index in range(40):
            assert queue.defer(submit(index, regex(f"old{index}")))
            queue.finish(inbox.get(timeout=PATIENCE_S))
            queue(regex("old0"))  # used, so it is not evicted
        assert queue.defer(submit(50, regex("old1")))
        assert not queue.defer(submit(51, regex("old0"))) and not queue.defer(submit(52, regex("old39")))
        inbox.get(timeout=PATIENCE_S)

    def test_failure_of_sandbox_is_not_cached(
        self, tokenizer_path: Path, inbox: SimpleQueue[Compiled], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiler = GrammarCompiler(tokenizer_path, VOCABULARY, (2, 0))
        queue = GrammarQueue(compiler, inbox.put)
        monkeypatch.setattr(compile_sandbox, "__file__", str(tokenizer_path))
        monkeypatch.setattr("sys.executable", str(tokenizer_path))  # not an executable file
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
        queue(DEEP)()


@pytest.fixture
def start(tiny: Path) -> Iterator[Callable[[], SpawnedWorker]]:
    workers = []

    def start() -> SpawnedWorker:
        workers.append(SpawnedWorker(WorkerSpec(bundle=str(tiny), threads=1)))
        workers[-1].receive_until(Ready)
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def test_bomb_delays_no_other_request(start: Callable[[], SpawnedWorker]) -> None:
    worker = start()
    worker.send(submit(1, SLOW))
    worker.send(submit(2, None, max_tokens=300))
    frames = worker.receive_until(Ended, Failed)
    assert frames[-1] == Ended(2, "length")  # before the bomb has used its processor time
    assert sum(len(frame.ids) for frame in frames if isinstance(frame, Tokens)) == 300
    failed = worker.receive_until(Failed)[-1]
    assert (failed.id, failed.kind, failed.param) == (1, "InvalidRequest", "p")
    assert "compiling it takes more than 5 seconds" in failed.message


def test_bad_deep_and_cancelled_grammars_affect_only_their_requests(start: Callable[[], SpawnedWorker]) -> None:
    worker = start()
    worker.send(submit(1, CRASH))
    worker.send(submit(2, schema_grammar({"items": {"type": "hiccup"}})))
    worker.send(submit(3, regex("[0-9]{3}")))
    worker.send(Cancel(3))
    worker.send(submit(4, DEEP, max_tokens=300))
    worker.send(submit(5, regex("[a-z]{4}"), n=2))
    worker.send(submit(6, None))
    frames: list[Any] = []
    while sum(isinstance(frame, Ended | Failed) for frame in frames) < 6:
        frames += worker.receive_until(Ended, Failed)
    failed = [(frame.id, frame.kind) for frame in frames if isinstance(frame, Failed)]
    assert failed == [(1, "InvalidRequest"), (2, "InvalidRequest")]
    ended = [(frame.id, frame.choice, frame.reason) for frame in frames if isinstance(frame, Ended)]
    assert sorted(ended) == [(4, 0, "length"), (5, 0, "stop"), (5, 1, "stop"), (6, 0, "length")]
    worker.send(Shutdown())
    assert worker.exit_code() == 0


def test_child_ends_with_killed_worker(start: Callable[[], SpawnedWorker]) -> None:
    worker = start()
    worker.send(submit(1, regex("[a-z]{4}")))
    worker.receive_until(Ended)
    children = psutil.Process(worker.process.pid).children()
    assert len(children) == 1
    worker.process.kill()
    assert psutil.wait_procs(children, timeout=PATIENCE_S)[1] == []
