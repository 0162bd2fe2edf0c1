"""Loads an engine, and again if its worker dies, with exponential backoff. No other module retries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from gateway.engines.base import Engine, EngineStatus
from gateway.errors import GatewayError

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 30.0
_STABLE_S = 60.0  # if an engine was ready for longer, the next pause is the first one
_MIN_RETRY_AFTER_S = 2.0

_log = logging.getLogger(__name__)


class Loader:
    """Keeps one engine loaded.

    Args:
        name: of the model, for the log.
        engine: `run` starts it.
        clock: seconds, monotonic.
        sleep: waits for the given number of seconds, measured by `clock`.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.tried = asyncio.Event()  # set when the first attempt has ended, with or without success
        self._name = name
        self._engine = engine
        self._clock, self._sleep = clock, sleep
        self._fault = ""  # why the last attempt failed
        self._was_ready = False
        self._is_loaded = False  # by `load`, before `run`
        self._retry_at = 0.0

    @property
    def status(self) -> EngineStatus:
        """The engine's status. Between two attempts: the reason why the last one failed."""
        status = self._engine.status
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
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def load(self) -> str:
        """Load the engine once. Returns the fault, empty if there was none."""
        try:
            await self._engine.start()
        except GatewayError as error:
            return error.message
        except Exception as error:
            _log.error("%s: the engine raised while it loaded", self._name, exc_info=error)
            return f"{type(error).__name__} while loading"
        self._fault, self._was_ready, self._is_loaded = "", True, True
        self.tried.set()
        status = self._engine.status
        if status.device == "remote":  # nothing was sent to it
            _log.info("%s is on another server", self._name)
        else:
            _log.info("%s is ready (%s, loaded in %.1f s)", self._name, _device(status), status.load_s)
        return ""

    def _failed(self, fault: str, pause_s: float) -> None:
        if fault != self._fault:  # one line for each fault, not for each attempt
            line = "%s cannot be loaded: %s; it is tried again; `npu-gateway doctor` looks for the reason"
            _log.error(line, self._name, fault.rstrip("."))
        self._fault = fault
        self._retry_at = self._clock() + pause_s
        self.tried.set()


def _device(status: EngineStatus) -> str:
    """The device; of an NPU also the nodes that it does not run."""
    if status.device not in ("npu", "emulated") or not status.cpu_nodes:
        return status.device
    return f"{status.device}, {status.cpu_nodes} of {sum(status.placement.values())} nodes on the CPU"
