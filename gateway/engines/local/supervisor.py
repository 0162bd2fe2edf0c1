"""Keeps a model's worker alive: loads it, watches it, and starts it again when it has died or hung.

A device call cannot be interrupted from inside, so the watchdog's only means is the end of the process. A device that
refuses every call is left in the same way: many a driver works again only for a process that opens it anew. What was
in progress ends with EngineFailed at once; the next process is tried after a pause that doubles, up to half a minute,
for as long as the gateway runs: a driver that is being updated, or memory that somebody else has taken, comes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from gateway.engines.base import State
from gateway.engines.local.process import WorkerProcess
from gateway.errors import EngineFailed, GatewayError, error_class
from gateway.worker.frames import NO_MEMORY, Cancel, Ended, Failed, FromWorker, Loading, Ready, Submit, ToWorker

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_STABLE_S = 60.0  # a worker that was ready for so long has earned a short pause
_SHUTDOWN_S = 3.0  # what a worker gets to end by itself
_MOST_FAILURES = 3  # so many requests one after another failed and none answered: the device is opened anew


class _Fault(NamedTuple):
    """Why a worker has to be replaced, and what a person can do about it; "" where its exit tells that."""

    what: str
    advice: str = ""


_ASK_DOCTOR = "`npu-gateway doctor` looks for the reason"
_EMULATED_WARM_UPS = 10  # what a call may take on an emulated NPU: a window and a step are one
_HUNG = "if that repeats, update the NPU's driver, or raise watchdog_s for a model whose calls take longer"
_SAVE_MEMORY = "a smaller context_length or max_sequences needs less"
_KILLED = f"something outside killed it, as systems do when memory is short; {_SAVE_MEMORY}"


class Supervisor:
    """Args:
    name: of the model, for the log.
    spawn: makes a worker process (not started) that gives its frames to the function it is handed.
    on_frame: gets every frame that belongs to a request.
    on_lost: called with what to tell the requests in progress when their worker is gone; says how many there were.
    is_busy: whether any request is in progress.
    clock: seconds, monotonic.
    sleep: waits between attempts.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[Callable[[FromWorker], None]], WorkerProcess],
        *,
        load_timeout_s: float,
        watchdog_s: float,
        on_frame: Callable[[FromWorker], None],
        on_lost: Callable[[GatewayError], int],
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._name, self._spawn = name, spawn
        self._load_timeout_s, self._watchdog_s = load_timeout_s, watchdog_s
        self._on_frame, self._on_lost, self._is_busy = on_frame, on_lost, is_busy
        self._clock, self._sleep = clock, sleep
        self._process: WorkerProcess | None = None
        self._loaded: asyncio.Future[Ready] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._last_sign = 0.0  # when the worker last showed that it lives
        self._unanswered_s = 0.0  # silence that the last request was cancelled in
        self._last_words = ""  # why it said that it ends, or why it had to
        self._failures = 0  # requests, one after another, that the device failed since it last answered one
        self._newest = self._newest_at_failure = 0  # ids of requests: the last one now, and when a failure was counted
        self.state: State = "loading"
        self.detail = ""
        self.restarts = 0
        self.ready: Ready | None = None

    async def start(self) -> None:
        """Load once and keep it alive from then on. Raises a GatewayError when it fails; may be called again then."""
        self.state, self.detail = "loading", "starting its worker"
        try:
            process = await self._load()
        except GatewayError as error:
            self.state, self.detail = "failed", error.message
            raise
        self._keeper = asyncio.create_task(self._keep(process))

    def send(self, frame: ToWorker) -> None:
        """To the worker; a request counts for `is_busy` from after its Submit to before its Cancel.

        Silence counts from the Submit that ends an idle time. A client that gives up on a hung call and asks again
        does not start it anew: what it had waited is added.
        """
        if isinstance(frame, Submit):
            self._newest = frame.id
        match frame:
            case Submit() if not self._is_busy():
                self._last_sign = self._clock() - self._unanswered_s
            case Cancel() if not self._is_busy():
                self._unanswered_s = self._clock() - self._last_sign
        if self._process is not None:
            self._process.send(frame)

    async def aclose(self) -> None:
        """No worker and no task is left when this returns."""
        self.state, self.detail = "closed", ""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None:
            await self._process.stop(_SHUTDOWN_S)

    async def _load(self) -> WorkerProcess:
        """A worker that said Ready. Raises the GatewayError that it said instead, or EngineFailed."""
        process = self._process = self._spawn(self._receive)
        loaded = self._loaded = asyncio.get_running_loop().create_future()
        self._last_words, self._failures = "", 0
        try:
            await process.start()
            async with asyncio.timeout(self._load_timeout_s):
                await _either(loaded, process.gone)
                self.ready = loaded.result()
        except BaseException as error:
            await process.stop(0)
            raise self._load_error(error, process) from None
        self.state, self.detail = "ready", ""
        return process

    def _load_error(self, error: BaseException, process: WorkerProcess) -> BaseException:
        match error:
            case TimeoutError():
                return EngineFailed(f"The model '{self._name}' did not load in {self._load_timeout_s:g} s.")
            case asyncio.InvalidStateError():  # gone, and nothing said
                return EngineFailed(f"The worker of '{self._name}' died while it loaded ({process.exit}).")
            case OSError() | RuntimeError() | MemoryError():  # no process, no thread, no memory to be had
                reason = getattr(error, "strerror", None) or str(error) or "no memory left"
                return EngineFailed(f"No worker process could be started for '{self._name}': {reason}.")
        return error

    def _receive(self, frame: FromWorker) -> None:
        self._last_sign, self._unanswered_s = self._clock(), 0.0
        match frame:
            case Loading():
                self.detail = frame.stage
            case Ready():
                self._settle(lambda loaded: loaded.set_result(frame))
            case Failed(id=None):
                self._last_words = frame.message
                error = error_class(frame.kind)(frame.message)
                self._settle(lambda loaded: loaded.set_exception(error))
            case Failed(kind="EngineFailed"):
                self._on_frame(frame)
                self._count_failure(frame)
            case Ended():
                self._failures = 0
                self._on_frame(frame)
            case _:
                self._on_frame(frame)

    def _count_failure(self, frame: Failed) -> None:
        """Requests that were under way together may have failed by one and the same call: they count as one."""
        if frame.id is None or frame.id <= self._newest_at_failure:
            return
        self._failures, self._newest_at_failure = self._failures + 1, self._newest
        most = 1 if frame.message == NO_MEMORY else _MOST_FAILURES  # ONNX Runtime crashes when it lacks memory twice
        if self._failures == most and self._process is not None:
            often = "a request" if most == 1 else f"{most} requests in a row"
            self._last_words = f"the device failed {often}: {frame.message.rstrip('.')}"
            self._process.kill()

    def _settle(self, set: Callable[[asyncio.Future[Ready]], None]) -> None:
        if self._loaded is not None and not self._loaded.done():
            set(self._loaded)

    async def _keep(self, process: WorkerProcess) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            ready_at = self._clock()
            fault = await self._watch(process)
            self.state, self.detail = "restarting", fault.what
            ended = self._on_lost(
                EngineFailed(f"The model '{self._name}' failed: {fault.what}. Try again.", retry_after_s=1)
            )
            await process.stop(0)
            if self._clock() - ready_at > _STABLE_S:
                pause_s = _FIRST_PAUSE_S
            _log.error(
                "%s: %s (%s); %d requests in progress ended with an error; a new worker starts in %.1f s; %s",
                *(self._name, fault.what, process.exit, ended, pause_s),
                fault.advice or _advice(fault.what, process.exit),
            )
            process, pause_s = await self._revive(pause_s)

    @property
    def _deadline_s(self) -> float:
        """What a device call may take. An emulated NPU is slow; how slow on this machine, its warm-up says."""
        if self.ready is None or self.ready.device != "emulated":
            return self._watchdog_s
        return max(self._watchdog_s, round(_EMULATED_WARM_UPS * self.ready.warm_up_s))

    async def _watch(self, process: WorkerProcess) -> _Fault:
        """Wait until the worker is gone or has been silent for too long with work to do; which of them."""
        while True:
            patience_s = self._deadline_s / 4  # how soon a request that comes meanwhile is noticed
            if self._is_busy():
                patience_s = self._last_sign + self._deadline_s - self._clock()
            if patience_s <= 0:
                silence = f"a device call did not come back within {self._deadline_s:g} s"
                return _Fault(f"{silence}, so its worker was killed", _HUNG)
            try:
                async with asyncio.timeout(patience_s):
                    await process.gone.wait()
            except TimeoutError:
                continue
            return _Fault(self._last_words or "its worker died")

    async def _revive(self, pause_s: float) -> tuple[WorkerProcess, float]:
        """A new worker, however many attempts it takes, and the pause before the next one."""
        said = ""
        while True:
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self.restarts += 1
            try:
                process = await self._load()
            except GatewayError as error:
                if error.message != said:  # once, however often it is tried
                    _log.error("%s: could not be started again: %s It is tried on; %s", self._name, error, _ASK_DOCTOR)
                self.detail = said = error.message
            else:
                _log.info("%s: answers again", self._name)
                return process, pause_s


def _advice(fault: str, exit: str) -> str:
    if "memory" in fault:
        return _SAVE_MEMORY
    return _KILLED if exit == "signal SIGKILL" and fault == "its worker died" else _ASK_DOCTOR


async def _either(loaded: asyncio.Future[Ready], gone: asyncio.Event) -> None:
    """Wait for one of them."""
    waiting = asyncio.ensure_future(gone.wait())
    futures: list[asyncio.Future[Any]] = [loaded, waiting]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
