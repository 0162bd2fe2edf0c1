"""The run of an accepted request: prepared, let in, answered by the engine; within its deadline, the permit settled.

A request has joined the line before its prompt is prepared, so that a long one loses no stand to a short one that came
later. Its first token is predicted right after, and one that would come too late is refused then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

from msgspec.structs import replace

from gateway.engines.base import Engine
from gateway.errors import BreakerOpen, DeadlineExceeded, EngineFailed, GatewayError, ModelNotReady
from gateway.generation import Finished, Started
from gateway.lanes.breaker import Breaker, Outcome, Watch
from gateway.lanes.job import Job
from gateway.lanes.lane_forecast import LaneForecast

_log = logging.getLogger(__name__)


class JobRunner:
    """Runs the requests of one lane, each in the task that calls it."""

    def __init__(self, name: str, engine: Engine, breaker: Breaker, forecast: LaneForecast) -> None:
        self._name = name
        self._engine = engine
        self._breaker = breaker
        self._forecast = forecast

    async def run(self, job: Job) -> Finished:
        """Fill the request's queue with all events but the last, which is returned; or raise a GatewayError.

        Refusals: FirstTokenTooLate, QueueFull, BreakerOpen. Later: DeadlineExceeded and whatever the engine raises.
        """
        try:
            async with asyncio.timeout(job.first_deadline_s) as limit:
                with self._blamed(job):
                    job.plan = await self._engine.prepare(job.generation, job.meter)
                self._forecast.check_first_token(job)
                if not await job.ticket.wait():
                    raise self._breaker.refusal()
                return await self._answer(job, limit)
        except TimeoutError:
            self._forecast.gave_up(job)
            raise self._too_late(job) from None

    async def _answer(self, job: Job, limit: asyncio.Timeout) -> Finished:
        """Have the engine answer, and settle the permit by how that goes."""
        self._forecast.began(job)
        watch = Watch(self._breaker, job.meter, job.permit, asyncio.get_running_loop().call_later)
        try:
            with self._blamed(job):
                finished = await self._pump(job, limit)
        finally:
            watch.stop()
        job.permit.settle("slow" if self._breaker.is_slow(job.meter) else "ok")
        self._forecast.finished(job)
        return replace(finished, timings=job.timings(finished.timings.queue_s))

    @contextmanager
    def _blamed(self, job: Job) -> Iterator[None]:
        """Settle the permit by what the engine raises, and say it in our words."""
        try:
            yield
        except GatewayError as error:
            job.permit.settle(_blame(error))
            raise
        except Exception as error:
            job.permit.settle("failed")
            _log.error("%s: the engine raised %s", self._name, type(error).__name__, exc_info=error)
            raise EngineFailed(f"{self._name} failed while it answered; the gateway's log says why.") from error

    async def _pump(self, job: Job, limit: asyncio.Timeout) -> Finished:
        async with aclosing(self._engine.stream(job.generation, job.meter)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event
                if job.first_at is None and not isinstance(event, Started):
                    self._first_token(job, limit)
                await job.events.put(event)
        raise EngineFailed(f"{self._name} stopped before it finished its answer.")

    def _first_token(self, job: Job, limit: asyncio.Timeout) -> None:
        """From here on the deadline is the whole answer's."""
        job.got_first_token()
        self._forecast.first_token(job)
        if job.generation.ttft_timeout_s is not None:
            left_s = job.deadline_s - job.age_s
            limit.reschedule(asyncio.get_running_loop().time() + left_s)

    def _too_late(self, job: Job) -> DeadlineExceeded:
        what = "finish its answer" if job.first_at is not None else "give a first token"
        return DeadlineExceeded(f"{self._name} did not {what} within {job.age_s:.1f} s.")


def _blame(error: GatewayError) -> Outcome:
    """Whether the device is at fault; refusals, deadlines and requests that are wrong in themselves are neutral."""
    neutral = error.status < 500 or isinstance(error, ModelNotReady | BreakerOpen | DeadlineExceeded)
    return "released" if neutral else "failed"
