"""Waits that something else can end: a client that disconnects, or a time limit.

Both cancel the task that waits, and then catch the cancellation, as `asyncio.timeout` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

Receive = Callable[[], Awaitable[Any]]


class ClientDisconnected(Exception):
    """The client closed the connection before its reply was complete."""


class Connected:
    """What runs inside of it ends with ClientDisconnected when the client disconnects.

    The request body must have been read: after it, the only message from the server is the disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._watch = asyncio.create_task(self._wait())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        if self._is_gone and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise ClientDisconnected from error

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()


class Patience:
    """Limits each of many waits of the running task, with one timer for all of them.

    patience.begin(5.0)
    try:
        await something()
    except asyncio.CancelledError:
        if not patience.is_over():
            raise
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_expired = False

    def begin(self, limit_s: float | None) -> None:
        """A wait begins. None: it has no limit."""
        self._due = None if limit_s is None else self._loop.time() + limit_s
        if self._due is not None and (self._timer is None or self._timer.when() > self._due):
            self._set(self._due)

    def is_over(self) -> bool:
        """True if the limit has ended the wait, and nothing else has. Call it once for each cancellation."""
        has_expired, self._has_expired = self._has_expired, False
        return has_expired and self._task.uncancel() <= self._cancelling

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, due: float) -> None:
        self.stop()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        if self._loop.time() < self._due:
            self._set(self._due)
        else:
            self._due, self._has_expired = None, True
            self._task.cancel()
