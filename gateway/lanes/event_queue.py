"""The one queue between a device and the reader of its events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.errors import GatewayError
from gateway.generation import ChoiceFinished, Event, Finished, Started

_MAX_BEHIND = 4096  # unread events at which `drain` waits: about 1 MB


class EventQueue:
    """The events of one job, from one engine to one reader. Implements Emit for the engine.

    `emit` never waits and never loses an event, so a stalled reader does not delay the engine. An engine that can
    produce without a bound waits in `drain`.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event | GatewayError] = asyncio.Queue()
        self._has_space = asyncio.Event()
        #: Called once, before the first event that is not Started.
        self.on_content: Callable[[], None] = lambda: None
        self.has_content = False
        self.finished_choices = 0

    def __call__(self, event: Event) -> None:
        if not self.has_content and not isinstance(event, Started):
            self.has_content = True
            self.on_content()
        self.finished_choices += isinstance(event, ChoiceFinished)
        self._queue.put_nowait(event)

    async def drain(self) -> None:
        while self._queue.qsize() >= _MAX_BEHIND:
            self._has_space.clear()
            await self._has_space.wait()

    def end(self, last: Finished | GatewayError) -> None:
        """Append the end. Nothing may follow it."""
        self._queue.put_nowait(last)

    async def get(self) -> Event:
        """The next event. Raises the GatewayError that ended the job. Cancelling it loses no event."""
        event = await self._queue.get()
        self._has_space.set()
        if isinstance(event, GatewayError):
            raise event
        return event
