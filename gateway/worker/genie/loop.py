"""Requests for a Genie dialog, one after another: what is asked of the library and what the gateway hears of it.

A dialog has one conversation in its cache and holds the device until a query ends. So requests wait for each other in
order, those in the background for all others. What was learned of the library by running it (docs/genie.md) shapes
the rest:

1. Every prompt is a REWIND: what it shares with the one before stays in the cache, and no begin token is put in front.
   Without a word that goes wrong when nothing is shared; when the prompt is only a beginning of what the cache holds;
   when it goes on behind a token that is not computed yet; when the new tokens would not fit behind the old ones. So
   the cache is first cut back, by a REWIND to less than the shared beginning that generates nothing (the next token of
   what was there comes back as if it were generated), or emptied.
2. Only emptying it makes the sampler start from a seed, so a request with a seed computes its whole prompt.
3. An abort is looked at when a token is there, never within a prompt. So long prompts go in pieces, each a query that
   generates nothing.
4. Near the end of the context the library loses count and then the process: prompt and answer stay clear of it.
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
from gateway.common_prefix import common_prefix
from gateway.errors import ContextLengthExceeded, EngineFailed, GatewayError, InvalidRequest
from gateway.worker.frames import (
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
from gateway.worker.genie.library import End, GenieDialog, Performance, Sentence

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


@dataclass(frozen=True)
class _Cached:
    """What the dialog's cache holds: of whom, which tokens, and how many of them are surely computed."""

    owner: str
    ids: Sequence[int]
    computed: int

    def shared_with(self, ids: Sequence[int]) -> int:
        return common_prefix(self.ids, ids)


@dataclass
class _Answer:
    """A request while it is generated."""

    request: Submit
    since: float  # when the query began, or its last token came
    produced: list[int] = field(default_factory=list)
    prompt_done: bool = False


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
            before = self._clock()
            self._compute(request, end)
            self._emit(Prefilled(request.id, self._clock() - before))

    def _prepare(self, request: Submit) -> int:
        """Set the sampler, cut back or empty the cache; how many tokens of the prompt it holds then."""
        sampling = request.sampling
        is_greedy = sampling.temperature < _COLDEST
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        self._dialog.sample(
            temperature=1.0 if is_greedy else sampling.temperature,
            top_k=1 if is_greedy else min(sampling.top_k, self._bundle.vocab_size),
            top_p=sampling.top_p,
            seed=seed,
        )
        is_seeded = not is_greedy and sampling.seed is not None
        kept = 0 if is_seeded else self._keep(request)
        if not kept:
            self._forget()
        return kept

    def _keep(self, request: Submit) -> int:
        """Cut the cache back to what this prompt shares with it; how many tokens that are."""
        cached, ids = self._cached, request.ids
        if cached is None or cached.owner != request.owner or not self._keeps_prefixes:
            return 0
        kept = min(cached.shared_with(ids) - 1, cached.computed, len(ids) - 2)
        if kept <= 0:
            return 0
        self._compute(request, kept)
        return kept

    def _compute(self, request: Submit, end: int) -> None:
        """Make the cache hold the first `end` tokens of the prompt."""
        ids = request.ids[:end]

        def take(echo: list[int]) -> bool:  # the token behind a cut
            ids.extend(echo)
            return True

        self._ask(ids, 0, take)
        self._cached = _Cached(request.owner, ids, end)

    def _ask(self, ids: Sequence[int], limit: int, on_tokens: Callable[[list[int]], bool]) -> End:
        self._cached = None  # until it is over
        self._dialog.limit(limit)
        return self._dialog.query(ids, Sentence.REWIND if self._can_rewind else Sentence.COMPLETE, on_tokens)

    def _produce(self, answer: _Answer, ids: list[int]) -> bool:
        """Pass tokens on as they come; whether to go on."""
        request = answer.request
        if not self._is_wanted(request):
            return False
        self._announce_prompt(answer)
        end = next((place for place, id in enumerate(ids) if id in request.stop_ids), None)  # one Genie lets through
        ids = ids[: min(len(ids) if end is None else end, request.max_tokens - len(answer.produced))]
        answer.produced += ids
        if ids:
            self._emit(Tokens(id=request.id, ids=ids, device_s=self._lap(answer)))
        return end is None

    def _finish(self, answer: _Answer, end: End) -> None:
        """Remember what the cache holds now, and say how the answer ended."""
        request, produced = answer.request, answer.produced
        if end is End.CONTEXT_EXCEEDED:
            raise ContextLengthExceeded("The prompt and its answer do not fit the model's context.")
        ids = [*request.ids, *produced]
        self._cached = _Cached(request.owner, ids, len(ids) - 1)  # the last token is only when another follows
        if not self._is_wanted(request):
            return
        self._announce_prompt(answer)
        if len(produced) < request.max_tokens:
            self._emit(Ended(request.id, "stop", counted_stop=1))
        else:
            self._emit(Ended(request.id, "length"))

    def _announce_prompt(self, answer: _Answer) -> None:
        """Once, when the first token is there: the time up to it was the prompt's."""
        if not answer.prompt_done:
            answer.prompt_done = True
            self._emit(Prefilled(answer.request.id, self._lap(answer)))

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
