"""The token loop: which of the requests in progress gets the next device call, and what comes of it.

A request is one sequence per choice. A sequence has its tokens so far; those its slot's cache lacks are computed
(`prefill` when many are missing, `step` when it is only the last one), and then the next token is chosen. Every call
of `turn` makes one device call:

1. Waiting sequences take free slots, in order; the slot with the longest common prefix is the one they get.
2. The sequence that has had the least device time goes next. A long prompt so gets half of the device while another
   answer is streaming, chunk by chunk, and a short answer is not stuck behind a long one.
3. If it only misses its last token, all others of which that is true go along in the same call. With a draft
   (forced by a grammar, predicted, or said before) it goes alone, and several tokens are verified at once. Draws of a
   given seed always go alone where company changes last bits, because those decide a draw now and then.
4. Requests in the background run while there is no other, wait otherwise, and give up their slot when one is needed.

What the parent hears: Began once, Prefilled per chunk, Tokens, then one Ended per choice, or one Failed. Of what was
cancelled it hears nothing more. Nothing queues here beyond what the parent has submitted; bounding that is its work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec

from msgspec import structs

from gateway.errors import ContextLengthExceeded, EngineFailed, GatewayError, InvalidRequest
from gateway.worker.decoders.base import Decoder, KVCache, Logits
from gateway.worker.drafting import CallCosts
from gateway.worker.frames import NO_MEMORY, Began, Cancel, Ended, Failed, FromWorker, Prefilled, Scored, Submit, Tokens
from gateway.worker.sampling import score
from gateway.worker.sequence import GeneratingSequence, MakeConstraint
from gateway.worker.slots import SlotPool

_log = logging.getLogger(__name__)
P = ParamSpec("P")

SNAPSHOT_BYTES = 256 << 20  # 5800 tokens of SmolLM2, 2300 of Llama 3.2 3B in half precision


@dataclass(eq=False)
class _Request:
    frame: Submit
    open: set[int]  # choices that have not ended
    later: list[GeneratingSequence] = field(default_factory=list)  # choices that wait for the first one's prompt
    has_begun: bool = False


class TokenLoop:
    """Drives a decoder. Not thread-safe: `submit`, `cancel` and `turn` belong to one thread.

    Args:
        emit: takes the frames for the parent.
        caches: caches of that decoder; so many sequences are in progress at once.
        prefix_cache: whether a request may take over the rows of an ended one with the same owner.
        snapshot_bytes: for rows of ended sequences beyond those that the caches hold.
        lookup: whether what prompt and answer have said before is drafted again where that pays.
        make_constraint: compiles a request's grammar.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        decoder: Decoder,
        caches: Sequence[KVCache],
        emit: Callable[[FromWorker], None],
        *,
        make_constraint: MakeConstraint,
        prefix_cache: bool = True,
        snapshot_bytes: int = SNAPSHOT_BYTES,
        lookup: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._decoder = decoder
        self._emit = emit
        self._pool = SlotPool(caches, snapshot_bytes if prefix_cache else 0)
        self._make_constraint = make_constraint
        self._prefix_cache = prefix_cache
        self._lookup = lookup
        self._costs = CallCosts()
        self._clock = clock
        self._requests: dict[int, _Request] = {}
        self._waiting: list[GeneratingSequence] = []
        self._running: list[GeneratingSequence] = []

    @property
    def is_idle(self) -> bool:
        return not self._requests

    # -- what the parent asks for ---------------------------------------------------------------------------------

    def submit(self, frame: Submit) -> None:
        """Accept a request, or refuse it with Failed."""
        try:
            frame = self._checked(frame)
            first, *later = (self._sequence(frame, choice) for choice in range(frame.n))
        except GatewayError as error:
            self._emit(_failed(frame.id, error))
            return
        self._requests[frame.id] = _Request(frame, set(range(frame.n)), later)
        self._waiting.append(first)

    def _sequence(self, frame: Submit, choice: int) -> GeneratingSequence:
        is_batch_invariant = self._decoder.spec.is_batch_invariant
        return GeneratingSequence(
            frame, choice, self._make_constraint, lookup=self._lookup, is_batch_invariant=is_batch_invariant
        )

    def cancel(self, frame: Cancel) -> None:
        """Stop a request or one choice of it. Unknown ones are those that have ended meanwhile."""
        request = self._requests.get(frame.id)
        if request is None:
            return
        for choice in list(request.open) if frame.choice is None else [frame.choice]:
            self._close(request, choice)
        if request.open and not self._of(request):
            self._start_later(request)

    def _checked(self, frame: Submit) -> Submit:
        """The request with `max_tokens` cut to what the context leaves. Raises what is wrong with it."""
        spec = self._decoder.spec
        if not frame.ids:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        for name, ids in (("prompt", frame.ids), ("prediction", frame.prediction), ("logit_bias", _biased(frame))):
            if ids and not 0 <= min(ids) <= max(ids) < spec.vocab_size:
                raise InvalidRequest(f"{name} has a token id outside 0..{spec.vocab_size - 1}.", param=name)
        room = spec.context_length - len(frame.ids)
        if room < min(1, frame.max_tokens):
            raise ContextLengthExceeded(
                f"The model's context is {spec.context_length} tokens; the prompt already has {len(frame.ids)}."
            )
        return structs.replace(frame, max_tokens=min(frame.max_tokens, room))

    # -- one device call ------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Make the next device call, and tell the parent what it brought."""
        self._admit()
        ready = [s for s in self._running if not s.request.background] or self._running
        if not ready:
            return
        chosen = min(ready, key=lambda sequence: sequence.served_s)
        if chosen.missing > 1:
            self._attempt(self._prefill, chosen)
            return
        stepping = [chosen] if chosen.steps_alone else [s for s in ready if s.missing == 1 and not s.steps_alone]
        if draft := self._draft(chosen, len(stepping)):
            self._attempt(self._verify, chosen, draft)
        else:
            self._step([s for s in stepping if s is chosen or not self._draft(s, len(stepping))])

    def _admit(self) -> None:
        """Give slots to waiting sequences; those in the foreground first, taking slots back from the background."""
        while self._waiting:
            sequence = next((s for s in self._waiting if not s.request.background), self._waiting[0])
            in_foreground = [s for s in self._running if not s.request.background]
            if sequence.request.background and in_foreground:
                return
            if not self._pool.has_free and not self._suspend_background(sequence):
                return
            self._waiting.remove(sequence)
            sequence.slot = self._pool.take(sequence.ids, self._cache_owner(sequence))
            sequence.served_s = min((s.served_s for s in self._running), default=0.0)
            self._running.append(sequence)

    def _suspend_background(self, sequence: GeneratingSequence) -> bool:
        """Free a slot for `sequence`; its rows stay for when the suspended one goes on, unless they are needed."""
        victim = next((s for s in reversed(self._running) if s.request.background), None)
        if victim is None or sequence.request.background:
            return False
        self._running.remove(victim)
        self._pool.release(victim.held_slot)
        self._waiting.insert(0, victim)
        return True

    def _cache_owner(self, sequence: GeneratingSequence) -> str:
        """Whose rows it may take over. A request that asks for its prompt's log-probabilities computes all of it."""
        request = sequence.request
        is_shared = self._prefix_cache and not request.prompt_logprobs
        return f"owner {request.owner}" if is_shared else f"request {request.id}"

    def _announce(self, sequence: GeneratingSequence) -> None:
        request = self._requests[sequence.request.id]
        if not request.has_begun:
            request.has_begun = True
            self._emit(Began(sequence.request.id, sequence.cache.length))

    def _draft(self, sequence: GeneratingSequence, stepping: int) -> Sequence[int]:
        spec = self._decoder.spec
        most = min(spec.prompt_width - 1, spec.context_length - len(sequence.ids))
        return sequence.draft(most, self._costs, stepping)

    def _prefill(self, sequence: GeneratingSequence) -> None:
        """Compute one chunk of the missing tokens; the last one gives the next token."""
        cache = sequence.cache
        start = cache.length
        chunk = sequence.ids[start : start + self._chunk_size(sequence.missing)]
        if sequence.request.prompt_logprobs:
            rows, elapsed = self._timed([sequence], lambda: self._decoder.verify(cache, chunk))
        else:
            row, elapsed = self._timed([sequence], lambda: self._decoder.prefill(cache, chunk))
            rows = row[None]
        scored = _score_prompt(sequence, rows, start) if sequence.request.prompt_logprobs else []
        self._emit(Prefilled(sequence.request.id, elapsed, scored))
        if sequence.missing == 0:
            self._advance(sequence, rows[-1:], (), 0.0)

    def _chunk_size(self, missing: int) -> int:
        """All that fits, but never so that a single token is left: one alone is computed in another way than several
        (see decoder.py), and then answers would depend on what the prefix cache happened to hold."""
        width = self._decoder.spec.prompt_width
        return width - 1 if missing == width + 1 and width > 2 else min(missing, width)

    def _verify(self, sequence: GeneratingSequence, draft: Sequence[int]) -> None:
        ids = [sequence.ids[-1], *draft]
        rows, elapsed = self._timed([sequence], lambda: self._decoder.verify(sequence.cache, ids))
        self._costs.record_verify(len(ids), elapsed)
        self._advance(sequence, rows, draft, elapsed)

    def _step(self, sequences: list[GeneratingSequence]) -> None:
        caches, ids = [s.cache for s in sequences], [s.ids[-1] for s in sequences]
        try:
            rows, elapsed = self._timed(sequences, lambda: self._decoder.step(caches, ids))
        except Exception as error:
            self._fail(sequences, error)
            return
        self._costs.record_step(len(sequences), elapsed)
        for sequence, row in zip(sequences, rows, strict=True):
            if sequence in self._running:  # not failed meanwhile by another choice of its request
                self._attempt(self._advance, sequence, row[None], (), elapsed)

    def _timed(self, sequences: Sequence[GeneratingSequence], call: Callable[[], Logits]) -> tuple[Logits, float]:
        """Make a device call; its seconds count in full for each sequence that took part."""
        for sequence in sequences:
            self._announce(sequence)
        before = self._clock()
        logits = call()
        elapsed = self._clock() - before
        for sequence in sequences:
            sequence.served_s += elapsed
        return logits, elapsed

    # -- what a call brings ---------------------------------------------------------------------------------------

    def _advance(self, sequence: GeneratingSequence, rows: Logits, draft: Sequence[int], elapsed: float) -> None:
        progress = sequence.advance(rows, draft)
        request, id, choice = self._requests[sequence.request.id], sequence.request.id, sequence.choice
        if progress.tokens:
            self._emit(
                Tokens(
                    id=id,
                    choice=choice,
                    ids=progress.tokens,
                    device_s=elapsed,
                    scored=progress.scored,
                    accepted=progress.accepted,
                    rejected=progress.rejected,
                )
            )
        if progress.reason:
            self._emit(Ended(id, progress.reason, choice, progress.counted_stop))
            self._close(request, choice)
        self._start_later(request)

    def _start_later(self, request: _Request) -> None:
        """The first choice's prompt is in a slot now: the others take it over from there."""
        self._waiting[:0] = [sequence for sequence in request.later if sequence.choice in request.open]
        request.later = []

    def _close(self, request: _Request, choice: int) -> None:
        request.open.discard(choice)
        for sequence in self._of(request):
            if sequence.choice == choice:
                self._remove(sequence)
        if not request.open:
            self._requests.pop(request.frame.id, None)

    def _of(self, request: _Request) -> list[GeneratingSequence]:
        return [s for s in (*self._running, *self._waiting) if s.request is request.frame]

    def _remove(self, sequence: GeneratingSequence) -> None:
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence in self._running:
            self._running.remove(sequence)
            self._pool.release(sequence.held_slot)

    def _attempt(
        self,
        work: Callable[Concatenate[GeneratingSequence, P], None],
        sequence: GeneratingSequence,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Do a sequence's work; what goes wrong fails its request and no other."""
        try:
            work(sequence, *args, **kwargs)
        except Exception as error:
            self._fail([sequence], error)

    def _fail(self, sequences: Sequence[GeneratingSequence], error: Exception) -> None:
        for sequence in sequences:
            if sequence in self._running:  # its rows are not to be trusted
                self._running.remove(sequence)
                self._pool.discard(sequence.held_slot)
        for id in dict.fromkeys(sequence.request.id for sequence in sequences):
            for other in self._of(self._requests.pop(id)):
                self._remove(other)
            self._emit(_failed(id, _in_our_words(error)))


def _in_our_words(error: Exception) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, MemoryError):
        return EngineFailed(NO_MEMORY)
    if isinstance(error, FloatingPointError):
        return EngineFailed(f"The model gave no usable logits: {error}.")
    _log.error("a device call failed", exc_info=error)
    return EngineFailed(f"The worker failed: {type(error).__name__}.")


def _failed(id: int, error: GatewayError) -> Failed:
    return Failed(id, type(error).__name__, error.message, error.param)


def _biased(frame: Submit) -> list[int]:
    return list(frame.sampling.logit_bias)


def _score_prompt(sequence: GeneratingSequence, rows: Logits, start: int) -> list[Scored]:
    """Log-probabilities of the prompt's tokens that follow rows start..; each is reported once."""
    prompt, top = sequence.request.ids, sequence.request.logprobs or 0
    first = max(sequence.prompt_scored, start + 1)
    last = min(len(prompt), start + 1 + len(rows))
    sequence.prompt_scored = max(first, last)
    return [score(rows[place - start - 1], prompt[place], top) for place in range(first, last)]
