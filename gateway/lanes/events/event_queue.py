"""The one queue between a device and the reader of its events."""

from __future__ import annotations

import asyncio
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
        self._queue: asyncio.Queue[tuple[Event | GatewayError, int]] = asyncio.Queue()  # with its weight
        self._all_unread = all_unread or UnreadEvents()
        self._is_cut = False
        self.unread = 0
        self._has_space = asyncio.Event()
        #: Called once, before the first event that is not Started.
        self.on_content: Callable[[], None] = _nothing
        #: Called when the reader is too far behind, and gets an error instead of the events.
        self.on_overflow: Callable[[], object] = _nothing
        self.has_content = False
        self.finished_choices = 0

    def __call__(self, event: Event) -> None:
        if not self.has_content and not isinstance(event, Started):
            self.has_content = True
            self.on_content()
        self.finished_choices += isinstance(event, ChoiceFinished)
        self._put(event)

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
        self._queue.put_nowait(
            (DeadlineExceeded("The answer was not read, and too much of it was waiting. Read faster."), 0)
        )
        self.on_overflow()

    def close(self) -> None:
        """Drop the events, and those that still come."""
        self._is_cut = True
        dropped = []
        while not self._queue.empty():
            dropped.append(self._queue.get_nowait())
        if dropped:
            _free(dropped)
        self._all_unread.remove(self, self.unread)
        self._has_space.set()

    def _put(self, event: Event | GatewayError) -> None:
        if not self._is_cut:
            size = weight(event)
            self._queue.put_nowait((event, size))
            self._all_unread.add(self, size)

    async def get(self) -> Event:
        """The next event. Raises the GatewayError that ended the job. Cancelling it loses no event."""
        event, size = await self._queue.get()
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
