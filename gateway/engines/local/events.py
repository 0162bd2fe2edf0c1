"""One request in a worker: its frames come in, its meter is kept, its events go out.

Counting: a completion token is a token the model produced for a choice up to its end, the one that ended it included
(OpenAI counts it as well). Tokens that were under way when a stop string was met are not counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.dialects.base import Parser
from gateway.engines.choice import ChoiceText
from gateway.errors import GatewayError
from gateway.generation import (
    Event,
    Finished,
    FinishReason,
    Generation,
    Meter,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from gateway.text.tokens import TextDecoder, TextTokenizer
from gateway.worker.frames import Began, Cancel, Ended, Prefilled, Scored, Tokens, ToWorker

_FLOOR = -9999.0  # the lowest log-probability that is reported: JSON has no infinity


class _Choice(Struct):
    decoder: TextDecoder
    text: ChoiceText
    is_open: bool = True


class FrameTranslator:
    """Args:
    id: of the request at the worker.
    parsers: one for each choice.
    send: to the worker.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        id: int,
        generation: Generation,
        prompt_ids: Sequence[int],
        meter: Meter,
        *,
        tokens: TextTokenizer,
        parsers: Sequence[Parser],
        called_at: float,
        send: Callable[[ToWorker], None],
        clock: Callable[[], float],
    ) -> None:
        self.id = id
        self._generation, self._prompt_ids, self._meter = generation, prompt_ids, meter
        self.ids = list(prompt_ids)  # and those of the first choice as they come: what the prefix cache will hold
        self._tokens, self._send, self._clock = tokens, send, clock
        self._choices = [
            _Choice(tokens.decoder(), ChoiceText(i, generation.stop, parser)) for i, parser in enumerate(parsers)
        ]
        #: What the client gets, in order; no more than the events of `max_tokens` tokens, however slowly it reads.
        self.events: asyncio.Queue[Event | GatewayError] = asyncio.Queue()
        self._called_at = called_at
        self._began_at: float | None = None
        self._started = False
        self._prompt_logprobs: list[TokenLogprob] = []
        self._accepted = self._rejected = 0
        meter.prompt_tokens = len(prompt_ids)

    @property
    def has_begun(self) -> bool:
        return self._began_at is not None

    @property
    def is_over(self) -> bool:
        return not any(choice.is_open for choice in self._choices)

    def device_reported(self) -> None:
        """A device call has come back, and the next one, which may be for this request, is under way."""
        self._meter.call_since = self._clock()

    def fail(self, error: GatewayError) -> None:
        """The request ends with this; nothing comes after it."""
        for choice in self._choices:
            choice.is_open = False
        self._meter.call_since = None
        self.events.put_nowait(error)

    def began(self, frame: Began) -> None:
        self._began_at = self._clock()
        self._meter.cached_tokens = frame.cached_tokens
        if not self._generation.prompt_logprobs:
            self._start()

    def prefilled(self, frame: Prefilled) -> None:
        self._meter.device_s += frame.device_s
        self._prompt_logprobs += map(self._logprob, frame.prompt_logprobs)

    def produced(self, frame: Tokens) -> None:
        """Tokens of one choice: their text, up to a stop string, which ends the choice at the worker as well."""
        self._meter.device_s += frame.device_s
        self._accepted += frame.accepted
        self._rejected += frame.rejected
        self._start()
        if frame.choice == 0:
            self.ids += frame.ids
        choice = self._choices[frame.choice]
        for place, index in enumerate(frame.ids):
            if not choice.is_open:
                return
            self._count_token()
            text = choice.decoder.push(index)
            logprob = self._logprob(frame.scored[place]) if frame.scored else None
            if logprob is not None and not self._tokens.visible_bytes(index):
                logprob = replace(logprob, bytes=())  # a token that stays hidden, so that the bytes join to the text
            self._emit(choice.text.push(text, logprob, whole=choice.decoder.is_whole))
            if choice.text.stopped is not None:
                self._send(Cancel(self.id, frame.choice))
                self._end(choice, "stop")

    def ended(self, frame: Ended) -> None:
        """A choice is over at the worker."""
        self._start()
        choice = self._choices[frame.choice]
        if choice.is_open:
            if frame.counted_stop:
                self._count_token()
            self._end(choice, frame.reason)

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        started = Started(
            prompt_tokens=self._meter.prompt_tokens,
            cached_tokens=self._meter.cached_tokens,
            prompt_logprobs=self._prompt_scores(),
        )
        self.events.put_nowait(started)

    def _prompt_scores(self) -> tuple[TokenLogprob, ...]:
        if not self._generation.prompt_logprobs:
            return ()
        return (self._token(self._prompt_ids[0], 0.0), *self._prompt_logprobs)

    def _count_token(self) -> None:
        self._meter.completion_tokens += 1
        if self._meter.first_token_at is None:
            self._meter.first_token_at, self._meter.prompt_s = self._clock(), self._meter.device_s

    def _emit(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.put_nowait(event)

    def _end(self, choice: _Choice, reason: FinishReason) -> None:
        choice.is_open = False
        self._emit(choice.text.finish(reason))
        if self.is_over:
            self._meter.call_since = None
            self.events.put_nowait(Finished(usage=self._usage(), timings=self._timings()))

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._meter.prompt_tokens,
            cached_tokens=self._meter.cached_tokens,
            completion_tokens=self._meter.completion_tokens,
            reasoning_tokens=sum(choice.text.reasoning_tokens for choice in self._choices),
            accepted_prediction_tokens=self._accepted,
            rejected_prediction_tokens=self._rejected,
        )

    def _timings(self) -> Timings:
        now, called_at = self._clock(), self._called_at
        began_at = self._began_at if self._began_at is not None else now
        first_at = self._meter.first_token_at if self._meter.first_token_at is not None else now
        return Timings(
            queue_s=began_at - called_at,
            ttft_s=first_at - called_at,
            device_s=self._meter.device_s,
            total_s=now - called_at,
        )

    def _logprob(self, scored: Scored) -> TokenLogprob:
        top = zip(scored.top_ids, scored.top_logprobs, strict=True)
        return self._token(scored.id, scored.logprob, tuple(self._token(index, logprob) for index, logprob in top))

    def _token(self, index: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        written = self._tokens.token_bytes(index)
        return TokenLogprob(written.decode("utf-8", "replace"), tuple(written), max(logprob, _FLOOR), top, index)
