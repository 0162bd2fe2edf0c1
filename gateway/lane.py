"""One model's lane: its queue, its breaker and its engine. The only place that admits, cancels and times a request.

1. A request runs in a task of its own that fills a bounded queue, and its reader empties that: a reader that stalls
   holds no place on the device, and the deadline passes whether or not somebody reads. Closing the reader's generator
   cancels the task, and the device stops at its next step.
2. The permit and the place are given back before the last event is handed out, so that whoever has seen the end of an
   answer may rely on it; and by the task's callback, for a task that was cancelled, even before its first step.
3. When the breaker opens, those who wait are refused at once: their fallback answers sooner than this device would.
4. A request joins the line before its prompt is prepared, so that a long one loses no stand to a short one that came
   later. Its first token is predicted right after, and one that would come too late is refused then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.breaker import Breaker, Outcome, Permit, Watch
from gateway.breaker import State as BreakerState
from gateway.config import BreakerConfig, ModelConfig
from gateway.engines.base import Engine, EngineStatus, State
from gateway.errors import (
    BreakerOpen,
    DeadlineExceeded,
    EngineFailed,
    FirstTokenTooLate,
    GatewayError,
    ModelNotReady,
    QueueFull,
)
from gateway.forecast import Forecast, Plan
from gateway.generation import Event, Finished, Generation, Meter, Started, Timings
from gateway.metrics import LaneGauges, Metrics
from gateway.prober import Prober
from gateway.slots import Slots, Turn

_BUFFERED_EVENTS = 4096  # per request, between the device and its reader: about 1 MB at worst
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LOADING_RETRY_S = 2.0
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


class _Request:
    """An accepted request on its way."""

    __slots__ = (
        "accepted_at",
        "concluded",
        "events",
        "first_at",
        "generation",
        "meter",
        "others",
        "permit",
        "plan",
        "turn",
    )

    turn: Turn  # it is in the line from the moment it exists

    def __init__(self, generation: Generation, meter: Meter, permit: Permit, now: float) -> None:
        self.generation = generation
        self.meter = meter
        self.permit = permit
        self.plan: Plan | None = None  # not known yet, or not to be known
        self.others = 0  # in progress when it began
        self.events: asyncio.Queue[Event | GatewayError] = asyncio.Queue(_BUFFERED_EVENTS)
        self.accepted_at = now
        self.first_at: float | None = None
        self.concluded = False


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
        self._forecast = Forecast(clock)
        self._timeout_s = timeout_s
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing: asyncio.Task[None] | None = None
        self._load_fault = ""  # why the last attempt to load failed
        self._load_again_at = 0.0
        self._tried = asyncio.Event()
        self._closed = False

    # --- life

    def start(self) -> None:
        """Begin to load in the background, and try again with growing pauses while that fails."""
        self._spawn(self._load())

    async def tried(self) -> None:
        """Wait for the first attempt to load, whether or not it succeeded."""
        await self._tried.wait()

    async def aclose(self) -> None:
        """End every request with an error and close the engine."""
        self._closed = True
        self._tried.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.aclose()

    # --- looking

    @property
    def engine_status(self) -> EngineStatus:
        status = self.engine.status
        return replace(status, state="failed", detail=self._load_fault) if self._load_fault else status

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
            engine=self.engine_status,
            breaker=breaker,
            running=self.slots.running,
            waiting=self.slots.waiting,
            expected_wait_s=self.slots.expected_wait_s(),
        )

    # --- requests

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event, None]:
        """The request's events; they end with Finished, or with a GatewayError raised from here.

        The first step raises the refusals: ModelNotReady, BreakerOpen, QueueFull, each with the seconds to wait.
        Later: DeadlineExceeded and whatever the engine raises. Closing the generator cancels the request.
        """
        request = self._accept(generation, meter)
        task = self._spawn(self._serve(request))
        task.add_done_callback(partial(self._ended, request))
        try:
            while True:
                event = await request.events.get()
                if isinstance(event, GatewayError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _accept(self, generation: Generation, meter: Meter) -> _Request:
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
        request = _Request(generation, meter, permit, self._clock())
        request.turn = self.slots.join(generation.background, partial(self._remaining_s, request))
        return request

    def _check_ready(self) -> None:
        status = self.engine_status
        state = "closed" if self._closed else status.state
        if state != "ready":
            detail = f": {status.detail}" if status.detail else "."
            raise ModelNotReady(f"{self.name} {_NOT_READY[state]}{detail}", retry_after_s=self._ready_again_s)

    @property
    def _ready_again_s(self) -> float:
        return max(_LOADING_RETRY_S, self._load_again_at - self._clock()) if self._load_fault else _LOADING_RETRY_S

    def _check_wait(self, generation: Generation) -> None:
        if self.slots.is_full(generation.background):
            line = f"{self.slots.running} requests in progress and {self.slots.waiting} waiting"
            wait_s = self.slots.expected_wait_s(generation.background)
            raise QueueFull(f"{self.name} has {line}; there is no room for more.", retry_after_s=wait_s)

    async def _serve(self, request: _Request) -> None:
        """Run the request and hand its end to the reader."""
        try:
            finished = await self._run(request)
        except GatewayError as error:
            self._conclude(request, error.code or error.type)
            await request.events.put(error)
        else:
            self._conclude(request, "ok")
            await request.events.put(finished)

    def _ended(self, request: _Request, task: asyncio.Task[None]) -> None:
        self._conclude(request, "cancelled")
        if task.cancelled() or task.exception():  # a reader that is still there waits for an end
            while request.events.full():
                request.events.get_nowait()
            request.events.put_nowait(ModelNotReady(f"{self.name} was shut down before it finished its answer."))

    async def _run(self, request: _Request) -> Finished:
        """Wait for a place, then answer, all within the deadline."""
        try:
            async with asyncio.timeout(self._first_deadline_s(request)) as limit:
                with self._blamed(request):
                    request.plan = await self.engine.prepare(request.generation, request.meter)
                self._check_first_token(request)
                if not await request.turn.wait():
                    raise self.breaker.refusal()
                return await self._answer(request, limit)
        except TimeoutError:
            if request.first_at is None and request.plan is not None and request.turn.entered_at is not None:
                held_s = self._clock() - request.turn.entered_at
                self._forecast.gave_up(request.plan, held_s, request.others)
            raise self._too_late(request) from None

    async def _answer(self, request: _Request, limit: asyncio.Timeout) -> Finished:
        """Have the engine answer, and settle the permit by how that goes."""
        request.others = self._others(request)
        watch = Watch(self.breaker, request.meter, request.permit, asyncio.get_running_loop().call_later)
        try:
            with self._blamed(request):
                finished = await self._pump(request, limit)
        finally:
            watch.stop()
        request.permit.settle("slow" if self.breaker.is_slow(request.meter) else "ok")
        self._forecast.finished(request.meter, self._most_tokens(request))
        return replace(finished, timings=self._timings(request, finished.timings.queue_s))

    @contextmanager
    def _blamed(self, request: _Request) -> Iterator[None]:
        """Settle the permit by what the engine raises, and say it in our words."""
        try:
            yield
        except GatewayError as error:
            request.permit.settle(_blame(error))
            raise
        except Exception as error:
            request.permit.settle("failed")
            _log.error("%s: the engine raised %s", self.name, type(error).__name__, exc_info=error)
            raise EngineFailed(f"{self.name} failed while it answered; the gateway's log says why.") from error

    def _first_deadline_s(self, request: _Request) -> float:
        """Seconds to the first deadline: that of the first token where there is one."""
        first_s, whole_s = request.generation.ttft_timeout_s, self._whole_s(request)
        return whole_s if first_s is None else min(first_s, whole_s)

    def _whole_s(self, request: _Request) -> float:
        return self._timeout_s if request.generation.timeout_s is None else request.generation.timeout_s

    async def _pump(self, request: _Request, limit: asyncio.Timeout) -> Finished:
        async with aclosing(self.engine.stream(request.generation, request.meter)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event
                if request.first_at is None and not isinstance(event, Started):
                    self._first_token(request, limit)
                await request.events.put(event)
        raise EngineFailed(f"{self.name} stopped before it finished its answer.")

    def _first_token(self, request: _Request, limit: asyncio.Timeout) -> None:
        request.first_at = self._clock()
        if request.plan is not None and request.turn.entered_at is not None:
            self._forecast.first_token(request.plan, request.meter, request.turn.entered_at, request.others)
        if request.generation.ttft_timeout_s is not None:
            left_s = self._whole_s(request) - (request.first_at - request.accepted_at)
            limit.reschedule(asyncio.get_running_loop().time() + left_s)

    def _too_late(self, request: _Request) -> DeadlineExceeded:
        what = "finish its answer" if request.first_at is not None else "give a first token"
        waited_s = self._clock() - request.accepted_at
        return DeadlineExceeded(f"{self.name} did not {what} within {waited_s:.1f} s.")

    def _conclude(self, request: _Request, outcome: str) -> None:
        if not request.concluded:
            request.concluded = True
            request.permit.settle("released")
            request.turn.leave()
            self._metrics.request_ended(self.name, outcome, request.meter, self._timings(request))

    # --- forecasts

    def _check_first_token(self, request: _Request) -> None:
        """Predict the first token, and refuse the request when it would come too late."""
        plan, limit_s = request.plan, request.generation.ttft_timeout_s
        ready_s = self._clock() - request.accepted_at + self.slots.wait_s(request.turn)
        own_s = None if plan is None else self._forecast.first_token_s(plan, self._others(request))
        if own_s is not None:
            request.meter.predicted_ttft_s = ready_s + own_s
        expected_s = ready_s + (own_s or 0.0)
        if limit_s is not None and expected_s > limit_s and self._forecast.refuses():
            raise self._too_late_already(plan, expected_s, limit_s)

    def _too_late_already(self, plan: Plan | None, expected_s: float, limit_s: float) -> GatewayError:
        wanted = f"the first token was wanted within {limit_s:g} s"
        alone_s = None if plan is None else self._forecast.first_token_s(plan, others=0)
        if plan is not None and alone_s is not None and alone_s > limit_s:
            tokens = f"the {plan.computed_tokens} new tokens of this prompt"
            return FirstTokenTooLate(f"{self.name} needs about {alone_s:.1f} s for {tokens}; {wanted}.")
        busy = f"{self.name} is busy and would begin its answer in about {expected_s:.1f} s"
        return QueueFull(f"{busy}; {wanted}.", retry_after_s=expected_s - limit_s)

    def _remaining_s(self, request: _Request) -> float | None:
        """Seconds until the request will have given up its place, from when it gets it or from now."""
        if request.plan is None:
            return None
        return self._forecast.remaining_s(
            request.plan, request.meter, self._most_tokens(request), self._others(request)
        )

    def _most_tokens(self, request: _Request) -> int:
        plan, generation = request.plan, request.generation
        room = self.engine.status.context_length - (plan.prompt_tokens if plan else 0)
        return generation.n * max(1, min(generation.max_tokens, room))

    def _others(self, request: _Request) -> int:
        """How many the request has beside it on the device, or will have; those in the background make way."""
        if request.turn.entered_at is None:
            return self.slots.places - 1
        is_other = (
            turn is not request.turn and turn.background <= request.turn.background for turn in self.slots.inside
        )
        return sum(is_other)

    def _timings(self, request: _Request, engine_queue_s: float = 0.0) -> Timings:
        now = self._clock()
        entered_at = now if request.turn.entered_at is None else request.turn.entered_at
        return Timings(
            queue_s=entered_at - request.accepted_at + engine_queue_s,
            ttft_s=0.0 if request.first_at is None else request.first_at - request.accepted_at,
            device_s=request.meter.device_s,
            total_s=now - request.accepted_at,
        )

    # --- loading

    async def _load(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while fault := await self._load_once():
            if fault != self._load_fault:
                said = fault.rstrip(".")
                _log.error(
                    "%s cannot be loaded: %s; it is tried again; `npu-gateway doctor` says more", self.name, said
                )
            self._load_fault = fault
            self._load_again_at = self._clock() + pause_s
            self._tried.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._load_fault = ""
        self._tried.set()
        status = self.engine.status
        _log.info("%s is ready (%s, loaded in %.1f s)", self.name, status.device, status.load_s)

    async def _load_once(self) -> str:
        """Start the engine; the fault in words, empty when there was none."""
        try:
            await self.engine.start()
        except GatewayError as error:
            return error.message
        except Exception as error:
            _log.error("%s: the engine raised while it loaded", self.name, exc_info=error)
            return f"{type(error).__name__} while loading"
        return ""

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
        status = self.engine_status
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


def _blame(error: GatewayError) -> Outcome:
    """Whether the device is at fault; refusals, deadlines and requests that are wrong in themselves are neutral."""
    neutral = error.status < 500 or isinstance(error, ModelNotReady | BreakerOpen | DeadlineExceeded)
    return "released" if neutral else "failed"
