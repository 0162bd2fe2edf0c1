"""Loads an engine, and tries again with growing pauses while that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec.structs import replace

from gateway.engines.base import Engine, EngineStatus
from gateway.errors import GatewayError

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LOADING_RETRY_S = 2.0

_log = logging.getLogger(__name__)


class Loader:
    """One engine's."""

    def __init__(self, name: str, engine: Engine, clock: Callable[[], float]) -> None:
        self.tried = asyncio.Event()  # the first attempt is over, whether or not it succeeded
        self._name = name
        self._engine = engine
        self._clock = clock
        self._fault = ""  # why the last attempt failed
        self._again_at = 0.0

    @property
    def status(self) -> EngineStatus:
        """The engine's; failed, and why, between two attempts."""
        status = self._engine.status
        return replace(status, state="failed", detail=self._fault) if self._fault else status

    @property
    def retry_after_s(self) -> float:
        """Seconds after which an engine that is not ready may be."""
        return max(_LOADING_RETRY_S, self._again_at - self._clock()) if self._fault else _LOADING_RETRY_S

    async def run(self) -> None:
        """Return when the engine is loaded."""
        pause_s = _FIRST_PAUSE_S
        while fault := await self._load():
            self._failed(fault, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._fault = ""
        self.tried.set()
        status = self._engine.status
        _log.info("%s is ready (%s, loaded in %.1f s)", self._name, status.device, status.load_s)

    async def _load(self) -> str:
        """Start the engine; the fault in words, empty when there was none."""
        try:
            await self._engine.start()
        except GatewayError as error:
            return error.message
        except Exception as error:
            _log.error("%s: the engine raised while it loaded", self._name, exc_info=error)
            return f"{type(error).__name__} while loading"
        return ""

    def _failed(self, fault: str, pause_s: float) -> None:
        if fault != self._fault:
            line = "%s cannot be loaded: %s; it is tried again; `npu-gateway doctor` says more"
            _log.error(line, self._name, fault.rstrip("."))
        self._fault = fault
        self._again_at = self._clock() + pause_s
        self.tried.set()
