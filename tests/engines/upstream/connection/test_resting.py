"""A connection that is used again: when, and that no bytes of one answer reach another request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import httpcore
import pytest

from gateway.engines.upstream.client import Body, HttpClient

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
STREAM = "gateway.engines.upstream.connection.stream"
LIMIT_S = 60.0
CLOSE, WAIT = b"(close)", b"(wait)"


@pytest.fixture(autouse=True)
def no_limit_counts_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.engines.upstream.connection.resting._END_S", 3600.0)
    for limit in ("_REST_S", "_OLD_S"):
        monkeypatch.setattr(f"{STREAM}.{limit}", 3600.0)


def answer(text: str) -> bytes:
    return HEAD + b"%x\r\n%b\r\n" % (len(text), text.encode()) + END


class Server:
    """Request k of all connections gets the parts of item k of `answers`."""

    def __init__(self, answers: Sequence[Sequence[bytes]]) -> None:
        self._answers = iter(answers)
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.requests = 0
        self.closed = asyncio.Event()  # a connection, by the client
        self.goes_on = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                self.requests += 1
                for part in next(self._answers):
                    if part == WAIT:
                        await self.goes_on.wait()
                    elif part == CLOSE:
                        writer.transport.abort()
                        return
                    else:
                        writer.write(part)
        self.closed.set()
        writer.close()


class Client:
    def __init__(self, port: int) -> None:
        self._http = HttpClient(urlsplit(f"http://127.0.0.1:{port}"), "")
        self.open, self.aclose = self._http.open, self._http.aclose

    async def post(self, until: Callable[[bytes], bool] = lambda _: False) -> str:
        """The body, or its start: the last events of a stream can be known before the body ends."""
        async with self._http.post("/x", b"{}") as response:
            body, found = Body(response, 1000), b""
            while not until(found) and (part := await body.next()):
                found += part
            return found.decode()

    async def is_settled(self) -> None:
        """Wait for the ends of answers that nothing waits for."""
        await self._http._resting.settled()


@asynccontextmanager
async def connected(*answers: Sequence[bytes]) -> AsyncIterator[tuple[Server, Client]]:
    server = Server(answers)
    async with asyncio.timeout(LIMIT_S), await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        client = Client(listening.sockets[0].getsockname()[1])
        await client.open()
        try:
            yield server, client
        finally:
            await client.aclose()
            for writer in server.writers:
                writer.transport.abort()


async def test_two_requests_use_one_connection() -> None:
    async with connected([answer("one")], [answer("two")]) as (server, client):
        assert [await client.post(), await client.post()] == ["one", "two"]
        assert server.connections == 1


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none",
        answer("one") + b"HTTP/1.1 200 OK\r\n",
        answer("one").replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1),
        answer("one").replace(b"\r\n\r\n", b"\r\ncontent-length: 13\r\n\r\n", 1),
        answer("one").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["length", "more", "close", "both", "old"],
)
async def test_answer_that_does_not_end_by_itself_closes_the_connection(first: bytes) -> None:
    async with connected([first, CLOSE] if b"HTTP/1.0" in first else [first], [answer("two")]) as (server, client):
        with suppress(httpcore.ReadError):
            assert await client.post() == "one"
        assert await client.post() == "two"
        assert server.connections == 2


async def test_bytes_between_two_requests_are_no_answer() -> None:
    async with connected([answer("one"), WAIT, answer("to no request")], [answer("two")]) as (server, client):
        assert await client.post() == "one"
        server.goes_on.set()
        await server.closed.wait()
        assert await client.post() == "two"
        assert server.connections == 2


@pytest.mark.parametrize("later", [[CLOSE], [WAIT, CLOSE]], ids=["with the next request", "before it"])
async def test_request_is_sent_again_if_the_server_closed_the_connection(later: list[bytes]) -> None:
    is_before = WAIT in later
    answers = [[answer("one"), *later]] if is_before else [[answer("one")], later]
    async with connected(*answers, [answer("two")]) as (server, client):
        assert await client.post() == "one"
        server.goes_on.set()
        assert await client.post() == "two"
        assert (server.connections, server.requests) == (2, 2 if is_before else 3)


async def test_request_is_sent_again_only_once() -> None:
    """A server that breaks with this request could close all connections that rest, one after the other."""
    begun = answer("one").removesuffix(END)
    async with connected([begun, WAIT, END], [begun, WAIT, END], *[[CLOSE]] * 3) as (server, client):
        await asyncio.gather(*(client.post(until=b"one".__eq__) for _ in range(2)))
        server.goes_on.set()
        await client.is_settled()
        with pytest.raises((httpcore.ReadError, httpcore.RemoteProtocolError)):
            await client.post()
        assert (server.connections, server.requests) == (3, 4)


async def test_request_is_sent_once_if_an_answer_has_begun_or_the_connection_is_new() -> None:
    async with connected([answer("one")], [HEAD[:20], CLOSE], [CLOSE]) as (server, client):
        assert await client.post() == "one"
        for requests in 2, 3:
            with pytest.raises((httpcore.ReadError, httpcore.RemoteProtocolError)):
                await client.post()
            assert server.requests == requests


async def test_nothing_waits_for_the_end_of_the_body_after_the_last_event() -> None:
    async with connected([answer("one").removesuffix(END), WAIT, END], [answer("two")]) as (server, client):
        assert await client.post(until=b"one".__eq__) == "one"
        server.goes_on.set()
        await client.is_settled()
        assert await client.post() == "two"
        assert server.connections == 1


@pytest.mark.parametrize("more", [b"", b"1\r\nx\r\n" + END], ids=["silence", "another event"])
async def test_body_that_does_not_end_after_the_last_event_closes_the_connection(
    monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    if not more:
        monkeypatch.setattr("gateway.engines.upstream.connection.resting._END_S", 0.0)
    async with connected([answer("one").removesuffix(END), WAIT, more], [answer("two")]) as (server, client):
        assert await client.post(until=b"one".__eq__) == "one"
        server.goes_on.set()
        await client.is_settled()
        assert await client.post() == "two"
        assert server.connections == 2


async def test_block_that_fails_closes_the_connection() -> None:
    def failing(_: bytes) -> bool:
        raise KeyError

    async with connected([answer("one")], [answer("two")]) as (server, client):
        with pytest.raises(KeyError):
            await client.post(until=failing)
        assert await client.post() == "two"
        assert server.connections == 2


@pytest.mark.parametrize("limit", ["_REST_S", "_OLD_S"])
async def test_connection_does_not_rest_for_long_and_is_not_used_for_long(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"{STREAM}.{limit}", 0.0)
    async with connected([answer("one")], [answer("two")]) as (server, client):
        assert await client.post() == "one"
        await server.closed.wait()
        assert await client.post() == "two"
        assert server.connections == 2
