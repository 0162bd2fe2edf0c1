"""The token loop: continuous batching over one decoder. It decides which sequences take part in the next device call.

A request has one sequence for each choice. The tokens that its slot's cache lacks are computed: with `prefill` if more
than one is missing, with `step` if only the last one is. Then the next token is chosen. Each `turn` makes one call:

1. The schedule (schedule.py) gives slots to waiting sequences.
2. The schedule chooses the sequence that the call is for: clients take turns, then requests, then choices. So a long
   prompt (chunked prefill) gets half of the device while one other answer streams, a short answer does not wait for a
   long one, and a request with 128 choices gets no more of the device than one with one. Short prompts share a call.
3. If that sequence lacks only its last token, all others that also do take part in the same call. A sequence with a
   draft goes alone, and several tokens are verified in one call. A seeded request always steps alone if the decoder is
   not batch-invariant: other last bits could change its draws.

For each request the gateway gets Began once, Prefilled for each chunk, Tokens, then one Ended for each choice, or one
Failed. It gets no more frames of a cancelled request. The number of waiting requests is limited by the gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, cast

from gateway.activity import Activity
from gateway.worker.decoders.base import Decoder, KVCache, Logits, PromptSharing
from gateway.worker.drafting.model import DraftModel
from gateway.worker.failures import as_gateway_error, check_vocabulary, failed_frame
from gateway.worker.frames import Began, Cancel, Ended, FromWorker, PassTimes, Prefilled, Submit, Tokens
from gateway.worker.schedule import SLICE_S, Schedule, chunk_size
from gateway.worker.sequence import GeneratingSequence, MakeConstraint, SharedParts
from gateway.worker.slots import SlotPool
from gateway.worker.speculation import Speculation

P = ParamSpec("P")

SNAPSHOT_BYTES = 256 << 20  # 5800 tokens of SmolLM2-135M, or 2300 of Llama 3.2 3B in half precision


@dataclass(eq=False)
class _Request:
    frame: Submit
    open: set[int]  # choices that have not ended
    since_s: float  # the device's total time when it came
    later: list[GeneratingSequence] = field(default_factory=list)  # choices that wait for the first one's prefill
    has_begun: bool = False


class TokenLoop:
    """Drives a decoder. Not thread-safe: one thread calls `submit`, `cancel` and `turn`.

    Args:
        caches: caches of that decoder; their number is the number of sequences that run at the same time.
        emit: sends a frame to the gateway.
        make_constraint: finds a request's compiled grammar.
        token_bytes: the text of a token.
        prefix_cache: True if a request can reuse cached rows of other requests with the same owner.
        snapshot_bytes: memory limit for the rows of ended sequences outside the slots.
        lookup: True to draft with prompt-lookup decoding.
        slice_s: device time after which a sequence gives up its slot, if another client or request has none.
        activity: shows what the loop does, and times the device calls.
        passes: times of the warm model; None: not measured.
        draft_model: drafts where no other source does.
    """

    def __init__(
        self,
        decoder: Decoder,
        caches: Sequence[KVCache],
        emit: Callable[[FromWorker], None],
        *,
        make_constraint: MakeConstraint,
        token_bytes: Callable[[int], bytes] = lambda token: b"",
        prefix_cache: bool = True,
        snapshot_bytes: int = SNAPSHOT_BYTES,
        lookup: bool = True,
        slice_s: float = SLICE_S,
        activity: Activity | None = None,
        passes: PassTimes | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        self._decoder = decoder
        self._emit = emit
        self._pool = pool = SlotPool(caches, snapshot_bytes if prefix_cache else 0)
        self._schedule = Schedule(pool, prefix_cache=prefix_cache, slice_s=slice_s)
        self._make_constraint, self._token_bytes = make_constraint, token_bytes
        self._lookup = lookup
        self._activity = activity or Activity()
        self._speculation = Speculation(decoder.spec, self._schedule, self._activity, emit, draft_model, passes)
        self._sharing = 1  # sequences that share the next step
        self._requests: dict[int, _Request] = {}

    @property
    def is_idle(self) -> bool:
        return not self._requests

    # -- frames from the gateway --------------------------------------------------------------------------------------

    def submit(self, frame: Submit) -> None:
        """Accept a request, or refuse it with a Failed frame."""
        assert frame.ids and len(frame.ids) + frame.max_tokens <= self._decoder.spec.context_length
        try:
            check_vocabulary(frame, self._decoder.spec.vocab_size)
            shared = self._shared_parts(frame)
            first, *later = (GeneratingSequence(shared, choice) for choice in range(frame.n))
        except Exception as error:
            self._emit(failed_frame(frame.id, as_gateway_error(error)))
            return
        self._requests[frame.id] = _Request(frame, set(range(frame.n)), self._activity.device_s, later)
        self._schedule.add(first)

    def cancel(self, frame: Cancel) -> None:
        """Stop a request or one choice of it. An unknown one has already ended."""
        request = self._requests.get(frame.id)
        if request is None:
            return
        for choice in list(request.open) if frame.choice is None else [frame.choice]:
            self._close(request, choice)
        if request.open and not self._schedule.of(request.frame):
            self._start_later(request)

    def free_cache(self) -> None:
        """Drop the rows of finished requests and give their memory back, unless a request runs."""
        if self.is_idle:
            self._pool.clear()
            self._decoder.free_caches()
            self._speculation.free_cache()

    def _shared_parts(self, frame: Submit) -> SharedParts:
        return SharedParts(
            frame,
            self._make_constraint,
            token_bytes=self._token_bytes,
            lookup=self._lookup,
            is_batch_invariant=self._decoder.spec.is_batch_invariant,
        )

    # -- one device call ----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Make the next device call and send its results to the gateway."""
        for sequence in self._schedule.admit(lambda sequence, error: self._fail([sequence], error)):
            if not sequence.has_begun and self._schedule.is_running(sequence):  # another choice of it can have failed
                self._attempt(GeneratingSequence.begin, sequence)
        chosen = self._schedule.choose()
        if chosen is None:
            return
        if chosen.missing > 1:
            together = self._schedule.prompts_with(chosen, self._decoder.spec.shared_prompt_rows)
            self._prefill_together(together) if len(together) > 1 else self._attempt(self._prefill, chosen)
            return
        others = self._schedule.ready()
        stepping = [chosen] if chosen.steps_alone else [s for s in others if s.missing == 1 and not s.steps_alone]
        self._sharing = len(stepping)
        if draft := self._draft(chosen, may_call=True):
            self._attempt(self._verify, chosen, draft)
        else:
            self._step([s for s in stepping if s is chosen or not self._draft(s)])

    def _announce(self, sequence: GeneratingSequence) -> None:
        request = self._requests[sequence.request.id]
        if not request.has_begun:
            request.has_begun = True
            self._emit(Began(sequence.request.id, sequence.cache.length))

    def _draft(self, sequence: GeneratingSequence, *, may_call: bool = False) -> Sequence[int]:
        try:
            return self._speculation.draft(sequence, self._sharing, may_call=may_call)
        except Exception as error:  # its grammar can fail in the middle of an answer
            self._fail([sequence], error)
            return ()

    def _prefill(self, sequence: GeneratingSequence) -> None:
        """Compute one chunk of the missing tokens. The last chunk gives the next token."""
        cache = sequence.cache
        chunk = sequence.ids[cache.length : cache.length + chunk_size(sequence, self._decoder.spec.prompt_width)]
        compute = self._decoder.verify if sequence.request.prompt_logprobs else self._decoder.prefill
        rows, elapsed = self._timed([sequence], lambda: compute(cache, chunk))
        self._prefilled(sequence, rows.reshape(-1, rows.shape[-1]), elapsed)

    def _prefill_together(self, sequences: list[GeneratingSequence]) -> None:
        """Compute all missing tokens of several sequences. Shorter ones compute some rows again, with the same bits."""
        decoder, missing = cast(PromptSharing, self._decoder), [sequence.missing for sequence in sequences]
        rows = max(missing)
        for sequence in sequences:
            sequence.cache.truncate(len(sequence.ids) - rows)
        caches, ids = [s.cache for s in sequences], [s.ids[-rows:] for s in sequences]
        try:
            logits, elapsed = self._timed(sequences, lambda: decoder.prefill_together(caches, ids))
        except Exception as error:
            self._fail(sequences, error)
            return
        for sequence, row, own in zip(sequences, logits, missing, strict=True):
            if self._schedule.is_running(sequence):  # another choice of its request can have failed in this loop
                self._attempt(self._prefilled, sequence, row[None], elapsed, own / sum(missing))

    def _prefilled(self, sequence: GeneratingSequence, rows: Logits, elapsed: float, share: float = 1.0) -> None:
        """The last rows of the cache are computed, in a call of which this share was for the sequence."""
        self._activity.check(float(rows.max()))
        scored = sequence.score_prompt(rows) if sequence.request.prompt_logprobs else []
        sequence.slot_use.prefill_s += elapsed
        is_new = sequence.cache.length > sequence.computed  # the request is not to blame for rows that it has lost
        shared_s = self._activity.device_s - self._requests[sequence.request.id].since_s
        self._emit(Prefilled(sequence.request.id, elapsed * share if is_new else 0.0, scored, shared_s))
        if sequence.missing == 0:
            self._advance(sequence, rows[-1:], (), 0.0)

    def _verify(self, sequence: GeneratingSequence, draft: Sequence[int]) -> None:
        ids = [sequence.ids[-1], *draft]
        rows, elapsed = self._timed([sequence], lambda: self._decoder.verify(sequence.cache, ids))
        self._speculation.costs.record_verify(len(ids), elapsed)
        self._advance(sequence, rows, draft, elapsed)

    def _step(self, sequences: list[GeneratingSequence]) -> None:
        sequences = [s for s in sequences if self._schedule.is_running(s)]  # a draft can have failed its request
        if not sequences:
            return
        caches, ids = [s.cache for s in sequences], [s.ids[-1] for s in sequences]
        try:
            rows, elapsed = self._timed(sequences, lambda: self._decoder.step(caches, ids))
        except Exception as error:
            self._fail(sequences, error)
            return
        self._speculation.costs.record_step(len(sequences), elapsed)
        for sequence, row in zip(sequences, rows, strict=True):
            if self._schedule.is_running(sequence):  # another choice of its request can have failed in this loop
                self._attempt(self._advance, sequence, row[None], (), elapsed)

    def _timed(self, sequences: Sequence[GeneratingSequence], call: Callable[[], Logits]) -> tuple[Logits, float]:
        """Make a device call. Each sequence that takes part is charged for its full duration."""
        for sequence in sequences:
            self._announce(sequence)
        with self._activity.device_call() as device_call:
            logits = call()
        self._schedule.charge(sequences, device_call.seconds)
        return logits, device_call.seconds

    # -- results of a call --------------------------------------------------------------------------------------------

    def _advance(self, sequence: GeneratingSequence, rows: Logits, draft: Sequence[int], elapsed: float) -> None:
        self._activity.check(float(rows.max()))
        progress = sequence.advance(rows, draft, self._speculation.cost(draft, self._sharing))
        self._speculation.settle(sequence, progress, self._sharing)
        request, id, choice = self._requests[sequence.request.id], sequence.request.id, sequence.choice
        if progress.tokens:
            self._emit(
                Tokens(
                    id=id,
                    choice=choice,
                    ids=progress.tokens,
                    device_s=elapsed + sequence.drafting_s,
                    scored=progress.scored,
                    source=progress.source or ("model" if sequence.drafting_s else ""),
                    drafted=progress.drafted,
                    matched=progress.matched,
                )
            )
            sequence.drafting_s = 0.0
        if progress.reason:
            self._emit(Ended(id, progress.reason, choice, progress.counted_stop))
            self._close(request, choice)
        self._start_later(request)

    def _start_later(self, request: _Request) -> None:
        """The first choice's prompt is in a slot now: the other choices reuse its rows."""
        for sequence in request.later:
            if sequence.choice in request.open:
                self._schedule.add(sequence)
        request.later = []

    def _close(self, request: _Request, choice: int) -> None:
        request.open.discard(choice)
        for sequence in self._schedule.of(request.frame):
            if sequence.choice == choice:
                self._schedule.remove(sequence)
        if not request.open:
            self._requests.pop(request.frame.id, None)

    def _attempt(
        self,
        work: Callable[Concatenate[GeneratingSequence, P], None],
        sequence: GeneratingSequence,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Do the work of a sequence. An exception fails its request and no other."""
        try:
            work(sequence, *args, **kwargs)
        except Exception as error:
            self._fail([sequence], error)

    def _fail(self, sequences: Sequence[GeneratingSequence], error: Exception) -> None:
        for sequence in sequences:
            self._schedule.discard(sequence)
        for id in dict.fromkeys(sequence.request.id for sequence in sequences):
            request = self._requests.pop(id, None)
            if request is None:
                continue  # another choice of it has failed before
            for other in self._schedule.of(request.frame):
                self._schedule.remove(other)
            self._emit(failed_frame(id, as_gateway_error(error)))
