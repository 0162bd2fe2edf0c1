"""Several servers behind one model: which one answers, and what the client gets if some of them fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from gateway.config.tables import UpstreamModel
from gateway.engines.upstream.engine import UpstreamEngine
from gateway.generation import Chat, Event, Generation, Message, Started, TextDelta
from tests.support.engines import events_of
from tests.support.hostile import HEAD, chunk, stream

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def request(text: str = "Hi", **fields: Any) -> Generation:
    return Generation(id="r", model="m", prompt=Chat(messages=(Message(role="user", content=text),)), **fields)


class Server:
    """Answers each chat with `answer`: bytes, or a coroutine function. `models` is the reply to `GET /models`."""

    def __init__(self, answer: bytes | Script = b"", models: bytes = b"") -> None:
        self.answer, self.models = answer, models
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[bytes] = []
        self.port = 0
        self.open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.open -= 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(self.models or status("404 Not Found"))
            await writer.drain()
            return
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        self.bodies.append(json.loads(await reader.readexactly(int(length.partition(b":")[2]))))
        self.heads.append(head)
        if callable(self.answer):
            await self.answer(writer)
        else:
            writer.write(self.answer)
            await writer.drain()


def status(line: str, message: str = "From the server.", **headers: str) -> bytes:
    body = json.dumps({"error": {"message": message}}).encode()
    lines = [f"HTTP/1.1 {line}", "content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


GOOD = stream(chunk(content="good"), chunk("stop"))


@asynccontextmanager
async def servers(*answers: bytes | Script, **fields: Any) -> AsyncIterator[tuple[UpstreamEngine, list[Server]]]:
    """A model with a server for each answer."""
    async with AsyncExitStack() as stack:
        found = [Server(answer) for answer in answers]
        for each in found:
            listener = await stack.enter_async_context(await asyncio.start_server(each.serve, "127.0.0.1", 0))
            each.port = listener.sockets[0].getsockname()[1]
        engine = UpstreamEngine("m", UpstreamModel(targets=tuple(each.url for each in found), **fields))
        await engine.start()
        stack.push_async_callback(engine.aclose)
        yield engine, found


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def silent_after_head(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b": nothing\n\n")
    await asyncio.sleep(3600)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        status("500 Internal Server Error"),
        status("503 Service Unavailable"),
        status("429 Too Many Requests", retry_after="1"),
        status("401 Unauthorized"),
        status("404 Not Found"),
        status("302 Found", location="http://127.0.0.1:1/"),
        status("400 Bad Request", "maximum context length is 4"),
        status("413 Request Entity Too Large"),
        b"garbage\r\n\r\n",
        HEAD + b"data: garbage\n\n",
        stream("not an object"),
        stream({"error": {"message": "It fell over."}}),
        stream(chunk(role="assistant"), {"error": {"message": "Later."}}),
        stream(chunk(role="assistant"), done=False),
        stream(),
    ],
)
async def test_failure_before_the_content_moves_to_another_server(bad: bytes) -> None:
    async with servers(bad, GOOD) as (engine, (first, second)):
        for count in range(1, 5):
            events = await events_of(engine, request(f"{count}"))
            assert text_of(events) == "good"
            assert sum(isinstance(event, Started) for event in events) == 1
            assert len(second.bodies) == count
        assert len(first.bodies) >= 1


async def test_silence_before_the_content_moves_to_another_server() -> None:
    async with servers(hang, silent_after_head, GOOD, watchdog_s=0.05) as (engine, found):
        for count in range(1, 4):
            assert text_of(await events_of(engine, request())) == "good"
            assert len(found[2].bodies) == count
