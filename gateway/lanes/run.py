"""Runs a job: prepare, wait for a slot, let the engine answer, all within the deadline.

A job is in the admission queue before its prompt is prepared, so a long prompt does not lose its position to a short
one that came later. After `prepare` the time to first token is predicted, and a request that would be too late is
refused.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from gateway.engines.base import Engine, Prepared
from gateway.errors import DeadlineExceeded, GatewayError
from gateway.generation import Meter, Usage
from gateway.lanes.breaker import Breaker, Permit, outcome
from gateway.lanes.job import Job
from gateway.lanes.lane_forecast import LaneForecast

_log = logging.getLogger(__name__)


class JobRunner:
    """Runs the jobs of one lane, each in the task that calls `run`.

    Args:
        loaded: waits for an engine that is loaded on demand. Returns the seconds that this took. Raises ModelNotReady
            if it could not be loaded.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        breaker: Breaker,
        forecast: LaneForecast,
        loaded: Callable[[], Awaitable[float]],
    ) -> None:
        self._name = name
        self._engine = engine
        self._breaker = breaker
        self._forecast = forecast
        self._loaded = loaded

    async def run(self, job: Job) -> Usage:
        """Put the events into the job's queue and settle its permit.

        Raises:
            FirstTokenTooLate, QueueFull, BreakerOpen: the request was refused before the device began.
            DeadlineExceeded: a time limit of the request has passed.
            GatewayError: what the engine raised. An exception of another kind is a bug: 500, and no blame.
        """
        try:
            async with asyncio.timeout(job.first_deadline_s) as limit:
                job.load_s = await self._loaded()
                with self._settled(job):
                    prepared = await self._engine.prepare(job.generation)
                job.plan = prepared.plan
                self._forecast.check_first_token(job)
                if not await job.ticket.wait():
                    is_evicted = job.ticket.refusal == "evicted"
                    raise self._forecast.eviction(job) if is_evicted else self._breaker.refusal()
                return await self._answer(job, prepared, limit)
        except TimeoutError:
            self._forecast.learn_timeout(job)
            raise self._too_late(job) from None

    async def _answer(self, job: Job, prepared: Prepared, limit: asyncio.Timeout) -> Usage:
        """Let the engine answer, and settle the permit with the result."""
        self._forecast.record_start(job)
        job.events.on_content = partial(self._first_content, job, limit)
        watch = Watch(self._breaker, job.meter, job.permit, asyncio.get_running_loop().call_later)
        try:
            with self._settled(job):
                usage = await self._run_engine(job, prepared)
        finally:
            watch.stop()
        job.permit.settle("slow" if self._breaker.is_slow(job.meter) else "ok", job.meter)
        self._forecast.learn_end(job)
        return usage

    async def _run_engine(self, job: Job, prepared: Prepared) -> Usage:
        job.run_at = job.meter.clock()
        usage = await self._engine.run(prepared, job.meter, job.events)
        if job.events.finished_choices < job.generation.n:
            raise GatewayError(f"{self._name} stopped before it finished its answer.")
        return usage

    @contextmanager
    def _settled(self, job: Job) -> Iterator[None]:
        """Settle the permit with what the engine raises. An exception of another kind becomes GatewayError."""
        try:
            yield
        except GatewayError as error:
            job.permit.settle(outcome(error))
            raise
        except Exception as error:
            _log.error("%s: the engine raised %s", self._name, type(error).__name__, exc_info=error)
            raise GatewayError(f"{self._name} failed while it answered; the gateway's log has the reason.") from error

    def _first_content(self, job: Job, limit: asyncio.Timeout) -> None:
        """From now on the time limit is that of the whole answer."""
        self._forecast.learn_first_token(job)
        if job.generation.ttft_timeout_s is not None and not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time() + job.deadline_s - job.age_s)

    def _too_late(self, job: Job) -> DeadlineExceeded:
        what = "finish its answer" if job.events.has_content else "give a first token"
        age = f"{job.age_s:.1f}" if job.age_s >= 0.95 else f"{job.age_s:.2g}"
        return DeadlineExceeded(f"{self._name} did not {what} within {age} s.")


class Timer(Protocol):
    def cancel(self) -> None: ...


class Watch:
    """Settles `permit` as slow as soon as the device time of its request is above the budget, until `stop` is called.

    It sleeps for the time that is left of the budget, so it wakes a few times for each request and not for each token.

    Args:
        call_later: `(seconds, function)`, of the event loop.
    """

    _MIN_SLEEP_S = 0.001

    def __init__(
        self, breaker: Breaker, meter: Meter, permit: Permit, call_later: Callable[[float, Callable[[], None]], Timer]
    ) -> None:
        self._breaker = breaker
        self._meter = meter
        self._permit = permit
        self._call_later = call_later
        self._timer: Timer | None = None
        self._check()

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _check(self) -> None:
        slack_s = self._breaker.slack_s(self._meter)
        if slack_s < 0:
            self._permit.settle("slow", self._meter)
        elif slack_s < math.inf:
            self._timer = self._call_later(max(slack_s, self._MIN_SLEEP_S), self._check)
