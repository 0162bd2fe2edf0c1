"""One model's worker: loads it, watches it, and ends it when it has died, hung, or fails every call.

A device call cannot be interrupted from inside its process, so the watchdog kills the process. A device that fails
every call gets a new process too: many drivers work again only after a new process has opened the device. The running
requests end at once, with DeviceFailed if the worker was lost in a device call, else with EngineFailed, which does not
blame the device. The lane's loader then calls `start` again: it has the only retry loop.

The watchdog sees in shared memory what the worker does. A worker that waits is never ended. One that works outside a
device call for `_WORK_LIMITS` times the limit of a call has a bug; it is ended too, so that its clients do not wait for
ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from gateway.activity import NO_MEMORY, ActivityMonitor
from gateway.engines.base import State
from gateway.engines.local.process import WorkerProcess
from gateway.engines.local.sick_start import SickStart
from gateway.errors import DeviceFailed, EngineFailed, GatewayError, error_class
from gateway.worker.frames import Embed, Ended, Failed, Loading, Message, Ready, Submit, ToWorker

_log = logging.getLogger(__name__)
_SHUTDOWN_S = 3.0  # the time that a worker has to end by itself
_MAX_FAILURES = 3  # failed requests in a row, with no answer between them, after which a new process opens the device
_WORK_LIMITS = 5  # limit of work outside a device call, in limits of a device call
_LOOKS = 8  # looks at the worker within the limit of a call
_SICK_STARTS = 2  # replaced workers whose NPU is sick; the next one serves
_EMULATED_WARM_UPS = 10  # limit of a call on an emulated NPU, in warm-up times: there, one step takes a whole window

_RUN_DOCTOR = "`npu-gateway doctor` looks for the reason"
_HUNG = "if that repeats, update the NPU's driver, or raise watchdog_s for a model whose calls take longer"
_STILL_SICK = "restart the machine, and update the NPU's driver if that repeats"
_STUCK = "this is a bug of npu-gateway; please report it with the requests of that time"
_SAVE_MEMORY = "a smaller context_length or max_sequences needs less"
_KILLED = f"something outside killed it, as systems do when memory is short; {_SAVE_MEMORY}"


class _Fault(NamedTuple):
    """Why a worker must be replaced, and what a person can do. `advice` "": the exit of the process decides it."""

    reason: str
    advice: str = ""
    is_device: bool = False  # the device is the cause


class Supervisor:
    """Args:
    name: of the model, for the log.
    spawn: makes a worker process (not started) that passes its frames to the given function.
    load_timeout_s: limit of one load, in seconds.
    watchdog_s: limit of one device call, in seconds.
    on_frame: gets every message about requests.
    is_busy: True if the worker has a request.
    on_lost: ends the running requests with the given error when their worker is gone; returns their number.
    sick_start: judges the passes of each worker; None: no worker is judged.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[Callable[[Message], None]], WorkerProcess],
        *,
        load_timeout_s: float,
        watchdog_s: float,
        on_frame: Callable[[Message], None],
        on_lost: Callable[[GatewayError], int],
        is_busy: Callable[[], bool] = lambda: False,
        sick_start: SickStart | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._spawn = name, spawn
        self._load_timeout_s, self._watchdog_s = load_timeout_s, watchdog_s
        self._on_frame, self._on_lost, self._is_busy = on_frame, on_lost, is_busy
        self._sick_start, self._clock = sick_start, clock
        self._process: WorkerProcess | None = None
        self._loaded: asyncio.Future[Ready] | None = None
        self._guard: asyncio.Task[str] | None = None
        self._monitor: ActivityMonitor | None = None
        self._stirred = asyncio.Event()  # a frame went or came since the last look of the watchdog
        self._fault: _Fault | None = None  # the reason that the worker gave for its end, or why it was killed
        self._failures = 0  # requests in a row that a device call failed
        self._newest = self._newest_at_failure = 0  # ids: the last request now, and when a failure was counted
        self.state: State = "loading"
        self.detail = ""
        self.restarts = 0
        self.ready: Ready | None = None

    @property
    def pid(self) -> int | None:
        """Of the worker; None before the first start."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Load a worker and watch it from then on. Raises a GatewayError on failure; may be called again then."""
        if self.ready is None:
            self.state, self.detail = "loading", "starting its worker"
        else:
            self.restarts += 1
        try:
            process = await self._load_healthy()
        except GatewayError as error:
            self.state = "failed" if self.ready is None else "restarting"
            self.detail = error.message
            raise
        self.state = "ready"
        self._guard = asyncio.create_task(self._watch_until_lost(process))

    async def lost(self) -> str:
        """Wait for the loss of the worker that the last `start` loaded. Returns the reason and an advice."""
        assert self._guard is not None
        return await asyncio.shield(self._guard)

    def send(self, frame: ToWorker) -> None:
        """Send to the worker. Raises what the encoder raises."""
        if isinstance(frame, Submit | Embed):
            self._newest = frame.id
        if self._process is not None:
            self._stirred.set()
            self._process.send(frame)

    def call_s(self) -> float:
        """Seconds of the device call that runs now; 0 if none is running."""
        return self._monitor.call_s if self._monitor is not None else 0.0

    def discard(self, reason: str) -> None:
        """Kill a worker that must not go on, for a reason outside the worker. `lost` returns the reason."""
        if self._process is not None:
            self._fault = _Fault(reason)
            self._process.kill()

    async def unload(self, reason: str) -> None:
        """Stop the worker, because the model cannot be used. The next `start` is a first one again."""
        await self._stop()
        self.ready = None
        self.state, self.detail = "failed", reason

    async def aclose(self) -> None:
        """Stop the worker. No process and no task is left when this returns."""
        self.state, self.detail = "closed", ""
        await self._stop()

    async def _stop(self) -> None:
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.gather(self._guard, return_exceptions=True)
        if self._process is not None:
            await self._process.stop(_SHUTDOWN_S)

    async def _load_healthy(self) -> WorkerProcess:
        """A worker whose passes are as fast as they should be. After `_SICK_STARTS` sick ones: any, with a warning.

        Sets `ready` and `detail`.
        """
        for start in range(1, _SICK_STARTS + 2):
            process, ready = await self._load()
            sign = await asyncio.to_thread(self._sick_start.judge, ready) if self._sick_start else ""
            if not sign or start > _SICK_STARTS:
                break
            self.detail = f"the NPU started sick, so its worker is replaced ({start} of {_SICK_STARTS}): {sign}"
            _log.warning("%s: %s", self._name, self.detail)
            await process.stop(_SHUTDOWN_S)
        self.ready = ready
        self.detail = f"the NPU is slow: {sign}; {_STILL_SICK}" if sign else ""
        if sign and self._sick_start:
            count = f"{_SICK_STARTS} new workers did not help"
            _log.warning("%s: %s, so it is served as it is: %s", self._name, count, self.detail)
            await asyncio.to_thread(self._sick_start.accept, ready)
        return process

    async def _load(self) -> tuple[WorkerProcess, Ready]:
        """A worker and its Ready frame. Raises the GatewayError that it sent instead, or EngineFailed."""
        process = self._process = self._spawn(self._receive)
        loaded = self._loaded = asyncio.get_running_loop().create_future()
        self._monitor = ActivityMonitor(process.activity, self._clock)
        self._fault, self._failures = None, 0
        try:
            await process.start()
            async with asyncio.timeout(self._load_timeout_s):
                await _either(process.gone, loaded)
                return process, loaded.result()
        except BaseException as error:
            await process.stop(0)
            raise self._load_error(error, process) from None

    def _load_error(self, error: BaseException, process: WorkerProcess) -> BaseException:
        match error:
            case TimeoutError():
                return EngineFailed(f"The model '{self._name}' did not load in {self._load_timeout_s:g} s.")
            case asyncio.InvalidStateError():  # the process is gone and has sent no reason
                return EngineFailed(f"The worker of '{self._name}' died while it loaded ({process.exit}).")
            case OSError() | RuntimeError() | MemoryError():  # the system gives no process, thread or memory
                reason = getattr(error, "strerror", None) or str(error) or "no memory left"
                return EngineFailed(f"No worker process could be started for '{self._name}': {reason}.")
        return error

    def _receive(self, frame: Message) -> None:
        self._stirred.set()
        if self._monitor is not None:
            self._monitor.look()  # the worker probably makes its next call now
        match frame:
            case Loading():
                self.detail = frame.stage
            case Ready():
                self._settle(lambda loaded: loaded.set_result(frame))
            case Failed(id=None):
                error = error_class(frame.kind)(frame.message)
                self._fault = _Fault(frame.message, is_device=isinstance(error, DeviceFailed))
                self._settle(lambda loaded: loaded.set_exception(error))
            case Failed(kind=DeviceFailed.__name__):
                self._on_frame(frame)
                self._count_failure(frame)
            case Ended():
                self._failures = 0
                self._on_frame(frame)
            case _:
                self._on_frame(frame)

    def _count_failure(self, frame: Failed) -> None:
        """Requests that ran together may have failed in the same device call, so they count as one failure."""
        if frame.id is None or frame.id <= self._newest_at_failure:
            return
        self._failures, self._newest_at_failure = self._failures + 1, self._newest
        limit = 1 if frame.message == NO_MEMORY else _MAX_FAILURES  # a second failed allocation crashes ONNX Runtime
        if self._failures == limit and self._process is not None:
            count = "a request" if limit == 1 else f"{limit} requests in a row"
            self._fault = _Fault(f"the device failed {count}: {frame.message.rstrip('.')}", is_device=True)
            self._process.kill()

    def _settle(self, set: Callable[[asyncio.Future[Ready]], None]) -> None:
        if self._loaded is not None and not self._loaded.done():
            set(self._loaded)

    async def _watch_until_lost(self, process: WorkerProcess) -> str:
        fault = await self._watch(process)
        self.state, self.detail = "restarting", fault.reason
        kind = DeviceFailed if fault.is_device else EngineFailed
        error = kind(f"The model '{self._name}' failed: {fault.reason}. Try again.", retry_after_s=1)
        ended = self._on_lost(error)
        await process.stop(0)
        advice = fault.advice or _advice(fault.reason, process.exit)
        requests = "1 request" if ended == 1 else f"{ended} requests"
        return f"{fault.reason} ({process.exit}); {requests} in progress ended with an error; {advice}"

    @property
    def _call_limit_s(self) -> float:
        """Limit of a device call. An emulated NPU is slow; its warm-up shows how slow on this machine."""
        if self.ready is None or self.ready.device != "emulated":
            return self._watchdog_s
        return max(self._watchdog_s, round(_EMULATED_WARM_UPS * self.ready.warm_up_s))

    async def _watch(self, process: WorkerProcess) -> _Fault:
        """Wait until the worker is gone, hangs in a device call, or is stuck. Returns which of them."""
        assert self._monitor is not None
        while True:
            state, seconds = self._monitor.look()
            limit_s = self._call_limit_s
            if state == "in_call" and seconds >= limit_s:
                silence = f"a device call did not come back within {limit_s:g} s"
                return _Fault(f"{silence}, so its worker was killed", _HUNG, is_device=True)
            if state == "working" and seconds >= _WORK_LIMITS * limit_s:
                silence = f"its worker did nothing for {_WORK_LIMITS * limit_s:g} s outside a device call"
                return _Fault(f"{silence}, so it was killed", _STUCK)
            left_s = limit_s - seconds if state == "in_call" else limit_s
            is_idle = state == "waiting" and not self._stirred.is_set() and not self._is_busy()
            self._stirred.clear()
            if is_idle:  # no look at fixed times: the next frame ends this
                await _either(process.gone, self._stirred)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, limit_s / _LOOKS)):
                        await process.gone.wait()
            if not process.gone.is_set():
                continue
            died_in_call = process.activity.state == "in_call"
            return self._fault or _Fault("its worker died", is_device=died_in_call)


def _advice(fault: str, exit: str) -> str:
    if "memory" in fault:
        return _SAVE_MEMORY
    return _KILLED if exit == "signal SIGKILL" and fault == "its worker died" else _RUN_DOCTOR


async def _either(gone: asyncio.Event, other: asyncio.Future[Ready] | asyncio.Event) -> None:
    """Wait for one of them."""
    waiting = [asyncio.ensure_future(event.wait()) for event in (gone, other) if isinstance(event, asyncio.Event)]
    futures: list[asyncio.Future[Any]] = [*waiting, *([other] if isinstance(other, asyncio.Future) else [])]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
