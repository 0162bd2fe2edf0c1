"""A real HTTP server on a socket that sends whatever a test wants, and the gateway in front of it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from gateway.config.tables import BreakerConfig, UpstreamModel
from tests.support.server import PATIENCE_S, Running, config_of, serving, wait_until

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
#: path -> body, for every API that generates
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**CHAT, "tools": TOOLS, "logprobs": True, "top_logprobs": 2},
    "/v1/completions": {"prompt": "Hi", "logprobs": 2},
    "/v1/responses": {"input": "Hi", "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}]},
    "/v1/messages": {**CHAT, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    "/api/chat": {**CHAT, "tools": TOOLS},
}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"

Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Hostile:
    """Answers each request with `answer`: bytes, or a coroutine function that has the connection to itself."""

    def __init__(self) -> None:
        self.answer: bytes | Behave = b""
        self.requests: list[bytes] = []
        self.port = 0
        self._tasks: set[asyncio.Task[Any] | None] = set()  # asyncio keeps none whose connection is lost

    @property
    def open(self) -> int:
        """The number of connections that are being answered."""
        return len(self._tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            self.requests.append(await read_request(reader))
            if callable(self.answer):
                await self.answer(reader, writer)
            else:
                writer.write(self.answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    length = next(lengths, b":0")  # a GET has none
    return head + await reader.readexactly(int(length.partition(b":")[2]))


async def end_other_tasks() -> None:
    """Cancel all other tasks of the loop, also those of connections that were accepted in this moment."""
    idle_turns = 0
    while idle_turns < 10:  # from `accept` to the task of a connection, and from `close` to its socket: a few turns
        for _ in range(3):  # a task that is cancelled before its first step would not close its connection
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        idle_turns = 0 if tasks else idle_turns + 1
        await asyncio.sleep(0)


@contextmanager
def hostile() -> Iterator[Hostile]:
    """The server, in a thread with its own event loop."""
    server, loop, started = Hostile(), asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def run() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        listener.close()
        await end_other_tasks()

    def main() -> None:
        with closing(loop):
            loop.run_until_complete(run())

    thread = threading.Thread(target=main)
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)


@contextmanager
def gateway_before(server: Hostile, breaker: BreakerConfig | None = None, **fields: Any) -> Iterator[Running]:
    """A gateway whose model "m" is the server."""
    model = UpstreamModel(url=f"http://127.0.0.1:{server.port}/v1", **fields)
    with serving(config_of({"m": model}, breaker=breaker or BreakerConfig(enabled=False))) as running:
        yield running


def stream(*events: bytes | str | Mapping[str, Any], done: bool = True) -> bytes:
    """A whole answer: each event is data, or an object as JSON."""
    lines = [event if isinstance(event, bytes) else text_of(event).encode() for event in events]
    return HEAD + b"".join(b"data: %s\n\n" % line for line in lines) + (b"data: [DONE]\n\n" if done else b"")


def text_of(event: str | Mapping[str, Any]) -> str:
    return event if isinstance(event, str) else json.dumps(event)


def chunk(finish: Any = None, *, index: Any = 0, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def post(gateway: Running, path: str, body: dict[str, Any], **headers: str) -> tuple[int, bytes]:
    """Status and whole body of the gateway's answer."""
    with gateway.http(verify=False) as http:  # reading certificates takes longer than the request
        response = http.post(path, json={"model": "m", **body}, headers=headers)
        return response.status_code, response.content


def wait_until_closed(server: Hostile) -> None:
    wait_until(lambda: server.open == 0, "a connection to the upstream server is still open")


class ErrorLog(logging.Handler):
    """Collects the log lines at ERROR and above of every logger."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> ErrorLog:
        for name in ("", "gateway"):
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("", "gateway"):
            logging.getLogger(name).removeHandler(self)
