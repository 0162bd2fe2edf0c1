"""One model's lane: its queue, its breaker and its engine. The only place that admits and cancels a job.

1. A request runs in a task of its own that fills a bounded queue, and its reader empties that: a reader that stalls
   holds no place on the device, and the deadline passes whether or not somebody reads. Closing the reader's generator
   cancels the task, and the device stops at its next step.
2. The permit and the place are given back before the last event is handed out, so that whoever has seen the end of an
   answer may rely on it; and by the task's callback, for a task that was cancelled, even before its first step.
3. When the breaker opens, those who wait are refused at once: their fallback answers sooner than this device would.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any

from msgspec import Struct

from gateway.config import BreakerConfig, ModelConfig
from gateway.engines.base import Engine, EngineStatus, State
from gateway.errors import GatewayError, ModelNotReady, QueueFull
from gateway.generation import Event, Finished, Generation, Meter
from gateway.lanes.admission import Slots
from gateway.lanes.breaker import Breaker
from gateway.lanes.breaker import State as BreakerState
from gateway.lanes.job import Job
from gateway.lanes.lane_forecast import LaneForecast
from gateway.lanes.loader import Loader
from gateway.lanes.prober import Prober
from gateway.lanes.run import JobRunner
from gateway.metrics import LaneGauges, Metrics

_NOT_READY: dict[State, str] = {
    "loading": "is loading",
    "restarting": "is being restarted",
    "failed": "could not be loaded",
    "closed": "is shut down",
}

_log = logging.getLogger(__name__)


class BreakerStatus(Struct, frozen=True, kw_only=True):
    state: BreakerState
    reason: str  # why it last opened
    retry_after_s: float
    bad: int  # slow or failed ...
    judged: int  # ... among the last so many answers


class LaneStatus(Struct, frozen=True, kw_only=True):
    """What `/readyz` and the page show of a lane."""

    model: str
    engine: EngineStatus
    breaker: BreakerStatus
    running: int
    waiting: int
    expected_wait_s: float  # for a place, were a request to come now

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered now."""
        return self.engine.state == "ready" and self.breaker.state == "closed"


class Lane:
    """One model's lane.

    Args:
        name: the model's name in the configuration.
        engine: not yet started; the lane starts and closes it.
        timeout_s: the deadline of requests that bring none.
        clock: monotonic seconds, the one the engine's meters are read from.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        engine: Engine,
        breaker_config: BreakerConfig,
        *,
        metrics: Metrics | None = None,
        timeout_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.config = config
        self.engine = engine
        self.breaker = Breaker(breaker_config, clock, name=name, on_change=self._breaker_changed)
        self.slots = Slots(config.max_sequences, config.queue, clock)
        self._metrics = metrics or Metrics()
        self._metrics.watch(name, self._gauges)
        self._loader = Loader(name, engine, clock)
        self._forecast = LaneForecast(name, engine, self.slots, clock)
        self._runner = JobRunner(name, engine, self.breaker, self._forecast)
        self._timeout_s = timeout_s
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing: asyncio.Task[None] | None = None
        self._closed = False

    # --- life

    def start(self) -> None:
        """Begin to load in the background, and try again with growing pauses while that fails."""
        self._spawn(self._loader.run())

    async def tried(self) -> None:
        """Wait for the first attempt to load, whether or not it succeeded."""
        await self._loader.tried.wait()

    async def aclose(self) -> None:
        """End every request with an error and close the engine."""
        self._closed = True
        self._loader.tried.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.aclose()

    # --- looking

    @property
    def status(self) -> LaneStatus:
        bad, judged = self.breaker.verdict
        breaker = BreakerStatus(
            state=self.breaker.state,
            reason=self.breaker.reason,
            retry_after_s=self.breaker.retry_after_s,
            bad=bad,
            judged=judged,
        )
        return LaneStatus(
            model=self.name,
            engine=self._loader.status,
            breaker=breaker,
            running=self.slots.running,
            waiting=self.slots.waiting,
            expected_wait_s=self.slots.expected_wait_s(),
        )

    # --- requests

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event, None]:
        """The request's events; they end with Finished, or with a GatewayError raised from here.

        The first step raises the refusals: ModelNotReady, BreakerOpen, QueueFull, each with the seconds to wait.
        Later: DeadlineExceeded and whatever the engine raises. Closing the generator cancels the job.
        """
        job = self._accept(generation, meter)
        task = self._spawn(self._serve(job))
        task.add_done_callback(partial(self._ended, job))
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, GatewayError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _accept(self, generation: Generation, meter: Meter) -> Job:
        try:
            self._check_ready()
            permit = self.breaker.admit()
            try:
                self._check_wait(generation)
            except QueueFull:
                permit.settle("released")
                raise
        except GatewayError as refusal:
            self._metrics.request_refused(self.name, refusal.code or refusal.type)
            raise
        job = Job(generation, meter, permit, self._timeout_s, self._clock)
        job.ticket = self.slots.join(generation.background, partial(self._forecast.remaining_s, job))
        return job

    def _check_ready(self) -> None:
        status = self._loader.status
        state = "closed" if self._closed else status.state
        if state != "ready":
            detail = f": {status.detail}" if status.detail else "."
            raise ModelNotReady(f"{self.name} {_NOT_READY[state]}{detail}", retry_after_s=self._loader.retry_after_s)

    def _check_wait(self, generation: Generation) -> None:
        if self.slots.is_full(generation.background):
            line = f"{self.slots.running} requests in progress and {self.slots.waiting} waiting"
            wait_s = self.slots.expected_wait_s(generation.background)
            raise QueueFull(f"{self.name} has {line}; there is no room for more.", retry_after_s=wait_s)

    async def _serve(self, job: Job) -> None:
        """Run the request and hand its end to the reader."""
        try:
            finished = await self._runner.run(job)
        except GatewayError as error:
            self._conclude(job, error.code or error.type)
            await job.events.put(error)
        else:
            self._conclude(job, "ok")
            await job.events.put(finished)

    def _ended(self, job: Job, task: asyncio.Task[None]) -> None:
        self._conclude(job, "cancelled")
        if task.cancelled() or task.exception():  # a reader that is still there waits for an end
            while job.events.full():
                job.events.get_nowait()
            job.events.put_nowait(ModelNotReady(f"{self.name} was shut down before it finished its answer."))

    def _conclude(self, job: Job, outcome: str) -> None:
        if not job.concluded:
            job.concluded = True
            job.permit.settle("released")
            job.ticket.leave()
            self._metrics.request_ended(self.name, outcome, job.meter, job.timings())

    # --- the breaker

    def _breaker_changed(self, state: BreakerState) -> None:
        self._metrics.breaker_changed(self.name, state)
        match state:
            case "open":
                wait_s = self.breaker.config.open_s
                _log.warning("%s: breaker open: %s; refusing for %.0f s", self.name, self.breaker.reason, wait_s)
                self.slots.turn_away()
                self._start_probing()
            case "half_open":
                _log.info("%s: breaker half-open: %d good probes close it", self.name, self.breaker.config.probes)
            case "closed":
                _log.info("%s: breaker closed", self.name)

    def _start_probing(self) -> None:
        is_probing = self._probing is not None and not self._probing.done()
        if self.breaker.config.probe_itself and not is_probing and not self._closed:
            self._probing = self._spawn(Prober(self.name, self.config, self.engine, self.breaker).run())

    # --- small parts

    def _gauges(self) -> LaneGauges:
        status = self._loader.status
        return LaneGauges(
            ready=status.state == "ready",
            breaker=self.breaker.state,
            running=self.slots.running,
            waiting=self.slots.waiting,
            restarts=status.restarts,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
