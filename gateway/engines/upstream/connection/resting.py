"""Connections that wait for the next request to the same server.

A new connection costs a round trip, two and a handshake with TLS. One is used again only after an answer in chunks that
was read to its end, with nothing after it.
"""

from __future__ import annotations

import asyncio

import httpcore

from gateway.engines.upstream.connection.framing import Chunked, Framing
from gateway.engines.upstream.connection.stream import Stream

_END_S = 1.0  # from the last event to the end of the body
_MOST = 32

Connection = httpcore.AsyncConnectionInterface


class Resting:
    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._ending: set[asyncio.Task[None]] = set()  # answers whose last bytes are not here yet

    async def take(self) -> Connection | None:
        """The one that rests since the shortest time, if the server has not closed it."""
        while self._connections:
            connection = self._connections.pop()
            if connection.is_available() and not connection.has_expired():
                return connection
            await connection.aclose()
        return None

    async def ended(self, connection: Connection, response: httpcore.Response) -> None:
        """Keep the connection if the answer has ended, else close it. Does not wait for what comes after `[DONE]`."""
        framing: Framing | None = response.extensions.get("framing")
        if not isinstance(framing, Chunked):
            await connection.aclose()
        elif framing.is_over:
            await self._keep(connection, response, framing)
        else:
            task = asyncio.create_task(self._keep(connection, response, framing))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def settled(self) -> None:
        """Wait until all answers have ended."""
        while self._ending:
            await asyncio.wait(self._ending)

    async def aclose(self) -> None:
        for task in self._ending:
            task.cancel()
        await self.settled()
        while self._connections:
            await self._connections.pop().aclose()

    async def _keep(self, connection: Connection, response: httpcore.Response, framing: Framing) -> None:
        is_kept = False
        try:
            async with asyncio.timeout(_END_S):
                is_kept = await _rests(response, framing)
        except (httpcore.ProtocolError, httpcore.NetworkError, OSError):  # includes the time limit
            is_kept = False
        finally:
            if is_kept and connection.is_available() and len(self._connections) < _MOST:
                self._connections.append(connection)
            else:
                await connection.aclose()


async def _rests(response: httpcore.Response, framing: Framing) -> bool:
    stream: Stream = response.extensions["network_stream"]
    if not (await stream.ends(framing) and stream.rest(framing)):
        return False
    async for _ in response.aiter_stream():  # httpcore sees only the end
        pass
    await response.aclose()
    return True
