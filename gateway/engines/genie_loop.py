"""Requests for a Genie dialog, one after another: what is asked of the library and what the gateway hears of it.

A dialog has one conversation in its cache and holds the device until a query ends. So requests wait for each other in
order, those in the background for all others. What was learned of the library by running it (docs/genie.md) shapes
the rest:

1. Every prompt is a REWIND: of the one before, the shared beginning stays in the cache, and no begin token is put in
   front. It goes wrong, without a word, when nothing is shared, when the prompt is only a beginning of what the cache
   holds, and behind the last token of an aborted answer: the cache is emptied first then.
2. Only emptying it makes the sampler start from a seed, so a request with a seed computes its whole prompt.
3. An abort is looked at when a token is there, never within a prompt. So long prompts go in pieces, each a query that
   generates nothing.
4. A pass over the end of the context kills the process: prompt and answer stay clear of it.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from gateway.bundles.genie_config import GenieBundle
from gateway.engines.frames import (
    Began,
    Cancel,
    Ended,
    Failed,
    FromWorker,
    Prefilled,
    Shutdown,
    Submit,
    Tokens,
    ToWorker,
)
from gateway.engines.genie_library import End, GenieDialog, Performance, Sentence
from gateway.errors import ContextLengthExceeded, EngineFailed, GatewayError, InvalidRequest

_PIECE_PASSES = 4  # passes of a prompt between two looks at whether it is still wanted
_IDLE_S = 5.0  # the NPU saves power when nothing has come for so long
_SEEDS = 1 << 31
_COLDEST = 1e-4  # below, sampling is greedy; at 0, also by rounding, the library would end the process
_WARM_UP_TOKENS = 16


class Mailbox:
    """What the gateway says, passed from the thread that hears it to the one that is held up by a query."""

    def __init__(self) -> None:
        self._frames: SimpleQueue[ToWorker] = SimpleQueue()
        self._cancelled: set[int] = set()
        self._closing = False

    def deliver(self, frame: ToWorker) -> None:
        """From any thread."""
        match frame:
            case Cancel(id=id):
                self._cancelled.add(id)
            case Shutdown():
                self._closing = True
        self._frames.put(frame)

    @property
    def is_empty(self) -> bool:
        return self._frames.empty()

    def get(self, timeout_s: float | None = None) -> ToWorker:
        """The next frame, waited for. Raises queue.Empty when none has come in time."""
        frame = self._frames.get(timeout=timeout_s)
        if isinstance(frame, Cancel):
            self._cancelled.discard(frame.id)
        return frame

    def is_cancelled(self, id: int) -> bool:
        """Whether nobody wants the request any more: known here before `get` has come to the frame that says so."""
        return self._closing or id in self._cancelled


@dataclass
class _Cached:
    """What the dialog's cache holds: of whom, and which tokens."""

    owner: str = ""
    ids: Sequence[int] = ()
    computed: int = 0  # so many of them; the last token of an answer is only computed when another follows
    aborted: bool = False

    def shared_with(self, ids: Sequence[int], owner: str) -> int:
        """How many of `ids` the library can keep; 0: the cache has to be emptied."""
        limit = min(len(self.ids), len(ids))
        shared = next((i for i in range(limit) if self.ids[i] != ids[i]), limit)
        is_longer = shared + 1 < len(ids)  # by more than the end token that may be there unseen
        is_safe = not self.aborted or shared < len(self.ids)
        return min(shared, self.computed) if owner == self.owner and is_longer and is_safe else 0


@dataclass
class _Answer:
    """A request while it is generated."""

    request: Submit
    since: float  # when the query began, or its last token came
    produced: list[int] = field(default_factory=list)
    stopped: bool = False  # an end token came that the library let through


class GenieLoop:
    """Answers what comes in the mailbox.

    Args:
        emit: takes the frames for the parent.
        prefix_cache: whether a prompt may take over the shared beginning of the one before.
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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._dialog, self._bundle, self._mailbox = dialog, bundle, mailbox
        self._emit, self._clock = emit, clock
        self._can_rewind = bundle.dialog_type == "basic"  # a speculative dialog keeps rows of its own in front
        self._keeps_prefixes = prefix_cache and self._can_rewind
        self._waiting: deque[Submit] = deque()
        self._cached: _Cached | None = None  # None: what it holds is unknown

    def run(self) -> None:
        """Answer until Shutdown. Raises EngineFailed when the dialog cannot go on."""
        while True:
            while not self._waiting or not self._mailbox.is_empty:
                match self._next_frame():
                    case Submit() as frame:
                        self._waiting.append(frame)
                    case Cancel(id=id):
                        self._waiting = deque(request for request in self._waiting if request.id != id)
                    case Shutdown():
                        return
            self._answer(self._take())

    def warm_up(self) -> None:
        """The first query prepares the network, which may take seconds."""
        self._ask([self._bundle.bos_id] * min(_WARM_UP_TOKENS, self._bundle.usable_context), 1, lambda ids: True)
        self._forget()

    def _next_frame(self) -> ToWorker:
        with suppress(Empty):
            return self._mailbox.get(_IDLE_S)
        self._perform(Performance.POWER_SAVER)
        return self._mailbox.get()

    def _take(self) -> Submit:
        request = next((request for request in self._waiting if not request.background), self._waiting[0])
        self._waiting.remove(request)
        return request

    def _answer(self, request: Submit) -> None:
        try:
            self._check(request)
            self._generate(request)
        except GatewayError as error:
            self._emit(Failed(request.id, type(error).__name__, error.message, error.param))
            if isinstance(error, EngineFailed):
                self._forget()

    def _check(self, request: Submit) -> None:
        vocab_size, room = self._bundle.vocab_size, self._bundle.usable_context - len(request.ids)
        if not request.ids or not 0 <= min(request.ids) <= max(request.ids) < vocab_size:
            raise InvalidRequest(f"The prompt needs token ids from 0 to {vocab_size - 1}.", param="prompt")
        if room < request.max_tokens:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._bundle.usable_context} tokens. However, you asked for "
                f"{len(request.ids)} in the prompt and {request.max_tokens} in the answer."
            )

    def _generate(self, request: Submit) -> None:
        self._perform(Performance.BURST)
        kept = self._prepare(request)
        self._emit(Began(request.id, kept))
        if request.max_tokens == 0:
            self._emit(Ended(request.id, "length"))
            return
        if self._can_rewind:
            self._compute_pieces(request, kept)
        if self._is_wanted(request):
            answer = _Answer(request, self._clock())
            end = self._ask(request.ids, request.max_tokens, lambda ids: self._produce(answer, ids))
            self._finish(answer, end)

    def _compute_pieces(self, request: Submit, kept: int) -> None:
        """All of the prompt but its last piece, as long as somebody wants it."""
        piece = _PIECE_PASSES * self._bundle.prompt_width
        for end in range(kept + piece, len(request.ids), piece):
            if not self._is_wanted(request):
                return
            before, ids = self._clock(), request.ids[:end]
            self._ask(ids, 0, lambda ids: False)
            self._cached = _Cached(request.owner, ids, len(ids))
            self._emit(Prefilled(request.id, self._clock() - before))

    def _prepare(self, request: Submit) -> int:
        """Set the sampler, and empty the cache unless it is of use; how many tokens of the prompt it holds."""
        sampling = request.sampling
        is_greedy = sampling.temperature < _COLDEST
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        self._dialog.sample(
            temperature=1.0 if is_greedy else sampling.temperature,
            top_k=1 if is_greedy else min(sampling.top_k, self._bundle.vocab_size),
            top_p=sampling.top_p,
            seed=seed,
        )
        kept = 0
        if self._keeps_prefixes and self._cached and (is_greedy or sampling.seed is None):
            kept = self._cached.shared_with(request.ids, request.owner)
        if not kept:
            self._forget()
        return kept

    def _ask(self, ids: Sequence[int], limit: int, on_tokens: Callable[[list[int]], bool]) -> End:
        self._cached = None  # until it is over
        self._dialog.limit(limit)
        return self._dialog.query(ids, Sentence.REWIND if self._can_rewind else Sentence.COMPLETE, on_tokens)

    def _produce(self, answer: _Answer, ids: list[int]) -> bool:
        """Pass tokens on as they come; whether to go on."""
        request = answer.request
        if not self._is_wanted(request):
            return False
        elapsed = self._lap(answer)
        if not answer.produced:
            self._emit(Prefilled(request.id, elapsed))  # the first token comes with the end of the prompt
            elapsed = 0.0
        ends = [place for place, id in enumerate(ids) if id in request.stop_ids]
        answer.stopped = bool(ends)
        ids = ids[: ends[0] if ends else request.max_tokens - len(answer.produced)]
        answer.produced += ids
        if ids:
            self._emit(Tokens(id=request.id, ids=ids, device_s=elapsed))
        return not answer.stopped

    def _finish(self, answer: _Answer, end: End) -> None:
        """Remember what the cache holds now, and say how the answer ended."""
        request, produced = answer.request, answer.produced
        if end is End.CONTEXT_EXCEEDED:
            raise ContextLengthExceeded("The prompt and its answer do not fit the model's context.")
        is_cut = end is End.ABORTED or len(produced) == request.max_tokens
        ids = [*request.ids, *produced]
        self._cached = _Cached(request.owner, ids, len(ids) - is_cut, aborted=end is End.ABORTED)
        if not self._is_wanted(request):
            return
        if not produced:
            self._emit(Prefilled(request.id, self._lap(answer)))
        if answer.stopped or not is_cut:
            self._emit(Ended(request.id, "stop", counted_stop=1))
        else:
            self._emit(Ended(request.id, "length"))

    def _lap(self, answer: _Answer) -> float:
        """Seconds since the last token, or since the query began."""
        now = self._clock()
        elapsed, answer.since = now - answer.since, now
        return elapsed

    def _forget(self) -> None:
        self._cached = None
        self._dialog.reset()

    def _is_wanted(self, request: Submit) -> bool:
        return not self._mailbox.is_cancelled(request.id)

    def _perform(self, performance: Performance) -> None:
        with suppress(EngineFailed):  # a wish: a device that cannot change its pace answers all the same
            self._dialog.perform(performance)
