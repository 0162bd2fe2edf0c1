"""The queue of requests whose grammar is being compiled. Other requests do not wait for it.

Compiling can take seconds, so it has its own thread, and the token loop continues. The result is cached: a compiled
grammar, or the error to report. Later requests with the same grammar do not wait.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from msgspec import Struct

from gateway.errors import EngineFailed, GatewayError
from gateway.generation import Grammar
from gateway.worker.failures import as_gateway_error
from gateway.worker.frames import Submit
from gateway.worker.grammar.compile_sandbox import STACK_BYTES
from gateway.worker.grammar.constraint import CompiledGrammar, GrammarCompiler
from gateway.worker.sequence import Constraint

_MAX_CACHED = 32  # grammars; the least recently used one is evicted


class Compiled(Struct, frozen=True):
    """A request whose grammar is compiled, and the result."""

    frame: Submit
    outcome: CompiledGrammar | GatewayError


class GrammarQueue:
    """For the thread of the token loop. Called with a grammar, it is a MakeConstraint.

    Args:
        put: called on the queue's own thread with each request that has finished waiting.
    """

    def __init__(self, compiler: GrammarCompiler, put: Callable[[Compiled], None]) -> None:
        self._compiler, self._put = compiler, put
        self._cache: OrderedDict[tuple[str, str], CompiledGrammar | GatewayError] = OrderedDict()
        self._waiting: set[int] = set()
        self._queue: SimpleQueue[Submit] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def defer(self, frame: Submit) -> bool:
        """Queue the request if its grammar is not cached. Returns True if it waits: `put` gets it later."""
        if frame.grammar is None or _key(frame.grammar) in self._cache:
            return False
        self._waiting.add(frame.id)
        self._queue.put(frame)
        self._thread = self._thread or _start(self._work)
        return True

    def cancel(self, request: int) -> None:
        """The client has cancelled the request. `finish` returns False for it."""
        self._waiting.discard(request)

    def finish(self, compiled: Compiled) -> bool:
        """Cache the result. Returns True if the request has not been cancelled."""
        assert compiled.frame.grammar is not None
        self._cache[_key(compiled.frame.grammar)] = compiled.outcome
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        is_wanted = compiled.frame.id in self._waiting
        self._waiting.discard(compiled.frame.id)
        return is_wanted

    def __call__(self, grammar: Grammar) -> Callable[[], Constraint]:
        """Makes constraints, for a request that does not wait. Raises the error of a bad grammar."""
        key = _key(grammar)
        self._cache.move_to_end(key)
        outcome = self._cache[key]
        if isinstance(outcome, EngineFailed):
            del self._cache[key]  # not the grammar's fault: compile it again next time
        if isinstance(outcome, GatewayError):
            raise type(outcome)(outcome.message, param=grammar.param)
        return partial(outcome.constraint, grammar.param)

    def _work(self) -> None:
        while True:
            frame = self._queue.get()
            assert frame.grammar is not None
            outcome: CompiledGrammar | GatewayError
            try:
                outcome = self._compiler.compile(frame.grammar)
            except Exception as error:
                outcome = as_gateway_error(error, "The grammar compiler")
            self._put(Compiled(frame, outcome))


def _key(grammar: Grammar) -> tuple[str, str]:
    return grammar.kind, grammar.source


def _start(work: Callable[[], None]) -> threading.Thread:
    """Start a thread whose stack fits every grammar that compiled in the sandbox."""
    usual = threading.stack_size(2 * STACK_BYTES)
    try:
        thread = threading.Thread(target=work, name="grammar compiler", daemon=True)
        thread.start()
    finally:
        threading.stack_size(usual)
    return thread
