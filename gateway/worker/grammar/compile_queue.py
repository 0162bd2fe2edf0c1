"""The queue of requests whose grammar is being compiled. Other requests do not wait for it.

Compiling can take seconds, so it has its own threads, and the token loop continues. Every grammar is first tried for a
quarter of a second. Only one that needs longer goes to a second thread, so ordinary grammars do not wait for slow ones.
In both, clients take turns. A grammar is compiled once for all requests that wait for it, and not at all if none does.

The result is cached: a compiled grammar, or the error to report. Later requests with the same grammar do not wait.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from msgspec import Struct

from gateway.errors import GatewayError, InvalidRequest, Unavailable
from gateway.generation import Grammar
from gateway.sandbox.client_queues import ClientQueues
from gateway.sandbox.priority import lower_thread_priority
from gateway.worker.failures import as_gateway_error
from gateway.worker.frames import Submit
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.grammar.constraint import CompiledGrammar
from gateway.worker.sequence import Constraint

_MAX_CACHED = 32  # grammars; the least recently used one is evicted
_MAX_CACHED_CPU_S = 2.0  # to compile them: 200 MB, because memory grows with the time
#: Of the threads that compile. The sandbox has 16 MiB, so a grammar that compiles there compiles here.
_STACK_BYTES = 32 * 1024 * 1024

Outcome = CompiledGrammar | GatewayError
_Key = tuple[str, str]


class Compiled(Struct, frozen=True):
    """A request whose grammar is compiled, and the result."""

    frame: Submit
    outcome: Outcome


@dataclass(eq=False)
class _Job:
    """A grammar, and the requests that wait for it."""

    grammar: Grammar
    newest: Submit  # also if it has been cancelled
    frames: dict[int, Submit] = field(default_factory=dict)
    is_slow: bool = False
    is_running: bool = False
    outcome: Outcome | None = None  # compiled, and not yet cached


class GrammarQueue:
    """For the thread of the token loop. Called with a grammar, it is a MakeConstraint.

    Args:
        put: called on the queue's own threads with each request that has finished waiting.
    """

    def __init__(self, compiler: GrammarCompiler, put: Callable[[Compiled], None]) -> None:
        self._compiler, self._put = compiler, put
        self._cache = _Cache()
        self._waiting: set[int] = set()
        self._jobs: dict[_Key, _Job] = {}
        self._quick, self._slow = ClientQueues[_Job](), ClientQueues[_Job]()
        self._changed = threading.Condition()  # guards the three above, and the jobs
        self._threads: dict[str, threading.Thread] = {}

    def token_bytes(self, token: int) -> bytes:
        """The text of a token. Empty for a token without text, and if the library cannot read the tokenizer."""
        return self._compiler.token_bytes(token)

    def start(self) -> None:
        """Start the sandbox and load the tokenizer in the background. The first grammar does it. Raises Unavailable."""
        self._start("grammar compiler", self._work)

    def close(self) -> None:
        """End the processes that read grammars, also during a compilation. Nothing can be compiled any more."""
        self._compiler.close()

    def defer(self, frame: Submit) -> bool:
        """Queue the request if its grammar is not cached. Returns True if it waits: `put` gets it later."""
        if frame.grammar is None:
            return False
        self._collect(_key(frame.grammar))
        if _key(frame.grammar) in self._cache:
            return False
        self._waiting.add(frame.id)
        try:
            self.start()
        except Unavailable as error:
            self._put(Compiled(frame, error))
            return True
        with self._changed:
            self._collect(_key(frame.grammar))
            if _key(frame.grammar) in self._cache:  # its job ended since the first look
                self._waiting.discard(frame.id)
                return False
            job = self._jobs.setdefault(_key(frame.grammar), _Job(frame.grammar, frame))
            job.newest = job.frames[frame.id] = frame
            (self._slow if job.is_slow else self._quick).put(frame.client, job)
            self._changed.notify_all()
        return True

    def cancel(self, request: int) -> None:
        """The client has cancelled the request. `finish` returns False for it.

        A grammar that no request waits for is skipped. One that is being compiled is finished: the limits are short,
        and a client that comes back with it gets the cached result.
        """
        if request not in self._waiting:
            return
        self._waiting.discard(request)
        with self._changed:
            for job in self._jobs.values():
                job.frames.pop(request, None)

    def finish(self, compiled: Compiled) -> bool:
        """Cache the result. Returns True if the request has not been cancelled."""
        assert compiled.frame.grammar is not None
        self._cache.put(_key(compiled.frame.grammar), compiled.outcome)
        self._collect(_key(compiled.frame.grammar))
        is_wanted = compiled.frame.id in self._waiting
        self._waiting.discard(compiled.frame.id)
        return is_wanted

    def __call__(self, grammar: Grammar) -> Callable[[], Constraint]:
        """Makes constraints, for a request that does not wait. Raises the error of a bad grammar."""
        outcome = self._cache.get(_key(grammar))
        if isinstance(outcome, GatewayError):
            raise type(outcome)(outcome.message, param=grammar.param, retry_after_s=outcome.retry_after_s)
        return partial(outcome.constraint, grammar.param)

    def _collect(self, key: _Key) -> None:
        """Cache the result of a job that is over, also if its requests have not come back to `finish` yet."""
        with self._changed:
            job = self._jobs.get(key)
            if job is not None and job.outcome is not None:
                self._cache.put(key, job.outcome)
                self._forget(job)

    # -- on the queue's own threads -----------------------------------------------------------------------------------

    def _work(self) -> None:
        """Try grammars for a short time each."""
        with suppress(BaseException):  # the first grammar does it, or gets the error
            self._compiler.start()
        while True:
            job = self._next(self._quick, is_slow=False)
            outcome = _attempt(self._compiler.compile_quickly, job.grammar)
            if outcome is not None:
                self._settle(job, outcome)
            else:
                self._pass_on(job)

    def _work_slowly(self) -> None:
        lower_thread_priority()
        while True:
            job: _Job | None = self._next(self._slow, is_slow=True)
            while job is not None:
                outcome = _attempt(self._compiler.compile, job.grammar)
                assert outcome is not None
                self._settle(job, outcome)
                job = self._take(self._slow, is_slow=True)
            self._compiler.rest()  # without the lock: the token loop needs it

    def _next(self, jobs: ClientQueues[_Job], *, is_slow: bool) -> _Job:
        """Wait for a job that is to be done here and that a request waits for."""
        with self._changed:
            while (job := self._take(jobs, is_slow=is_slow)) is None:
                self._changed.wait()
            return job

    def _take(self, jobs: ClientQueues[_Job], *, is_slow: bool) -> _Job | None:
        """The next job, as `_next`. None: there is none now."""
        with self._changed:
            while (job := jobs.get()) is not None:
                if job.is_slow == is_slow and not job.is_running:
                    if job.frames:
                        job.is_running = True
                        return job
                    self._forget(job)
        return None

    def _pass_on(self, job: _Job) -> None:
        try:
            self._start("slow grammar compiler", self._work_slowly)
        except Unavailable as error:
            return self._settle(job, error)
        with self._changed:
            job.is_slow, job.is_running = True, False
            for client in dict.fromkeys(frame.client for frame in job.frames.values()):
                self._slow.put(client, job)
            if not job.frames:
                self._forget(job)
            self._changed.notify_all()

    def _settle(self, job: _Job, outcome: Outcome) -> None:
        """The job remains until the result is cached, so that the grammar is not compiled again meanwhile."""
        with self._changed:
            job.outcome = outcome
            frames = list(job.frames.values()) or [job.newest]
        for frame in frames:
            self._put(Compiled(frame, outcome))

    def _forget(self, job: _Job) -> None:
        if self._jobs.get(_key(job.grammar)) is job:
            del self._jobs[_key(job.grammar)]

    def _start(self, name: str, work: Callable[[], None]) -> None:
        """Start a thread once. Its stack fits every grammar that compiled in the sandbox. Raises Unavailable."""
        if name in self._threads:
            return
        usual = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
            self._threads[name] = thread
        except (RuntimeError, MemoryError) as error:
            raise Unavailable(f"The grammar compiler cannot start: {error}. Try again.", retry_after_s=1.0) from None
        finally:
            threading.stack_size(usual)


class _Cache:
    """Results by grammar. The least recently used ones are evicted when there are too many or they are too large."""

    def __init__(self) -> None:
        self._outcomes: OrderedDict[_Key, Outcome] = OrderedDict()

    def __contains__(self, key: _Key) -> bool:
        return key in self._outcomes

    def get(self, key: _Key) -> Outcome:
        """The result. An error that is not the grammar's fault is forgotten."""
        self._outcomes.move_to_end(key)
        outcome = self._outcomes[key]
        if isinstance(outcome, GatewayError) and not isinstance(outcome, InvalidRequest):
            del self._outcomes[key]
        return outcome

    def put(self, key: _Key, outcome: Outcome) -> None:
        self._outcomes[key] = outcome
        self._outcomes.move_to_end(key)
        while len(self._outcomes) > _MAX_CACHED or (len(self._outcomes) > 1 and self._cpu_s() > _MAX_CACHED_CPU_S):
            self._outcomes.popitem(last=False)

    def _cpu_s(self) -> float:
        return sum(outcome.cpu_s for outcome in self._outcomes.values() if isinstance(outcome, CompiledGrammar))


def _attempt(work: Callable[[Grammar], CompiledGrammar | None], grammar: Grammar) -> Outcome | None:
    try:
        return work(grammar)
    except BaseException as error:  # a panic of llguidance is no Exception
        return as_gateway_error(error, "The grammar compiler")


def _key(grammar: Grammar) -> _Key:
    return grammar.kind, grammar.source
