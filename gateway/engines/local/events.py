"""One request at a worker: its frames become events, and its meter is updated.

Completion tokens are the tokens that the model produced for a choice, with the end-of-turn token (OpenAI counts it
too). Tokens that arrive after a stop string are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.dialects.base import Parser
from gateway.engines.base import Emit
from gateway.engines.choice import ChoiceText
from gateway.engines.running_request import RunningRequest
from gateway.errors import error_class
from gateway.generation import Event, FinishReason, Meter, Started, TokenLogprob, Usage
from gateway.text.vocabulary import TextDecoder, Vocabulary
from gateway.worker.frames import Began, Cancel, Ended, Failed, FromWorker, Prefilled, Scored, Submit, Tokens, ToWorker

_FLOOR = -9999.0  # the lowest log-probability that is reported: JSON has no infinity


class _Choice(Struct):
    decoder: TextDecoder
    text: ChoiceText
    is_open: bool = True


class FrameTranslator(RunningRequest):
    """Args:
    submit: the frame that the request was sent with.
    stops: stop strings of the request.
    ends: texts that end an answer of this model, as an end token does.
    meter: updated with every frame.
    emit: takes the events.
    parsers: one for each choice.
    send: sends a frame to the worker.
    call_s: seconds of the running device call.
    """

    def __init__(
        self,
        submit: Submit,
        stops: Sequence[str],
        meter: Meter,
        emit: Emit,
        *,
        ends: Sequence[str] = (),
        tokens: Vocabulary,
        parsers: Sequence[Parser],
        send: Callable[[ToWorker], None],
        call_s: Callable[[], float],
    ) -> None:
        super().__init__(submit.id, len(submit.ids), meter, call_s)
        #: The token ids of the prompt and of the first choice so far: what the prefix cache will have.
        self.ids = list(submit.ids)
        self._submit, self._put = submit, emit
        self._tokens, self._send = tokens, send
        self._choices = [
            _Choice(tokens.decoder(), ChoiceText(i, stops, parser, ends)) for i, parser in enumerate(parsers)
        ]
        self._started = False
        self._prompt_logprobs: list[TokenLogprob] = []

    @property
    def is_single(self) -> bool:
        """True if the request has one choice: then each of its steps is one pass."""
        return len(self._choices) == 1

    def take(self, frame: FromWorker) -> None:
        match frame:
            case Began():
                self.began(frame)
            case Prefilled():
                self.prefilled(frame)
            case Tokens():
                self.produced(frame)
            case Ended():
                self.ended(frame)
            case Failed():
                self.fail(error_class(frame.kind)(frame.message, param=frame.param))

    def began(self, frame: Began) -> None:
        self._meter.begin()
        self._meter.call_started()
        self._meter.cached_tokens = frame.cached_tokens
        if not self._submit.prompt_logprobs:
            self._start()

    def prefilled(self, frame: Prefilled) -> None:
        self._meter.device_s += frame.device_s
        self._meter.shared_s = frame.shared_s
        self._prompt_logprobs += map(self._logprob, frame.prompt_logprobs)

    def produced(self, frame: Tokens) -> None:
        """New tokens of one choice. Their text goes out. What ends the choice here ends it at the worker too."""
        self._meter.device_s += frame.device_s
        if frame.source:
            self._meter.drafted(frame.source, frame.drafted, frame.matched)
        self._start()
        if frame.choice == 0:
            self.ids += frame.ids
        choice = self._choices[frame.choice]
        for position, index in enumerate(frame.ids):
            if not choice.is_open:
                return
            self._token(choice, index, frame.scored[position] if frame.scored else None)
            if choice.text.is_over:
                self._send(Cancel(self.id, frame.choice))
                self._end_choice(choice, "stop")

    def ended(self, frame: Ended) -> None:
        """A choice has ended at the worker."""
        self._start()
        choice = self._choices[frame.choice]
        if choice.is_open:
            if frame.counted_stop:
                self._meter.count_token()
            self._end_choice(choice, frame.reason)

    def _usage(self) -> Usage:
        drafted, accepted = self._meter.drafts.get("prediction", (0, 0))
        return Usage(
            prompt_tokens=self._meter.prompt_tokens,
            cached_tokens=self._meter.cached_tokens,
            completion_tokens=self._meter.completion_tokens,
            reasoning_tokens=sum(choice.text.reasoning_tokens for choice in self._choices),
            accepted_prediction_tokens=accepted,
            rejected_prediction_tokens=drafted - accepted,
        )

    def _start(self) -> None:
        if not self._started:
            self._started = True
            meter, scores = self._meter, self._prompt_scores()
            started = Started(
                prompt_tokens=meter.prompt_tokens, cached_tokens=meter.cached_tokens, prompt_logprobs=scores
            )
            self._put(started)

    def _prompt_scores(self) -> tuple[TokenLogprob, ...]:
        if not self._submit.prompt_logprobs:
            return ()
        return (self._entry(self._submit.ids[0], 0.0), *self._prompt_logprobs)

    def _token(self, choice: _Choice, index: int, scored: Scored | None) -> None:
        self._meter.count_token()
        text = choice.decoder.push(index)
        logprob = None if scored is None else self._logprob(scored)
        if logprob is not None and not self._tokens.visible_bytes(index):
            logprob = replace(logprob, bytes=())  # the token is hidden: the bytes of all tokens join to the text
        self._emit(choice.text.push(text, logprob, whole=choice.decoder.is_whole))

    def _emit(self, events: Sequence[Event]) -> None:
        for event in events:
            self._put(event)

    def _end_choice(self, choice: _Choice, reason: FinishReason) -> None:
        choice.is_open = False
        self._emit(choice.text.finish(reason))
        if not any(choice.is_open for choice in self._choices):
            self._end()

    def _end(self) -> None:
        for choice in self._choices:
            choice.is_open = False
        super()._end()

    def _logprob(self, scored: Scored) -> TokenLogprob:
        top = zip(scored.top_ids, scored.top_logprobs, strict=True)
        return self._entry(scored.id, scored.logprob, tuple(self._entry(index, logprob) for index, logprob in top))

    def _entry(self, index: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text, written = self._tokens.spelling(index)
        return TokenLogprob(text, written, max(logprob, _FLOOR), top, index)
