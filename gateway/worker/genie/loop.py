"""Runs requests on a Genie dialog, one after another.

A dialog has one conversation in its cache and uses the device until a query ends. So requests wait in a queue, and
background requests wait for all others. Measurements of the library (docs/genie.md) lead to these rules:

1. Every prompt is a REWIND query. It keeps the common prefix with the previous prompt in the cache and adds no begin
   token. REWIND silently gives wrong tokens in four cases: there is no common prefix; the prompt is a prefix of the
   cache content; the prompt continues after a token that is not computed yet; the new tokens do not fit after the old
   ones. So the loop first truncates the cache. A REWIND query with fewer tokens than the common prefix and a limit of
   0 tokens does that; the library then returns the next cached token as if it had generated it. Without a common
   prefix the loop resets the dialog.
2. Only a reset restarts the sampler from its seed. So a request with a seed computes its whole prompt.
3. An abort takes effect at the next token, and never within a prompt. So prefill is chunked: each chunk is a query that
   generates nothing.
4. A bundle has graphs for several context lengths, and the library moves a conversation that outgrows one to the next.
   It ends the process when the cache is truncated so far that a shorter one would do. So then the loop resets it.
5. Near the end of the context the library computes wrong positions and later ends the process. So prompt and answer
   together stay within `GenieBundle.usable_context`.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty

from gateway.activity import Activity
from gateway.bundles.genie.bundle import GenieBundle
from gateway.errors import ContextLengthExceeded, EngineFailed, InvalidRequest
from gateway.worker.failures import as_gateway_error, failed_frame
from gateway.worker.frames import (
    Began,
    Cancel,
    Ended,
    FromWorker,
    Prefilled,
    Shutdown,
    Submit,
    Tokens,
    ToWorker,
)
from gateway.worker.genie.cache import CacheContent
from gateway.worker.genie.library import GenieDialog, PerformancePolicy, QueryEnd, SentenceCode
from gateway.worker.genie.mailbox import Mailbox

_CHUNK_PASSES = 4  # device passes per prompt chunk; a cancelled request stops after its chunk
_IDLE_S = 5.0  # without requests for this time, the NPU saves power
_SEEDS = 1 << 31
_MIN_TEMPERATURE = 1e-4  # sampling below it is greedy; a temperature that rounds to 0 ends the process
_WARM_UP_TOKENS = 16


@dataclass
class _Answer:
    """The state of the running request."""

    request: Submit
    since: float  # the start of the query, or the time of its last token
    produced: list[int] = field(default_factory=list)
    prompt_done: bool = False


class GenieLoop:
    """Answers the frames of a mailbox.

    Args:
        emit: called with the frames for the gateway process.
        prefix_cache: keep the common prefix of a prompt with the previous one.
        idle_s: seconds without a request before the NPU saves power.
        activity: shows what the loop does; the dialog has the same one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        dialog: GenieDialog,
        bundle: GenieBundle,
        mailbox: Mailbox,
        emit: Callable[[FromWorker], None],
        *,
        prefix_cache: bool = True,
        idle_s: float = _IDLE_S,
        activity: Activity | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._dialog, self._bundle, self._mailbox = dialog, bundle, mailbox
        self._emit, self._idle_s, self._clock = emit, idle_s, clock
        self._activity = activity or Activity()
        self._can_rewind = bundle.dialog_type == "basic"  # the cache of a speculative dialog begins with its own rows
        self._keeps_prefixes = prefix_cache and self._can_rewind
        self._queue: deque[Submit] = deque()
        self._last_client: str | None = None
        self._came_at: dict[int, float] = {}  # the device's total time when each request came, by its id
        self._cache = CacheContent(bundle.contexts, bundle.prompt_width)

    def run(self) -> None:
        """Answer requests until Shutdown. Raises DeviceFailed if the dialog cannot be reset after a failure."""
        while True:
            while not self._queue or not self._mailbox.is_empty:
                match self._next_frame():
                    case Submit() as frame:
                        self._queue.append(frame)
                        self._came_at[frame.id] = self._activity.device_s
                    case Cancel(id=id):
                        self._came_at.pop(id, None)
                        self._queue = deque(request for request in self._queue if request.id != id)
                    case Shutdown():
                        return
            self._answer(self._take())

    def warm_up(self) -> None:
        """Run one query. The first query prepares the network, which can take seconds."""
        token = self._bundle.end_ids[0] if self._bundle.bos_id is None else self._bundle.bos_id
        self._query([token] * min(_WARM_UP_TOKENS, self._bundle.usable_context), 1, lambda ids: True)
        self._reset()

    def _next_frame(self) -> ToWorker:
        if self._mailbox.is_empty:
            self._activity.enter("waiting")
        try:
            frame = self._mailbox.get(self._idle_s)
        except Empty:
            self._set_performance(PerformancePolicy.POWER_SAVER)
            frame = self._mailbox.get()
        self._activity.enter("working")
        return frame

    def _take(self) -> Submit:
        """The next request: interactive before background, another client before the last one, then in order."""
        request = min(self._queue, key=lambda request: (request.background, request.client == self._last_client))
        self._queue.remove(request)
        self._last_client = request.client
        return request

    def _answer(self, request: Submit) -> None:
        try:
            self._check_vocabulary(request)
            self._generate(request)
        except Exception as error:
            failure = as_gateway_error(error)
            self._emit(failed_frame(request.id, failure))
            if not isinstance(failure, InvalidRequest):
                self._reset()
        finally:
            self._came_at.pop(request.id, None)

    def _check_vocabulary(self, request: Submit) -> None:
        """The gateway checks ids against the tokenizer, which can have more ids than the graphs."""
        vocab_size = self._bundle.vocab_size
        if not request.ids or not 0 <= min(request.ids) <= max(request.ids) < vocab_size:
            raise InvalidRequest(f"The prompt needs token ids from 0 to {vocab_size - 1}.", param="prompt")

    def _generate(self, request: Submit) -> None:
        assert len(request.ids) + request.max_tokens <= self._bundle.usable_context, "the gateway checks the context"
        self._set_performance(PerformancePolicy.BURST)
        cached = self._prepare(request)
        self._emit(Began(request.id, cached))
        if request.max_tokens == 0:
            self._emit(Ended(request.id, "length"))
            return
        if self._can_rewind:
            self._prefill_chunks(request, cached)
        if self._is_wanted(request):
            answer = _Answer(request, self._clock())
            end = self._query(request.ids, request.max_tokens, lambda ids: self._produce(answer, ids))
            self._finish(answer, end)

    def _prefill_chunks(self, request: Submit, cached: int) -> None:
        """Compute the prompt except its last chunk. Stops when the request is cancelled."""
        chunk = _CHUNK_PASSES * self._bundle.prompt_width
        for end in range(cached + chunk, len(request.ids), chunk):
            if not self._is_wanted(request):
                return
            before = self._clock()
            self._prefill(request, end)
            self._emit_chunk(request, self._clock() - before)

    def _prepare(self, request: Submit) -> int:
        """Set the sampler, and truncate or reset the cache. Returns: the number of prompt tokens in the cache."""
        sampling = request.sampling
        is_greedy = sampling.temperature < _MIN_TEMPERATURE
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        try:
            self._dialog.set_sampler(
                temperature=1.0 if is_greedy else sampling.temperature,
                top_k=1 if is_greedy else min(sampling.top_k, self._bundle.vocab_size),
                top_p=sampling.top_p,
                seed=seed,
            )
        except EngineFailed as error:
            raise InvalidRequest(
                f"Genie does not accept this temperature, top_k, top_p or seed. {error.message} Change one of them."
            ) from error
        is_seeded = not is_greedy and sampling.seed is not None
        cached = 0 if is_seeded else self._reuse_prefix(request)
        if not cached:
            self._reset()
        return cached

    def _reuse_prefix(self, request: Submit) -> int:
        """Truncate the cache to its common prefix with the prompt. Returns: the length of the prefix."""
        length = self._cache.usable(request.owner, request.ids) if self._keeps_prefixes else 0
        if length:
            self._prefill(request, length)
        return length

    def _prefill(self, request: Submit, end: int) -> None:
        """Compute the first `end` tokens of the prompt. The cache then holds these tokens only."""
        ids = request.ids[:end]

        def take(echo: list[int]) -> bool:  # the token that the library returns after truncation
            ids.extend(echo)
            return True

        self._query(ids, 0, take)
        self._cache.hold(request.owner, ids, end)

    def _query(self, ids: Sequence[int], max_tokens: int, on_tokens: Callable[[list[int]], bool]) -> QueryEnd:
        self._cache.forget()  # until the query ends
        self._dialog.set_max_tokens(max_tokens)
        code = SentenceCode.REWIND if self._can_rewind else SentenceCode.COMPLETE
        return self._dialog.query(ids, code, on_tokens)

    def _produce(self, answer: _Answer, ids: list[int]) -> bool:
        """Emit tokens as they come. Returns: False to abort the query."""
        request = answer.request
        if not self._is_wanted(request):
            return False
        self._emit_prefilled(answer)
        end = next((index for index, id in enumerate(ids) if id in request.stop_ids), None)  # Genie knows only its own
        ids = ids[: min(len(ids) if end is None else end, request.max_tokens - len(answer.produced))]
        answer.produced += ids
        if ids:
            self._emit(Tokens(id=request.id, ids=ids, device_s=self._lap(answer)))
        return end is None

    def _finish(self, answer: _Answer, end: QueryEnd) -> None:
        """Record the content of the cache and emit the end of the request."""
        request, produced = answer.request, answer.produced
        if end is QueryEnd.CONTEXT_EXCEEDED:  # Genie counts rows itself, and its count can differ from ours
            raise ContextLengthExceeded("The prompt and its answer do not fit the model's context. Shorten the prompt.")
        ids = [*request.ids, *produced]
        self._cache.hold(request.owner, ids, len(ids) - 1)  # the last token is computed with the next one
        if not self._is_wanted(request):
            return
        self._emit_prefilled(answer)
        if len(produced) < request.max_tokens:
            self._emit(Ended(request.id, "stop", counted_stop=1))
        else:
            self._emit(Ended(request.id, "length"))

    def _emit_prefilled(self, answer: _Answer) -> None:
        """Once, at the first token: the time since the start of the query is prompt time."""
        if not answer.prompt_done:
            answer.prompt_done = True
            self._emit_chunk(answer.request, self._lap(answer))

    def _emit_chunk(self, request: Submit, seconds: float) -> None:
        shared_s = self._activity.device_s - self._came_at[request.id]
        self._emit(Prefilled(request.id, seconds, shared_s=shared_s))

    def _lap(self, answer: _Answer) -> float:
        """Seconds since the last token, or since the start of the query."""
        now = self._clock()
        elapsed, answer.since = now - answer.since, now
        return elapsed

    def _reset(self) -> None:
        self._cache.forget()
        self._dialog.reset()

    def _is_wanted(self, request: Submit) -> bool:
        return not self._mailbox.is_cancelled(request.id)

    def _set_performance(self, policy: PerformancePolicy) -> None:
        with suppress(EngineFailed):  # optional: a device without this setting still computes
            self._dialog.set_performance(policy)
