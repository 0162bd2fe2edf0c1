"""A job: one request that a lane has accepted, what it holds, and its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from gateway.engines.base import Plan
from gateway.errors import GatewayError
from gateway.generation import Event, Finished, Generation, Meter, Timings
from gateway.lanes.admission import Ticket
from gateway.lanes.breaker import Budget, Permit
from gateway.lanes.events.event_queue import EventQueue
from gateway.lanes.events.unread import UnreadEvents


class Job(AsyncIterator[Event]):
    """One accepted request. It runs in a separate task; iterate to read its events.

    The iteration ends after Finished, or raises the GatewayError that ended the request. A cancelled read does not
    cancel the request and loses no event. `aclose` cancels the request; close every job.

    Args:
        timeout_s: the deadline if `generation` has none, in seconds.
        clock: seconds, monotonic.
        all_unread: limits the unread events of all jobs of the lane.
    """

    ticket: Ticket  # set by the lane before the task starts
    task: asyncio.Task[None]  # set by the lane

    def __init__(
        self,
        generation: Generation,
        permit: Permit,
        timeout_s: float,
        clock: Callable[[], float],
        all_unread: UnreadEvents | None = None,
    ) -> None:
        self.generation = generation
        self.permit = permit
        self.meter = Meter(clock=clock)
        self.events = EventQueue(all_unread)
        self.plan: Plan | None = None  # None: not known yet, or the engine cannot know it
        self.predicted_ttft_s: float | None = None  # predicted from acceptance; None: nothing was measured yet
        self.budget: Budget | None = None  # of device time; None: the breaker is off
        self.others = 0  # other requests that were running when this one started
        self.accepted_at = clock()
        self.load_s = 0.0  # that it waited for an engine that is loaded on demand
        self.run_at: float | None = None  # when the engine's `run` was called
        self.concluded = False
        self._is_read = False
        self._timeout_s = timeout_s
        self._clock = clock

    async def __anext__(self) -> Event:
        if self._is_read:
            raise StopAsyncIteration
        try:
            event = await self.events.get()
        except GatewayError:
            self._is_read = True
            raise
        self._is_read = isinstance(event, Finished)
        return event

    def poll(self) -> Event | None:
        """The next event if it is there. None: `__anext__` waits for it, or has the end or an error."""
        event = None if self._is_read else self.events.poll()
        self._is_read |= isinstance(event, Finished)
        return event

    async def aclose(self) -> None:
        """Cancel the request if it still runs. The device stops at its next step. May be called again."""
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        self.events.close()

    @property
    def age_s(self) -> float:
        """Seconds since the request was accepted."""
        return self._clock() - self.accepted_at

    @property
    def deadline_s(self) -> float:
        """The time limit of the whole answer, in seconds from acceptance."""
        return self._timeout_s if self.generation.timeout_s is None else self.generation.timeout_s

    @property
    def first_deadline_s(self) -> float:
        """The time limit until the first token if there is one, else of the whole answer."""
        ttft_s = self.generation.ttft_timeout_s
        return self.deadline_s if ttft_s is None else min(ttft_s, self.deadline_s)

    @property
    def service_s(self) -> float | None:
        """Seconds that the engine has worked for the request: from the first device call if the engine shows it. None:
        it has not begun. A wait for the compiler of a grammar is not included: the next request may have no grammar.
        """
        since = self.run_at if self.plan is None else self.meter.began_at
        return None if since is None else self._clock() - since

    @property
    def queue_s(self) -> float | None:
        """Seconds in the admission queue. None: it is still there."""
        return None if self.ticket.admitted_at is None else self.ticket.admitted_at - self.accepted_at

    @property
    def slow_cause(self) -> str:
        """prompt, tokens or queue; "": the answer was not slow, or no breaker judges it."""
        budget, meter = self.budget, self.meter
        if budget is None:
            return ""
        limit_s = budget.seconds(meter.computed_tokens, 0)
        if self.permit.outcome == "slow":
            return "prompt" if meter.first_token_at is None or meter.prompt_s > limit_s else "tokens"
        is_late = meter.first_token_at is not None and meter.first_token_at - self.accepted_at > limit_s
        return "queue" if is_late else ""

    def timings(self) -> Timings:
        """Where the time went until now."""
        now, meter = self._clock(), self.meter
        admitted_at = now if self.ticket.admitted_at is None else self.ticket.admitted_at
        engine_queue_s = 0.0
        if self.run_at is not None and meter.began_at is not None:
            engine_queue_s = meter.began_at - self.run_at
        return Timings(
            load_s=self.load_s,
            queue_s=max(0.0, admitted_at - self.accepted_at - self.load_s) + engine_queue_s,
            ttft_s=None if meter.first_token_at is None else meter.first_token_at - self.accepted_at,
            device_s=meter.device_s,
            total_s=now - self.accepted_at,
        )
