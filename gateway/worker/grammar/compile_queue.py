"""Requests whose grammar has to be compiled first wait here, and nobody else waits for them.

Compiling may take seconds, so it has its own thread; the token loop goes on meanwhile. A request that comes back finds
its grammar, or what is wrong with it, kept for it and for the next ones.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from queue import SimpleQueue

from msgspec import Struct

from gateway.errors import EngineFailed, GatewayError
from gateway.generation import Grammar
from gateway.worker.frames import Submit
from gateway.worker.grammar.compile_sandbox import STACK_BYTES
from gateway.worker.grammar.constraint import CompiledGrammar, GrammarCompiler
from gateway.worker.sequence import Constraint

_log = logging.getLogger(__name__)

_KEPT = 32  # grammars

_Outcome = CompiledGrammar | GatewayError


class Compiled(Struct, frozen=True):
    """A request, and what became of its grammar."""

    frame: Submit
    outcome: CompiledGrammar | GatewayError


class GrammarQueue:
    """Belongs to the token loop's thread. Implements MakeConstraint by being called.

    Args:
        put: called on the queue's own thread with every request that waits no longer.
    """

    def __init__(self, compiler: GrammarCompiler, put: Callable[[Compiled], None]) -> None:
        self._compiler, self._put = compiler, put
        self._kept: OrderedDict[tuple[str, str], _Outcome] = OrderedDict()
        self._waiting: set[int] = set()
        self._queue: SimpleQueue[Submit] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def defer(self, frame: Submit) -> bool:
        """Whether the request has to wait; it will then come back as `Compiled`, unless it is cancelled."""
        if frame.grammar is None or _key(frame.grammar) in self._kept:
            return False
        self._waiting.add(frame.id)
        self._queue.put(frame)
        self._thread = self._thread or _start(self._work)
        return True

    def cancel(self, request: int) -> None:
        """The request is cancelled."""
        self._waiting.discard(request)

    def finish(self, compiled: Compiled) -> bool:
        """Keep the grammar; whether its request is still wanted."""
        assert compiled.frame.grammar is not None
        self._keep(compiled.frame.grammar, compiled.outcome)
        is_wanted = compiled.frame.id in self._waiting
        self._waiting.discard(compiled.frame.id)
        return is_wanted

    def __call__(self, grammar: Grammar) -> Constraint:
        """A constraint at its beginning, for a request that is not held. Raises what is wrong with the grammar."""
        self._kept.move_to_end(_key(grammar))
        outcome = self._kept[_key(grammar)]
        if isinstance(outcome, EngineFailed):
            del self._kept[_key(grammar)]  # it was not the grammar's fault
        if isinstance(outcome, GatewayError):
            raise type(outcome)(outcome.message, param=grammar.param)
        return outcome.constraint(grammar.param)

    def _keep(self, grammar: Grammar, outcome: _Outcome) -> None:
        self._kept[_key(grammar)] = outcome
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _outcome(self, grammar: Grammar) -> _Outcome:
        try:
            return self._compiler.compile(grammar)
        except GatewayError as error:
            return error
        except Exception as error:
            _log.exception("a grammar could not be compiled")
            return EngineFailed(f"The grammar could not be compiled: {type(error).__name__}.")

    def _work(self) -> None:
        while True:
            frame = self._queue.get()
            assert frame.grammar is not None
            self._put(Compiled(frame, self._outcome(frame.grammar)))


def _key(grammar: Grammar) -> tuple[str, str]:
    return grammar.kind, grammar.source


def _start(work: Callable[[], None]) -> threading.Thread:
    """A thread whose stack fits every grammar that compiled in the sandbox."""
    usual = threading.stack_size(2 * STACK_BYTES)
    try:
        thread = threading.Thread(target=work, name="grammars", daemon=True)
        thread.start()
    finally:
        threading.stack_size(usual)
    return thread
