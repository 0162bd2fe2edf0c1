"""One request at a worker process, from its first frame to its end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from gateway.errors import GatewayError
from gateway.generation import Meter, Usage
from gateway.worker.frames import FromWorker


class RunningRequest(ABC):
    """Args:
    id: of the request at the worker.
    prompt_tokens: of the whole request.
    meter: updated with every frame.
    call_s: seconds of the running device call.
    """

    def __init__(self, id: int, prompt_tokens: int, meter: Meter, call_s: Callable[[], float]) -> None:
        self.id, self._meter = id, meter
        self._over = asyncio.Event()
        self._error: GatewayError | None = None
        meter.prompt_tokens, meter.call_s = prompt_tokens, call_s

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    async def finished(self) -> Usage:
        """Wait for the end of the request. Raises the GatewayError that it failed with."""
        await self._over.wait()
        if self._error is not None:
            raise self._error
        return self._usage()

    def device_reported(self) -> None:
        """A device call has returned. The next call, which may work for this request, runs now."""
        if self._meter.began_at is not None:
            self._meter.call_started()

    @abstractmethod
    def take(self, frame: FromWorker) -> None:
        """Handle a frame of this request."""

    def fail(self, error: GatewayError) -> None:
        """End the request with `error`."""
        self._error = error
        self._end()

    @abstractmethod
    def _usage(self) -> Usage:
        """The token counts of a request that did not fail."""

    def _end(self) -> None:
        self._meter.call_ended()
        self._over.set()
