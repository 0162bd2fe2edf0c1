"""A time limit for each of many waits, with one timer for all of them: it moves only when it is due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class OutOfPatience(Exception):
    """The wait took too long."""


class Patience:
    """Args:
    seconds: of each wait; None: no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._until = 0.0
        self._limit: asyncio.Timeout | None = None  # of the wait that runs
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, awaited: Awaitable[T]) -> T:
        """Raises OutOfPatience, and then `awaited` was cancelled."""
        if self._seconds is None:
            return await awaited
        loop = asyncio.get_running_loop()
        self._until = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(self._until, self._due)
        try:
            async with asyncio.timeout(None) as limit:
                self._limit = limit
                return await awaited
        except TimeoutError:
            if not limit.expired():
                raise
            raise OutOfPatience from None
        finally:
            self._limit = None

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._limit is None:
            return
        if self._until > loop.time():
            self._timer = loop.call_at(self._until, self._due)
        else:
            self._limit.reschedule(loop.time())
