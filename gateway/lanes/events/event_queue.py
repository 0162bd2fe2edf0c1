"""The one queue between a device and the reader of its events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.errors import DeadlineExceeded, GatewayError
from gateway.generation import ChoiceFinished, Event, Finished, Started
from gateway.lanes.events.unread import UnreadEvents, weight

_MAX_BEHIND = 4096  # weight of the unread events at which `drain` waits: about 1 MB
_FREED_AT_ONCE = 500  # events


def _nothing() -> None:
    return None


class EventQueue:
    """The events of one job, from one engine to one reader. Implements Emit for the engine.

    `emit` never waits and never loses an event, so a stalled reader does not delay the engine. An engine that can
    produce without a bound waits in `drain`.

    Args:
        all_unread: limits the unread events of several queues together.
    """

    def __init__(self, all_unread: UnreadEvents | None = None) -> None:
        self._events: deque[tuple[Event | GatewayError, int]] = deque()  # with its weight
        self._reader: asyncio.Future[None] | None = None  # that waits
        self._all_unread = all_unread or UnreadEvents()
        self._is_cut = False
        self.unread = 0
        self._has_space = asyncio.Event()
        #: Called once, before the first event that is not Started, or when the engine holds it back.
        self.on_content: Callable[[], None] = _nothing
        #: Called when the reader is too far behind, and gets an error instead of the events.
        self.on_overflow: Callable[[], object] = _nothing
        self.has_content = False
        self.finished_choices = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Started):
            self.begin()
        self.finished_choices += isinstance(event, ChoiceFinished)
        self._put(event)

    def begin(self) -> None:
        if not self.has_content:
            self.has_content = True
            self.on_content()

    async def drain(self) -> None:
        while self.unread >= _MAX_BEHIND:
            self._has_space.clear()
            await self._has_space.wait()

    def end(self, last: Finished | GatewayError) -> None:
        """Append the end. Nothing may follow it."""
        self.on_content = _nothing  # it refers to the request, which refers to this
        self._put(last)

    def overflow(self) -> None:
        self.close()
        self._append(DeadlineExceeded("The answer was not read, and too much of it was waiting. Read faster."), 0)
        self.on_overflow()

    def close(self) -> None:
        """Drop the events, and those that still come."""
        self._is_cut = True
        dropped = list(self._events)
        self._events.clear()
        if dropped:
            _free(dropped)
        self._all_unread.remove(self, self.unread)
        self._has_space.set()

    def _put(self, event: Event | GatewayError) -> None:
        if not self._is_cut:
            size = weight(event)
            self._append(event, size)
            self._all_unread.add(self, size)

    def _append(self, event: Event | GatewayError, size: int) -> None:
        self._events.append((event, size))
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> Event:
        """The next event, for one reader. Raises the GatewayError that ended the job. Cancelling it loses no event."""
        while not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._next()

    def poll(self) -> Event | None:
        """The next event if it is there. None: `get` waits for it, or raises the end of the job."""
        is_event = self._events and not isinstance(self._events[0][0], GatewayError)
        return self._next() if is_event else None

    def _next(self) -> Event:
        event, size = self._events.popleft()
        if not self._has_space.is_set():
            self._has_space.set()
        if not self._is_cut:
            self._all_unread.remove(self, size)
        if isinstance(event, GatewayError):
            raise event
        return event


def _free(events: list[tuple[Event | GatewayError, int]]) -> None:
    """Free the memory of many events in several turns of the event loop: 250,000 log-probabilities take 50 ms."""
    del events[-_FREED_AT_ONCE:]
    if events:
        asyncio.get_running_loop().call_soon(_free, events)
