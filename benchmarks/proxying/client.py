"""Reads the streams of a server, and notes how long each chunk and each first chunk took."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

KEY = "sk-benchmark-1f0c3a5e7b9d2468"  # LiteLLM does not start without one
_STAMP = re.compile(rb'"content": ?" ?(\d+)"')
_END = b"0\r\n\r\n"  # no other chunk ends so


class Streamed(NamedTuple):
    """Of one answer, in milliseconds.

    Args:
        first: from the request to the arrival of the first chunk.
        chunks: from the server's write of each chunk but the first to its arrival.
    """

    first: float
    chunks: list[float]


class Connection(asyncio.Protocol):
    """One connection of a client. It is used for one request after another."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.count = 0  # of all chunks so far
        self._tail = b""
        self._done: asyncio.Future[None] | None = None

    async def stream(self, content: bytes) -> Streamed:
        """Raises RuntimeError for an answer that is no stream, or that the server cuts."""
        self._first, self._chunks, self._has_head = 0, list[float](), False
        self._done = asyncio.get_running_loop().create_future()
        began = time.perf_counter_ns()
        self._transport.write(content)
        await self._done
        return Streamed((self._first - began) / 1e6, self._chunks[1:])

    def data_received(self, data: bytes) -> None:
        now, data = time.perf_counter_ns(), self._tail + data
        cut = data.rfind(b"\n") + 1
        whole, self._tail = data[:cut], data[cut:]
        for stamp in _STAMP.findall(whole):
            self._first = self._first or now
            self.count += 1
            self._chunks.append((now - int(stamp)) / 1e6)
        is_refused = not self._has_head and not whole.startswith(b"HTTP/1.1 200")
        self._has_head = True
        if is_refused:
            self._fail(whole.decode(errors="replace"))
        elif whole.endswith(_END):
            self._tail = b""
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("the server closed the connection")

    def close(self) -> None:
        self._transport.close()

    def _end(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RuntimeError(why))


def request(model: str, chunks: int, every_ms: int) -> bytes:
    """For the scripted server; see server.py."""
    return chat(model, f"EVERY {every_ms}", chunks)


def chat(model: str, text: str, tokens: int, key: str = KEY) -> bytes:
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": tokens, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[Connection]]:
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


async def streams(port: int, model: str, count: int, chunks: int, every_ms: int) -> list[Streamed]:
    """`count` streams at once, each on its connection; their chunks are spread evenly over time."""
    content = request(model, chunks, every_ms)

    async def one(number: int, connection: Connection) -> Streamed:
        await asyncio.sleep(number * every_ms / count / 1000)
        return await connection.stream(content)

    async with connections(port, count) as made:
        return await asyncio.gather(*(one(number, each) for number, each in enumerate(made)))


async def one_after_another(port: int, model: str, requests: int) -> list[Streamed]:
    """Answers of one chunk, on one connection."""
    async with connections(port, 1) as (connection,):
        return [await connection.stream(request(model, 1, 0)) for _ in range(requests)]


def percentile(values: list[float], part: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * part // 100)]
