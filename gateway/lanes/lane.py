"""One model's lane: its admission queue, its circuit breaker and its engine. Only a lane admits and cancels requests.

1. Each job runs in a separate task that fills the job's queue. A reader that stalls does not delay the deadline or
   the release of the slot. `Job.aclose` cancels the task, and the device stops at its next step.
2. The permit and the slot are given back before the last event is readable, so a client that has the end of an answer
   can send the next request. The callback of the task does it for a task that was cancelled before its first step.
3. When the breaker opens, the queued requests are refused at once: a fallback answers sooner than this device.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from gateway.config.tables import BreakerConfig, ModelConfig
from gateway.engines.base import Engine, EngineStatus, TextTools
from gateway.errors import GatewayError, ModelNotFound, ModelNotReady, QueueFull, quote
from gateway.generation import Finished, Generation
from gateway.lanes.admission import AdmissionQueue
from gateway.lanes.breaker import Breaker
from gateway.lanes.events.unread import UnreadEvents
from gateway.lanes.job import Job
from gateway.lanes.lane_forecast import LaneForecast, speed_text
from gateway.lanes.memory.loader import Loader
from gateway.lanes.memory.manager import MemoryManager
from gateway.lanes.memory.uses import Uses
from gateway.lanes.prober import BreakerChanges
from gateway.lanes.run import JobRunner
from gateway.lanes.status import LaneStatus
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.states import LaneGauges
from gateway.monitoring.throttle import Throttle

_log = logging.getLogger(__name__)


class Lane:
    """One model's lane.

    Args:
        name: the model's name in the configuration.
        config: the model's table.
        engine: not started; the lane starts and closes it.
        timeout_s: the deadline of requests that have none, in seconds.
        clock: seconds, monotonic.
        sleep: the pauses of the loader, in seconds of `clock`.
        memory: grants the memory of the engine; None: there is no budget.
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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        memory: MemoryManager | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.engine = engine
        self._metrics = metrics or Metrics()
        self.queue = AdmissionQueue(config.max_sequences, config.queue, clock, guests=self._guests)
        changed = BreakerChanges(self, self._metrics, self._spawn).changed
        self.breaker = Breaker(breaker_config, clock, name=name, on_change=changed, status=lambda: engine.status)
        self.background = ""  # see LaneStatus
        self.successor: Lane | None = None  # gets the requests, also those that were routed here before
        self.is_removed = False  # from the configuration: it accepts no request
        self.uses = Uses(clock)
        self._forecast = LaneForecast(name, self.queue, clock)
        self.memory = memory or MemoryManager(clock=clock)
        self.claim = self.memory.claim(name, config, self.uses, self._forecast.left_s, engine.free_cache)
        self._loader = Loader(name, engine, clock, sleep, self.memory, self.claim)
        self._runner = JobRunner(name, engine, self.breaker, self._forecast, self._loader.loaded)
        self._timeout_s = timeout_s
        self._clock = clock
        self._unread = UnreadEvents()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: list[asyncio.Task[None]] = []
        self._refusals = Throttle(clock)
        self.is_closed = False
        self._closing = asyncio.Lock()
        self._gone = asyncio.Event()  # set when the engine is closed, and that of the lane before
        if self.claim.is_on_demand:
            self._loader.wait_for_demand()

    # --- start and stop

    def start(self) -> None:
        """Load the engine in the background, and again whenever it is lost. `/metrics` shows this lane from now on."""
        self._metrics.watch(self.name, self._gauges)
        self._loading = [self._spawn(self._loader.run())]

    async def load(self) -> str:
        """Load the engine once, before `start`. Returns the fault, empty if there was none."""
        return await self._loader.load()

    def follow(self, old: Lane, *, loads: bool = False) -> None:
        """Before `start`: load when `old` is closed; without `loads` only if a request comes."""
        self.background = old.background
        self._loader.follow(old._loader.as_previous(old._gone, old._forecast.left_s))
        if loads:
            self._loader.demand()

    def configure(self, config: ModelConfig, breaker: BreakerConfig) -> None:
        """Apply a table that differs only in keys that need no other engine. Another breaker begins closed."""
        self.config = config
        self.queue.max_waiting = config.queue
        if self.claim.configure(config):
            self._loader.demand()
        self.breaker.configure(breaker)

    async def demand(self) -> None:
        """Load a model that is not ready, and wait for the end of the next attempt."""
        with self.claim.loads.one():
            if not self.is_closed:
                self._loader.demand_now()
            await self.tried()

    @property
    def is_unloaded(self) -> bool:
        return self._loader.is_unloaded

    async def previous_is_gone(self) -> None:
        """Wait until the lane that this one follows is closed."""
        await self._loader.previous_is_gone()

    async def tried(self) -> None:
        """Wait for the end of the first attempt to load, with or without success."""
        await self._loader.tried.wait()

    async def settled(self) -> None:
        """Wait until the model was tried, or is to be loaded on demand."""
        await self._loader.settled.wait()

    async def aclose(self) -> None:
        """End every request with an error and close the engine. May be called again."""
        self.is_closed = True
        self._loader.tried.set()
        self._loader.settled.set()
        async with self._closing:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(asyncio.sleep(0), *self._loading, return_exceptions=True)  # it starts processes
            try:
                await self.engine.aclose()  # ends what requests still wait for
            finally:
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self.memory.release(self.claim)
                await self.previous_is_gone()
                if self.is_removed:
                    self._metrics.forget(self.name, self._gauges)
                self._gone.set()

    # --- status

    @property
    def status(self) -> LaneStatus:
        engine, tokens_per_s = self._loader.status, self._forecast.tokens_per_s
        return LaneStatus(
            model=self.name,
            engine=engine,
            breaker=self.breaker.status,
            running=self.queue.running,
            waiting=self.queue.waiting,
            expected_wait_s=self.queue.expected_wait_s() + (self._loader.expected_s or 0.0),
            cpu_nodes=engine.cpu_nodes,
            tokens_per_s=tokens_per_s,
            speed=speed_text(tokens_per_s, engine.published_tokens_per_s),
            background=self.background,
            loads_on_demand=self._loader.loads_on_demand,
            memory=self.memory.status(self.claim),
        )

    @property
    def speed(self) -> tuple[EngineStatus, float | None]:
        """The engine's status and the measured tokens per second: a small part of `status`."""
        return self._loader.status, self._forecast.tokens_per_s

    # --- requests

    @property
    def current(self) -> Lane:
        """The lane that gets the requests now."""
        lane = self
        while lane.successor:
            lane = lane.successor
        return lane

    @asynccontextmanager
    async def text_tools(self, *, may_load: bool = True) -> AsyncGenerator[TextTools | None]:
        """The tokenizer and template of a loaded model. Raises ModelNotReady."""
        with self.uses.one():
            if self.engine.text_tools is not None and may_load and self._loader.loads_on_demand:
                await self.demand()
            yield self.engine.text_tools

    def submit(self, generation: Generation) -> Job:
        """Accept a request and start it in a separate task. Read the events from the job, and close it.

        Raises:
            ModelNotReady, BreakerOpen, QueueFull: a refusal, with the seconds to wait.
        """
        lane = self.current
        if lane is not self:
            return lane.submit(generation)
        job = self._accept(generation)
        if generation.keep_alive_s is not None:
            self.claim.keep_alive_s = generation.keep_alive_s
        self.uses.begin()
        job.task = self._spawn(self._serve(job))
        job.events.on_overflow = job.task.cancel
        job.task.add_done_callback(partial(self._ended, job))
        return job

    def _accept(self, generation: Generation) -> Job:
        if self.is_removed:
            raise ModelNotFound(f"The model {quote(self.name)} does not exist any more.", param="model")
        try:
            self._loader.admit(generation.ttft_timeout_s, is_closed=self.is_closed)
            permit = self.breaker.admit()
            try:
                self._check_queue(generation)
            except QueueFull:
                permit.settle("released")
                raise
        except GatewayError as refusal:
            self._metrics.request_refused(self.name, refusal.code or refusal.type)
            raise
        job = Job(generation, permit, self._timeout_s, self._clock, self._unread)
        job.budget = self.breaker.limit
        remaining_s = partial(self._forecast.remaining_s, job)
        job.ticket = self.queue.enqueue(generation.background, remaining_s, client=generation.client)
        return job

    def _check_queue(self, generation: Generation) -> None:
        if self.queue.is_full(generation.background, generation.client):
            counts = f"{self.queue.running} running and {self.queue.waiting} waiting requests"
            wait_s = self.queue.expected_wait_s(generation.background, generation.client)
            raise QueueFull(f"{self.name} has {counts}; its queue is full.", retry_after_s=wait_s)

    async def _serve(self, job: Job) -> None:
        """Run the job and put its end into the queue."""
        try:
            usage = await self._runner.run(job)
        except GatewayError as error:
            self._conclude(job, error.code or error.type)
            job.events.end(error)
        else:
            self._forecast.warn_if_slow(self.engine.status.published_tokens_per_s)
            finished = Finished(usage=usage, timings=job.timings())
            self._conclude(job, "ok")
            job.events.end(finished)

    def _ended(self, job: Job, task: asyncio.Task[None]) -> None:
        self._conclude(job, "cancelled")
        self.uses.end()
        if task.cancelled() or task.exception():  # the reader still waits for an end
            job.events.end(ModelNotReady(f"{self.name} was shut down before it finished its answer."))

    def _conclude(self, job: Job, outcome: str) -> None:
        if not job.concluded:
            job.concluded = True
            job.permit.settle("released")
            job.ticket.leave(job.service_s)
            self._metrics.request_ended(self.name, outcome, job.meter, job.timings())

    def log_refusal(self, reason: str, fallback: str) -> None:
        """Say why the fallback answers a request, once a minute for each reason."""
        if (suffix := self._refusals.suffix(reason)) is not None:
            _log.warning("%s: %s; %s answers%s", self.name, reason, fallback, suffix)

    def _guests(self) -> int:
        return self.config.max_sequences if self.engine.takes_turns else 0

    def _gauges(self) -> LaneGauges:
        status = self._loader.status
        return LaneGauges(
            ready=(status.state == "ready" and not status.is_down) or self._loader.loads_on_demand,
            breaker=self.breaker.state,
            running=self.queue.running,
            waiting=self.queue.waiting,
            restarts=status.restarts,
            has_prefix_cache=getattr(self.config, "prefix_cache", False),
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
