"""A lock for which clients take turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.sandbox.client_queues import ClientQueues


class Turns:
    """The requests of one client are served in order, and the clients in turn (round robin).

    async with turns.turn(client):
        ...
    """

    def __init__(self) -> None:
        self._waiting = ClientQueues[asyncio.Future[None]]()
        self._is_taken = False

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        if self._is_taken:
            await self._wait(client)
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(client, mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()  # cancelled when its turn had come
            raise

    def _pass_on(self) -> None:
        while (request := self._waiting.get()) is not None:
            if not request.done():
                request.set_result(None)
                return
        self._is_taken = False
