"""Loads an engine, and again if its worker dies, with exponential backoff. No other module retries.

The manager grants the memory of each load. A model that is loaded on demand waits for its first request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msgspec import Struct
from msgspec.structs import replace

from gateway.engines.base import Engine, EngineStatus, State
from gateway.errors import GatewayError, ModelNotReady, ModelTooLarge
from gateway.lanes.memory.claim import Claim
from gateway.lanes.memory.manager import MemoryManager
from gateway.lanes.memory.needs import PROMPT_PROCESS, Need
from gateway.lanes.memory.uses import Uses

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 30.0
_STABLE_S = 60.0  # if an engine was ready for longer, the next pause is the first one
_MIN_RETRY_AFTER_S = 2.0

_NOT_READY: dict[State, str] = {
    "loading": "is loading",
    "restarting": "is being restarted",
    "failed": "could not be loaded",
    "closed": "is shut down",
    "unloaded": "is not loaded",
}

_log = logging.getLogger(__name__)


class Previous(Struct, frozen=True, kw_only=True):
    """What the loader of an unloaded model knows: of the engine that was unloaded, or of the bundle."""

    status: EngineStatus
    load_s: float | None  # what its load took; None: it was not loaded
    gone: asyncio.Event  # set when its memory is free
    left_s: Callable[[], float]  # expected seconds until then


class Loader:
    """Keeps one engine loaded.

    Args:
        name: of the model, for the log.
        engine: `run` starts it.
        clock: seconds, monotonic.
        sleep: waits for the given number of seconds, measured by `clock`.
        memory: grants the memory of each load; None: there is no budget.
        claim: the engine's part of it; None: it needs none.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        memory: MemoryManager | None = None,
        claim: Claim | None = None,
    ) -> None:
        self.tried = asyncio.Event()  # set when the first attempt has ended, with or without success
        self.settled = asyncio.Event()  # set when it has, or when the engine is to be loaded on demand
        self._memory = memory or MemoryManager()
        self._claim = claim or Claim(name, Need(), Uses(clock))
        self._name = name
        self._engine = engine
        self._clock, self._sleep = clock, sleep
        self._fault = ""  # why the last attempt failed
        self._was_ready = False
        self._is_loaded = False  # by `load`, before `run`
        self._retry_at = 0.0
        self._previous: Previous | None = None  # set until the engine of an unloaded model was loaded once
        self._demanded_at: float | None = None  # when a request wanted this engine
        self._demand = asyncio.Event()
        self._pausing: asyncio.Future[None] | None = None  # the pause before another attempt
        self._began_at: float | None = None  # when the last load began
        self._load_s: float | None = None  # what the last load took

    def follow(self, previous: Previous) -> None:
        """Before `run`: do not load before `demand`, and not before the memory of `previous` is free."""
        self._previous, self._load_s = previous, previous.load_s or self._load_s or self._claim.need.load_s
        self._began_at = None
        self.settled.set()

    def wait_for_demand(self) -> None:
        """Before `run`: do not load before `demand`."""
        need = self._claim.need
        note = need.window.note if need.window else ""
        status = replace(self._engine.status, state="unloaded", context_length=need.context_length, context_note=note)
        gone = asyncio.Event()
        gone.set()
        self.follow(Previous(status=status, load_s=None, gone=gone, left_s=lambda: 0.0))

    def demand(self) -> None:
        """A request needs the engine."""
        if self._demanded_at is None:
            self._demanded_at = self._clock()
            self._demand.set()

    def demand_now(self) -> None:
        """A client wants the load itself: do not wait for the end of a pause. `tried` is that of the next attempt."""
        if self._fault or self._pausing is not None:  # then an attempt runs or follows
            self.tried.clear()
        if self._pausing is not None:
            self._pausing.cancel()
        self.demand()

    @property
    def loads_on_demand(self) -> bool:
        """True if a request waits for the load: the model was unloaded, and is not loaded yet."""
        return self._previous is not None

    @property
    def is_unloaded(self) -> bool:
        """True if no request has wanted the engine since the model was unloaded."""
        return self._previous is not None and self._demanded_at is None

    @property
    def expected_s(self) -> float | None:
        """Seconds until an engine that loads on demand will be ready; None: no load of it was measured."""
        if self._previous is None or self._load_s is None:
            return None
        if not self._previous.gone.is_set():
            return self._previous.left_s() + self._load_s
        if self._began_at is None:
            return self._memory.wait_s(self._claim) + self._load_s
        return max(0.0, self._load_s - (self._clock() - self._began_at))

    def admit(self, limit_s: float | None, *, is_closed: bool) -> None:
        """A request comes: begin to load an unloaded model. Raises ModelNotReady if it cannot be answered in time."""
        if self._previous is None or is_closed:
            self.check_ready(is_closed=is_closed)
        else:
            self._memory.check(self._claim)
            self.demand()
            self.check_in_time(limit_s)

    async def loaded(self) -> float:
        """Wait for an engine that is loaded on demand. Returns the seconds that this took: 0 if it was loaded before.

        Raises ModelNotReady if it could not be loaded.
        """
        if self._demanded_at is None:
            return 0.0
        is_loading, began_at = not self.tried.is_set(), self._clock()
        await self.tried.wait()
        self.check_ready()
        return self._clock() - began_at if is_loading else 0.0

    def check_ready(self, *, is_closed: bool = False) -> None:
        """Raises ModelNotReady with the reason, unless the engine is ready."""
        status = self.status
        state = "closed" if is_closed else status.state
        if state != "ready":
            detail = f": {status.detail}" if status.detail else "."
            raise ModelNotReady(f"{self._name} {_NOT_READY[state]}{detail}", retry_after_s=self.retry_after_s)

    def check_in_time(self, limit_s: float | None) -> None:
        """Raises ModelNotReady if an engine that is loaded on demand is ready after more than `limit_s` seconds."""
        expected_s = self.expected_s
        if limit_s is not None and expected_s is not None and expected_s > limit_s:
            why = f"{self._name} is being loaded, which takes about {expected_s:.1f} s more"
            raise ModelNotReady(f"{why}; the limit for the first token is {limit_s:g} s.", retry_after_s=expected_s)

    def as_previous(self, gone: asyncio.Event, left_s: Callable[[], float]) -> Previous:
        """For the loader of the lane that follows."""
        kept = replace(self.status, passes=None, peak_bytes=0, restarts=0)
        return Previous(status=kept, load_s=self._load_s, gone=gone, left_s=left_s)

    async def previous_is_gone(self) -> None:
        """Wait until the memory of the engine that was unloaded is free."""
        if self._previous is not None:
            await self._previous.gone.wait()

    @property
    def status(self) -> EngineStatus:
        """The engine's status. Between two attempts: the reason why the last one failed."""
        status = self._engine.status
        if self._previous is not None and status.state != "closed":
            return self._status_on_demand(self._previous, status.detail)
        if not self._fault:
            return status
        is_restarting = self._was_ready and status.state != "failed"
        return replace(status, state="restarting" if is_restarting else "failed", detail=self._fault)

    @property
    def retry_after_s(self) -> float:
        """Seconds until an engine that is not ready may be ready."""
        return max(_MIN_RETRY_AFTER_S, self._retry_at - self._clock()) if self._fault else _MIN_RETRY_AFTER_S

    async def run(self) -> None:
        """Load the engine unless `load` has, and load it again each time it is lost. Runs until it is cancelled."""
        if self._previous is None and not self._is_loaded and not self._memory.is_free_for(self._claim):
            self._postpone()
        if self._previous is not None:
            await self._previous.gone.wait()
            self._previous = replace(self._previous, left_s=lambda: 0.0)  # the old one referred to the old lane
            await self._demand.wait()
        pause_s = _FIRST_PAUSE_S
        while True:
            fault = "" if self._is_loaded else await self.load()
            self._is_loaded = False
            if fault:
                self._failed(fault, pause_s)
            else:
                ready_at = self._clock()
                reason = await self._engine.lost()
                if self._clock() - ready_at > _STABLE_S:
                    pause_s = _FIRST_PAUSE_S
                _log.error("%s: %s; it is loaded again in %.1f s", self._name, reason, pause_s)
            await self._pause(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            if fault and not self._memory.is_free_for(self._claim):
                self._demanded_at = None
                for event in (self._demand, self.tried):
                    event.clear()
                self.wait_for_demand()
                if self._claim.loads:
                    self.demand()
                await self._demand.wait()

    async def load(self) -> str:
        """Load the engine once. Returns the fault, empty if there was none."""
        try:
            await self._memory.acquire(self._claim, may_unload_others=self._previous is not None)
            self._began_at = began_at = self._clock()
            await self._engine.start()
        except GatewayError as error:
            self._memory.release(self._claim)
            return error.message
        except Exception as error:
            self._memory.release(self._claim)
            _log.error("%s: the engine raised while it loaded", self._name, exc_info=error)
            return f"{type(error).__name__} while loading"
        self._fault, self._was_ready, self._is_loaded = "", True, True
        self._load_s = self._clock() - began_at
        self._previous = None
        status = self._engine.status
        helpers = PROMPT_PROCESS if status.pid and status.peak_bytes else 0
        self._memory.ready(self._claim, status.peak_bytes + helpers, self._load_s)
        self.tried.set()
        self.settled.set()
        if status.device == "remote":  # nothing was sent to it
            _log.info("%s is on another server", self._name)
        else:
            _log.info("%s is ready (%s, loaded in %.1f s)", self._name, _device(status), status.load_s)
        return ""

    async def _pause(self, seconds: float) -> None:
        """Before another attempt. `demand_now` ends it."""
        self._pausing = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait([self._pausing])
        finally:
            self._pausing.cancel()
            self._pausing = None

    def _failed(self, fault: str, pause_s: float) -> None:
        if fault != self._fault:  # one line for each fault, not for each attempt
            line = "%s cannot be loaded: %s; it is tried again; `npu-gateway doctor` looks for the reason"
            _log.error(line, self._name, fault.rstrip("."))
        self._fault = fault
        self._previous = None
        self._retry_at = self._clock() + pause_s
        self.tried.set()
        self.settled.set()

    def _postpone(self) -> None:
        """The models that come before it in the configuration have the memory."""
        try:
            self._memory.check(self._claim)
        except ModelTooLarge:
            return  # the load says it
        _log.warning("%s does not fit into [memory] budget_mb with the others; its first request loads it", self._name)
        self.wait_for_demand()

    def _status_on_demand(self, previous: Previous, stage: str) -> EngineStatus:
        state: State = "unloaded" if self._demanded_at is None else "loading"
        if not previous.gone.is_set():
            stage = "requests that came before are answered first"
        elif self._claim.state == "waiting":
            stage = "it waits for memory that other models use"
        elif state == "unloaded":
            stage = self._fault
        pid = None if previous.gone.is_set() else previous.status.pid
        return replace(previous.status, state=state, detail=stage, pid=pid)


def _device(status: EngineStatus) -> str:
    """The device; of an NPU also the nodes that it does not run."""
    if status.device not in ("npu", "emulated") or not status.cpu_nodes:
        return status.device
    return f"{status.device}, {status.cpu_nodes} of {sum(status.placement.values())} nodes on the CPU"
