"""The answer to one request, from its lane or from a fallback of it.

1. When a lane refuses or fails, the request moves to the fallback, until the first event with content is out. From
   then on the answer is that lane's. A wrong request is not sent to a fallback.
2. If no lane answers, the client gets the error of the model in its request. The log has the others.
3. A first-token limit from the configuration is used only if there is a fallback. If every fallback fails, the model
   gets the request again, without that limit: late is better than not at all. A limit from the client is always used,
   and starts again at each lane.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NoReturn

from msgspec.structs import replace

from gateway.errors import (
    LONGEST_QUOTE,
    BreakerOpen,
    DeadlineExceeded,
    FirstTokenTooLate,
    GatewayError,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    UpstreamFailed,
    cut,
)
from gateway.generation import ChoiceFinished, Event, Finished, Generation, Meter, Route, Started, Timings
from gateway.lanes.job import Job
from gateway.lanes.lane import Lane
from gateway.monitoring import logs
from gateway.monitoring.observers import CANCELLED, AnswerRecord, Observers
from gateway.monitoring.request_line import RequestLine, error_text, without_prompt

_log = logging.getLogger(__name__)


class RoutedAnswer(AsyncIterator[Event]):
    """The events of one request: Started, deltas, one ChoiceFinished for each choice, Finished.

    Iterate once. The iteration ends after Finished, or raises the GatewayError that the client gets. A cancelled read
    loses no event. `aclose` cancels the request; close every answer.

    Args:
        lanes: the lanes to try, in order.
        timeout_s: the deadline of the whole answer, in seconds from now.
        clock: seconds, monotonic; the lanes' clock.
        log_prompt: write the prompt to the log.
        observers: get the record of the request at its end.
    """

    def __init__(
        self,
        generation: Generation,
        lanes: list[Lane],
        timeout_s: float,
        clock: Callable[[], float],
        log_prompt: bool,
        observers: Observers,
    ) -> None:
        self.model = lanes[0].name  # the model that answers: final with the first event that the iteration gives
        self._generation = generation
        self._lanes = deque(lanes)
        self._lane = self._first = lanes[0]
        self._overflowed: Lane | None = None  # it refused the request only for the first-token limit of its table
        self._clock = clock
        self._opened_at = clock()
        self._deadline = self._opened_at + timeout_s
        self._job: Job | None = None
        self._started: Started | None = None
        self._held: Event | None = None  # the first content, while the reader has Started
        self._has_content = False
        self.is_over = False  # the record was written
        self._refusals: list[GatewayError] = []
        self._ending = "cancelled"
        self._error: GatewayError | None = None
        self._log_prompt = log_prompt
        self._observers = observers
        self._status = CANCELLED  # of the reply, for the record
        self._timings: Timings | None = None  # of a complete answer

    @property
    def meter(self) -> Meter:
        """Of the lane that answers."""
        return Meter() if self._job is None else self._job.meter

    @property
    def predicted_ttft_s(self) -> float | None:
        """The prediction of the lane that answers, in seconds from acceptance; None: it had no measurement."""
        return None if self._job is None else self._job.predicted_ttft_s

    @property
    def dropped_messages(self) -> int:
        """Messages of the chat that did not fit into the context of the model that answers."""
        return 0 if self._job is None or self._job.plan is None else self._job.plan.dropped_messages

    @property
    def fallback_cause(self) -> str:
        """Why a fallback answers: the code of the first refusal. "": the first model answers, or none."""
        first = self._refusals[0] if self._refusals else None
        has_moved = len(self._refusals) > (self._error is not None) and self._lane is not self._first
        return first.code or first.type if first is not None and has_moved else ""

    @property
    def route(self) -> Route:
        """Of the lane that answers: final with the first content."""
        return self.meter.route

    @property
    def cut_texts(self) -> int:
        """Texts that were longer than the encoder reads."""
        return 0 if self._job is None or self._job.plan is None else self._job.plan.cut_texts

    async def open(self) -> None:
        """Return when a device has begun with the request. Raises the refusal that the client gets."""
        while self._started is None:
            await self._next()

    async def __anext__(self) -> Event:
        if self._held is not None:
            event, self._held = self._held, None
            return self._noted(event)
        if self.is_over:
            raise StopAsyncIteration
        event = await self._next()
        while isinstance(event, Started):
            event = await self._next()
        if self._has_content or self._started is None:
            return self._noted(event)
        self._has_content, self._held = True, event
        return self._started

    def poll(self) -> Event | None:
        """The next event of an answer that has begun, if it is there. None: `__anext__` waits for it, or has the end or
        an error."""
        event, self._held = self._held, None
        if event is None and self._has_content and not self.is_over and self._job is not None:
            event = self._job.poll()
        return None if event is None else self._noted(event)

    async def aclose(self) -> None:
        """Cancel the request if it still runs. May be called again."""
        self._end()
        if self._job is not None:
            await self._job.aclose()

    async def _next(self) -> Event:
        """The next event of the lane that answers; the next lane's if this one refuses or fails."""
        while True:
            try:
                if self._job is None:
                    self._job = self._submit()
                event = await anext(self._job)
            except GatewayError as error:
                self._move_on(error)
                self._job = None
                continue
            if isinstance(event, Started):
                self._started = event
            return event

    def _submit(self) -> Job:
        self._lane = lane = self._lanes.popleft()
        self.model = lane.name
        ttft_timeout_s = self._generation.ttft_timeout_s
        if ttft_timeout_s is None and self._lanes:
            ttft_timeout_s = lane.config.ttft_timeout_s
        left_s = self._deadline - self._clock()
        generation = replace(self._generation, timeout_s=left_s, ttft_timeout_s=ttft_timeout_s)
        return lane.submit(replace(generation, keep_alive_s=None) if self._refusals else generation)

    def _move_on(self, error: GatewayError) -> None:
        """Return if there is another lane to try, else raise the error that the client gets."""
        self._refusals.append(error)
        if self._job is not None and self._job.run_at is not None:
            error.route = self._job.meter.route.text()
        if self._has_content or self._clock() >= self._deadline:
            self._fail(error)
        is_loop = isinstance(error, UpstreamFailed) and error.is_loop  # its sender has the fallback, and other servers
        is_for_sender = (isinstance(error, InvalidRequest) or is_loop) and len(self._refusals) == 1
        if self._lanes and self._is_overflow(error):
            self._overflowed = self._overflowed or self._lane
        elif not self._lanes and self._overflowed is not None:
            self._lanes.append(self._overflowed)
            self._overflowed = None
        if is_for_sender or not self._lanes:
            self._fail(self._refusals[0])
        if not isinstance(error, BreakerOpen | ModelNotReady):  # the lane has logged its state
            self._lane.log_refusal(self._error_text(error), self._lanes[0].name)

    def _is_overflow(self, error: GatewayError) -> bool:
        """True if the lane refused the request, or was too late, for the limit of its table."""
        has_limit = self._generation.ttft_timeout_s is None and self._lane.config.ttft_timeout_s is not None
        return has_limit and isinstance(error, QueueFull | FirstTokenTooLate | DeadlineExceeded)

    def _error_text(self, error: GatewayError) -> str:
        """The message for the log. That of another server, and that of a wrong request, can repeat the prompt."""
        can_repeat = isinstance(error, InvalidRequest | UpstreamFailed) and not self._log_prompt
        texts = logs.prompt_texts(self._generation.prompt) if can_repeat else []
        return error_text(without_prompt(error.message, texts))

    def _fail(self, error: GatewayError) -> NoReturn:
        self._ending, self._status, self._error = error.code or error.type, error.status, error
        error.is_logged = True
        self._end()
        raise error

    def _noted(self, event: Event) -> Event:
        if isinstance(event, ChoiceFinished):
            self._ending, self._status = event.reason, 200
        elif isinstance(event, Finished):
            self._timings = event.timings
            self._end()
        return event

    def _end(self) -> None:
        """Write the log line and the record, once."""
        if self.is_over:
            return
        self.is_over = True
        record = self._record()
        line = RequestLine(record)
        _log.log(line.level, "%s", line)
        if self._log_prompt:
            text = logs.prompt_text(self._generation.prompt)
            _log.info("%s  %s", record.id, text, extra={"has_prompt": True})
        self._observers.ended(record)

    def _record(self) -> AnswerRecord:
        meter, job, now = self.meter, self._job, self._clock()
        route = meter.route
        budget = None if job is None else job.budget
        return AnswerRecord(
            at=time.time(),
            id=self._generation.id,
            endpoint=self._generation.endpoint,
            key=self._generation.owner,
            requested=cut(self._generation.model, LONGEST_QUOTE),
            model=self.model,
            ending=self._ending,
            status=self._status,
            prompt_tokens=meter.prompt_tokens,
            cached_tokens=meter.cached_tokens,
            completion_tokens=meter.completion_tokens,
            queue_ms=_ms(None if job is None else job.queue_s),
            predicted_ttft_ms=_ms(self.predicted_ttft_s),
            ttft_ms=_ms(None if meter.first_token_at is None else meter.first_token_at - self._opened_at),
            per_token_ms=self._per_token_ms(),
            total_ms=1000 * (now - self._opened_at),
            device_ms=1000 * meter.device_s_at(now),
            limit_ttft_ms=None if budget is None else 1000 * budget.seconds(meter.computed_tokens, 0),
            limit_per_token_ms=None if budget is None else budget.token_ms or None,
            is_slow=job is not None and job.permit.outcome == "slow",
            slow_cause="" if job is None else job.slow_cause,
            why=self.fallback_cause,
            target=route.target,
            target_reason=route.reason if route.target else "",
            attempts=route.attempts if route.target else 0,
            hedged=route.hedged,
            error="" if self._error is None else self._error_text(self._error),
            dropped_messages=self.dropped_messages,
            traceparent=self._generation.traceparent,
            has_default_limit=self._generation.has_default_limit,
        )

    def _per_token_ms(self) -> float | None:
        """For each token after the first. A client that reads slowly does not change the value of a whole answer."""
        meter, after_first = self.meter, self.meter.completion_tokens - 1
        if meter.first_token_at is None or after_first < 1:
            return None
        if self._timings is None or self._timings.ttft_s is None:
            return 1000 * (self._clock() - meter.first_token_at) / after_first
        return 1000 * (self._timings.total_s - self._timings.ttft_s) / after_first


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
