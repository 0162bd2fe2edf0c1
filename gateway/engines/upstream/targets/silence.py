"""Finds a server that hangs long before the limit of its silence: a request cannot see if it hangs or computes.

A request without content for a few seconds lets the gateway ask for the list of models, which a server that works
answers while it computes. If that gets no answer either, all requests that wait there for content are given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

PATIENCE_S = 5.0  # without content, and without a byte for any other request


class Silence:
    """Args:
    is_silent: asks the server; True if it does not answer.
    """

    def __init__(self, is_silent: Callable[[], Awaitable[bool]]) -> None:
        self._is_silent = is_silent
        self._waiting: dict[asyncio.Timeout, float] = {}  # -> since when; oldest first
        self._heard_at = 0.0
        self._watching: asyncio.Task[None] | None = None

    def heard(self) -> None:
        """The server has sent a part of an answer."""
        self._heard_at = _now()

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """Around the wait for the first content. Raises TimeoutError if the server hangs."""
        async with asyncio.timeout(None) as limit:
            self._waiting[limit] = _now()
            if self._watching is None or self._watching.done():
                self._watching = asyncio.create_task(self._watch())
            try:
                yield
            finally:
                self._waiting.pop(limit, None)

    async def aclose(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        """Run while a request waits."""
        while self._waiting:
            since = max(next(iter(self._waiting.values())), self._heard_at)
            if (left_s := since + PATIENCE_S - _now()) > 0:
                await asyncio.sleep(left_s)
                continue
            began_at = _now()
            if await self._is_silent() and self._heard_at < began_at:
                self._give_up()
            else:
                self._heard_at = _now()

    def _give_up(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for limit in waiting:
            limit.reschedule(_now())


def _now() -> float:
    return asyncio.get_running_loop().time()
