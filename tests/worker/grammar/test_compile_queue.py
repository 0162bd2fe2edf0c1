"""Grammars compile in parallel with the token loop: other requests do not wait, and no grammar ends the worker."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil
import pytest

from gateway.errors import GatewayError, InvalidRequest, Unavailable
from gateway.generation import Grammar
from gateway.sampling import Sampling
from gateway.worker.frames import Cancel, Ended, Failed, Ready, Shutdown, Submit, Tokens, WorkerSpec
from gateway.worker.grammar import compile_queue
from gateway.worker.grammar.compile_queue import Compiled, GrammarQueue
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.grammar.constraint import CompiledGrammar
from tests.support.structured import lark, regex, schema_grammar
from tests.support.tiny import VOCABULARY
from tests.support.workers import PATIENCE_S, SpawnedWorker, compiles_at_usual_priority

#: Would take minutes and gigabytes to compile. (A divisor of 999,983 takes 4 to 7 s, and the limit is 5 s.)
SLOW = schema_grammar({"properties": {"a": {"type": "integer", "multipleOf": 99_999_989}}})
#: Overflows the stack of the process that compiles it.
CRASH = lark("start: r0\n" + "".join(f'r{i}: r{i + 1} "x"\n' for i in range(12_000)) + 'r12000: "a"')
#: The same with fewer rules: it compiles.
DEEP = lark("start: r0\n" + "".join(f'r{i}: r{i + 1} "x"\n' for i in range(2_500)) + 'r2500: "a"')


def submit(id: int, grammar: Grammar | None, **options: object) -> Submit:
    fields: dict[str, object] = {"ids": [5, 6, 7], "sampling": Sampling(temperature=0), "max_tokens": 8} | options
    return Submit(id=id, grammar=grammar, **fields)  # type: ignore[arg-type]


class PanicError(BaseException):
    """What the library raises is no Exception."""


@pytest.fixture
def inbox() -> SimpleQueue[Compiled]:
    return SimpleQueue()


class TestGrammarQueue:
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

    @pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), PanicError()], ids=["thread", "panic"])
    def test_start_that_fails_leaves_no_grammar_waiting(
        self,
        queue: GrammarQueue,
        grammars: GrammarCompiler,
        inbox: SimpleQueue[Compiled],
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr(grammars, "start", fail)
        assert queue.defer(submit(1, regex("begun")))
        assert queue.finish(inbox.get(timeout=PATIENCE_S))
        assert queue(regex("begun"))()

    def test_error_of_grammar_is_cached(self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]) -> None:
        queue.defer(submit(1, regex("(wrong")))
        assert queue.finish(inbox.get(timeout=PATIENCE_S))
        assert not queue.defer(submit(2, regex("(wrong")))
        other = Grammar(kind="regex", source="(wrong", param="guided_regex")
        with pytest.raises(InvalidRequest, match="unclosed group") as caught:
            queue(other)
        assert caught.value.param == "guided_regex"

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
        monkeypatch.setattr("sys.executable", str(tokenizer_path))  # not an executable file
        queue.defer(submit(1, regex("ours")))
        queue.finish(inbox.get(timeout=PATIENCE_S))
        with pytest.raises(Unavailable, match="The process that reads grammars does not work"):
            queue(regex("ours"))
        monkeypatch.undo()
        assert queue.defer(submit(2, regex("ours")))
        queue.finish(inbox.get(timeout=PATIENCE_S))
        queue(regex("ours"))
        with pytest.raises(Empty):
            inbox.get_nowait()
        compiler.close()

    def test_tokenizer_that_cannot_be_read_fails_only_its_requests(
        self, tokenizer_path: Path, tmp_path: Path, inbox: SimpleQueue[Compiled]
    ) -> None:
        path = tmp_path / "tokenizer.json"
        compiler = GrammarCompiler(path, VOCABULARY, (2, 0))
        queue = GrammarQueue(compiler, inbox.put)
        queue.defer(submit(1, regex("ours")))
        queue.finish(inbox.get(timeout=PATIENCE_S))
        with pytest.raises(Unavailable, match=r"its setup cannot be read: .*\. Try again") as caught:
            queue(regex("ours"))
        assert str(tmp_path) not in caught.value.message
        shutil.copy(tokenizer_path, path)
        queue.defer(submit(2, regex("ours")))
        queue.finish(inbox.get(timeout=PATIENCE_S))
        queue(regex("ours"))
        compiler.close()

    def test_grammar_as_deep_as_sandbox_permits_compiles(
        self, queue: GrammarQueue, inbox: SimpleQueue[Compiled]
    ) -> None:
        queue.defer(submit(1, DEEP))
        queue.finish(inbox.get(timeout=PATIENCE_S))
        queue(DEEP)()


class HeldCompiler:
    """Compiles nothing. It records the sources in the order of its work, and waits for permission to end each one.

    A source that begins with "slow" needs the second thread. "panic" raises what is no Exception.
    """

    class Panic(BaseException):
        pass

    def __init__(self) -> None:
        self.began: SimpleQueue[str] = SimpleQueue()
        self.permits = threading.Semaphore(0)
        self.slow_permits = threading.Semaphore(0)
        self.rested = threading.Event()
        self.may_rest = threading.Event()

    def start(self) -> None:
        pass

    def compile_quickly(self, grammar: Grammar) -> CompiledGrammar | None:
        self.began.put(grammar.source)
        self.permits.acquire()
        if grammar.source == "panic":
            raise self.Panic
        return None if grammar.source.startswith("slow") else self._compiled()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        self.began.put(f"again {grammar.source}")
        self.slow_permits.acquire()
        if grammar.source == "slow panic":
            raise self.Panic
        return self._compiled()

    def rest(self) -> None:
        self.rested.set()
        self.may_rest.wait()

    @staticmethod
    def _compiled() -> CompiledGrammar:
        return CompiledGrammar(None, None, None, None, 0.0)  # type: ignore[arg-type]

    def order(self, count: int) -> list[str]:
        return [self.began.get(timeout=PATIENCE_S) for _ in range(count)]


class TestOrder:
    @pytest.fixture
    def held(self) -> Iterator[HeldCompiler]:
        held = HeldCompiler()
        yield held
        held.permits.release(1000)
        held.slow_permits.release(1000)
        held.may_rest.set()

    @pytest.fixture
    def queue(self, held: HeldCompiler, inbox: SimpleQueue[Compiled]) -> GrammarQueue:
        return GrammarQueue(held, inbox.put)  # type: ignore[arg-type]

    def test_clients_take_turns(self, queue: GrammarQueue, held: HeldCompiler) -> None:
        for id, source in enumerate(["a1", "a2", "a3", "a4"]):
            queue.defer(submit(id, regex(source), client="a"))
        assert held.order(1) == ["a1"]
        queue.defer(submit(10, regex("b1"), client="b"))
        queue.defer(submit(11, regex("c1"), client="c"))
        held.permits.release(5)
        assert held.order(5) == ["a2", "b1", "c1", "a3", "a4"]

    def test_quick_grammar_passes_slow_ones(
        self, queue: GrammarQueue, held: HeldCompiler, inbox: SimpleQueue[Compiled]
    ) -> None:
        for id in range(3):
            queue.defer(submit(id, regex(f"slow{id}"), client="a"))
        queue.defer(submit(10, regex("quick"), client="b"))
        held.permits.release(4)
        assert inbox.get(timeout=PATIENCE_S).frame.id == 10  # no slow one has ended
        held.slow_permits.release(3)
        assert [inbox.get(timeout=PATIENCE_S).frame.id for _ in range(3)] == [0, 1, 2]
        assert held.rested.wait(PATIENCE_S)

    def test_process_for_slow_grammars_ends_when_the_others_are_abandoned(
        self, queue: GrammarQueue, held: HeldCompiler
    ) -> None:
        held.permits.release(3)
        for id in range(3):
            queue.defer(submit(id, regex(f"slow{id}")))
        assert set(held.order(4)) == {"slow0", "again slow0", "slow1", "slow2"}
        queue.cancel(1)
        queue.cancel(2)
        held.slow_permits.release(1)
        assert held.rested.wait(PATIENCE_S)

    def test_process_for_slow_grammars_ends_while_a_quick_grammar_compiles(
        self, queue: GrammarQueue, held: HeldCompiler
    ) -> None:
        queue.defer(submit(1, regex("slow")))
        held.permits.release(1)
        assert held.order(2) == ["slow", "again slow"]
        queue.defer(submit(2, regex("quick")))
        assert held.order(1) == ["quick"]
        held.slow_permits.release(1)
        assert held.rested.wait(PATIENCE_S)

    def test_token_loop_does_not_wait_for_the_end_of_that_process(
        self, queue: GrammarQueue, held: HeldCompiler
    ) -> None:
        held.permits.release(1)
        held.slow_permits.release(1)
        queue.defer(submit(1, regex("slow")))
        assert held.rested.wait(PATIENCE_S)
        loop = threading.Thread(target=queue.defer, args=(submit(2, regex("quick")),), daemon=True)
        loop.start()
        loop.join(PATIENCE_S)
        assert not loop.is_alive() and not held.may_rest.is_set()

    def test_panic_fails_only_its_request(
        self, queue: GrammarQueue, held: HeldCompiler, inbox: SimpleQueue[Compiled]
    ) -> None:
        held.permits.release(4)
        held.slow_permits.release(2)
        for id, source in enumerate(["panic", "slow panic", "quick", "slow"]):
            queue.defer(submit(id, regex(source)))
        results = [inbox.get(timeout=PATIENCE_S) for _ in range(4)]
        assert {result.frame.id for result in results if isinstance(result.outcome, GatewayError)} == {0, 1}

    @pytest.mark.parametrize("thread", ["grammar compiler", "slow grammar compiler"])
    def test_thread_that_cannot_start_fails_only_its_request(
        self,
        queue: GrammarQueue,
        held: HeldCompiler,
        inbox: SimpleQueue[Compiled],
        monkeypatch: pytest.MonkeyPatch,
        thread: str,
    ) -> None:
        start, failing = threading.Thread.start, [True]

        def fail_once(self: threading.Thread) -> None:
            if self.name == thread and failing:
                failing.clear()
                raise RuntimeError("can't start new thread")
            start(self)

        monkeypatch.setattr(threading.Thread, "start", fail_once)
        held.permits.release(2)
        held.slow_permits.release(2)
        for id in (1, 2):
            queue.defer(submit(id, regex("slow")))
            compiled = inbox.get(timeout=PATIENCE_S)
            assert compiled.frame.id == id and queue.finish(compiled)
            assert isinstance(compiled.outcome, Unavailable) == (id == 1)
            with suppress(Unavailable):
                queue(regex("slow"))  # the error is forgotten

    def test_slow_grammars_take_turns_by_client(self, queue: GrammarQueue, held: HeldCompiler) -> None:
        held.permits.release(6)
        queue.defer(submit(1, regex("slow1"), client="a"))
        assert set(held.order(2)) == {"slow1", "again slow1"}
        for id in (2, 3):
            queue.defer(submit(id, regex(f"slow{id}"), client="a"))
        queue.defer(submit(4, regex("slow4"), client="b"))
        queue.defer(submit(5, regex("last"), client="c"))
        assert set(held.order(4)) == {"slow2", "slow3", "slow4", "last"}
        held.slow_permits.release(3)
        assert held.order(3) == ["again slow2", "again slow4", "again slow3"]

    def test_abandoned_grammar_is_not_compiled(
        self, queue: GrammarQueue, held: HeldCompiler, inbox: SimpleQueue[Compiled]
    ) -> None:
        queue.defer(submit(1, regex("first")))
        assert held.order(1) == ["first"]
        for id in (2, 3, 4):
            queue.defer(submit(id, regex(f"left{id}")))
            queue.cancel(id)
        queue.defer(submit(5, regex("slow")))
        held.permits.release(1)
        assert held.order(1) == ["slow"]
        queue.cancel(5)
        queue.defer(submit(6, regex("last")))
        held.permits.release(2)
        assert held.order(1) == ["last"]
        assert queue.finish(inbox.get(timeout=PATIENCE_S)) and queue.finish(inbox.get(timeout=PATIENCE_S))
        assert held.began.empty()

    def test_cancelled_request_is_not_wanted_and_its_result_is_cached(
        self, queue: GrammarQueue, held: HeldCompiler, inbox: SimpleQueue[Compiled]
    ) -> None:
        queue.defer(submit(1, regex("shared")))
        held.permits.release(1)
        compiled = inbox.get(timeout=PATIENCE_S)
        queue.cancel(1)
        assert not queue.finish(compiled)
        assert not queue.defer(submit(2, regex("shared")))

    def test_grammar_that_all_requests_left_while_it_compiled_is_cached(
        self, queue: GrammarQueue, held: HeldCompiler, inbox: SimpleQueue[Compiled]
    ) -> None:
        queue.defer(submit(1, regex("left")))
        assert held.order(1) == ["left"]
        queue.cancel(1)
        held.permits.release(1)
        assert not queue.finish(inbox.get(timeout=PATIENCE_S))
        assert not queue.defer(submit(2, regex("left")))

    def test_result_on_its_way_is_used_by_the_next_request(
        self, queue: GrammarQueue, held: HeldCompiler, inbox: SimpleQueue[Compiled]
    ) -> None:
        queue.defer(submit(1, regex("shared")))
        held.permits.release(1)
        compiled = inbox.get(timeout=PATIENCE_S)
        assert not queue.defer(submit(2, regex("shared")))
        assert queue(regex("shared")) and queue.finish(compiled)

    def test_result_that_comes_during_the_look_into_the_cache_is_used(
        self,
        queue: GrammarQueue,
        held: HeldCompiler,
        inbox: SimpleQueue[Compiled],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        queue.defer(submit(1, regex("shared")))

        def start_late() -> None:
            """The compiler ends between the look into the cache and the entry in the queue."""
            held.permits.release(1)
            late.append(inbox.get(timeout=PATIENCE_S))

        late: list[Compiled] = []
        monkeypatch.setattr(queue, "start", start_late)
        assert not queue.defer(submit(2, regex("shared")))
        assert queue(regex("shared")) and queue.finish(late[0])

    def test_grammar_is_compiled_once_for_all_that_wait(
        self, queue: GrammarQueue, held: HeldCompiler, inbox: SimpleQueue[Compiled]
    ) -> None:
        for id in range(1, 5):
            queue.defer(submit(id, regex("shared"), client=str(id)))
        queue.defer(submit(5, regex("last"), client="5"))
        held.permits.release(2)
        assert [inbox.get(timeout=PATIENCE_S).frame.id for _ in range(5)] == [1, 2, 3, 4, 5]
        assert held.order(2) == ["shared", "last"] and held.began.empty()

    def test_cache_is_bounded_by_compile_time(self, queue: GrammarQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compile_queue, "_MAX_CACHED_CPU_S", 2.0)
        for id in range(4):
            compiled = CompiledGrammar(None, None, None, None, 0.9)  # type: ignore[arg-type]
            queue.finish(Compiled(submit(id, regex(str(id))), compiled))
        assert [queue.defer(submit(9 + id, regex(str(id)))) for id in range(4)] == [True, True, False, False]
        queue.finish(Compiled(submit(20, regex("huge")), CompiledGrammar(None, None, None, None, 4.0)))  # type: ignore[arg-type]
        assert not queue.defer(submit(21, regex("huge")))


@pytest.fixture
def start(tiny: Path) -> Iterator[Callable[..., SpawnedWorker]]:
    workers = []

    def start(**options: Any) -> SpawnedWorker:
        workers.append(SpawnedWorker(WorkerSpec(bundle=str(tiny), threads=1), **options))
        workers[-1].receive_until(Ready)
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def test_bomb_delays_no_other_request(start: Callable[..., SpawnedWorker]) -> None:
    worker = start(entry=compiles_at_usual_priority)  # so a busy machine lets the bomb use its processor time
    worker.send(submit(1, SLOW))
    worker.send(submit(2, None, max_tokens=300))
    frames = worker.receive_until(Ended, Failed)
    assert frames[-1] == Ended(2, "length")  # before the bomb has used its processor time
    assert sum(len(frame.ids) for frame in frames if isinstance(frame, Tokens)) == 300
    failed = worker.receive_until(Failed)[-1]
    assert (failed.id, failed.kind, failed.param) == (1, "InvalidRequest", "p")
    assert "compiling it takes more than 5 seconds" in failed.message


def test_bad_deep_and_cancelled_grammars_affect_only_their_requests(start: Callable[..., SpawnedWorker]) -> None:
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
    assert sorted(failed) == [(1, "InvalidRequest"), (2, "InvalidRequest")]
    ended = [(frame.id, frame.choice, frame.reason) for frame in frames if isinstance(frame, Ended)]
    assert sorted(ended) == [(4, 0, "length"), (5, 0, "stop"), (5, 1, "stop"), (6, 0, "length")]
    worker.send(Shutdown())
    assert worker.exit_code() == 0


def test_child_ends_with_killed_worker(start: Callable[..., SpawnedWorker]) -> None:
    worker = start()
    worker.send(submit(1, regex("[a-z]{4}")))
    worker.receive_until(Ended)
    children = psutil.Process(worker.process.pid).children()
    assert len(children) == 1
    worker.process.kill()
    assert psutil.wait_procs(children, timeout=PATIENCE_S)[1] == []
