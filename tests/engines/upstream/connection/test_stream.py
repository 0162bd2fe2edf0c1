"""The connection to a server: over TLS, through a proxy, with a reader that stops, and its ends."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpcore
import pytest

from gateway.engines.upstream.client import Body, HttpClient
from gateway.engines.upstream.connection.stream import Backend, Stream

LOCALHOST = Path(__file__).with_name("localhost.pem")  # key and certificate
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = HEAD + b"5\r\nhello\r\n0\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def only_localhost_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(LOCALHOST))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def served(serve: Serve, *, tls: bool = False) -> AsyncIterator[int]:
    """The port of a server."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(LOCALHOST)
    connected: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None] | None] = []  # asyncio keeps none whose connection is lost

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        tasks.append(asyncio.current_task())
        with suppress(ConnectionError):
            await serve(reader, writer)

    async with await asyncio.start_server(connection, "localhost", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]
        for writer in connected:
            writer.transport.abort()
        for task in tasks:
            assert task is not None
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)


def answering(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return serve


async def posted(url: str) -> bytes:
    client = HttpClient(urlsplit(url), "")
    await client.open()
    try:
        async with asyncio.timeout(60), client.post("/x", b"{}") as response:
            body, found = Body(response, 1000), b""
            while part := await body.next():
                found += part
            return found
    finally:
        await client.aclose()


@pytest.mark.parametrize("tls", [False, True])
async def test_body_is_read_to_its_end(tls: bool) -> None:
    async with served(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER), tls=tls) as port:
        assert await posted(f"http{'s' * tls}://localhost:{port}") == b"hello"


@pytest.mark.parametrize("tls", [False, True])
async def test_connection_that_ends_in_the_body_is_an_error(tls: bool) -> None:
    async with served(answering(HEAD + b"5\r\nhel"), tls=tls) as port:
        with pytest.raises((httpcore.RemoteProtocolError, httpcore.ReadError)):
            await posted(f"http{'s' * tls}://localhost:{port}")


async def test_certificate_of_another_host_is_refused() -> None:
    async with served(answering(ANSWER), tls=True) as port:
        with pytest.raises(httpcore.ConnectError, match="certificate"):
            await posted(f"https://127.0.0.1:{port}")


async def test_server_without_tls_is_refused() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)

    async with served(serve) as port:
        with pytest.raises(httpcore.ConnectError):
            await posted(f"https://localhost:{port}")


async def test_head_and_body_in_any_parts() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in ANSWER:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with served(serve) as port:
        assert await posted(f"http://localhost:{port}") == b"hello"


@pytest.mark.parametrize("early", [b"", b"early"])
async def test_tls_through_a_proxy(monkeypatch: pytest.MonkeyPatch, early: bytes) -> None:
    """Bytes that the proxy sends before TLS are refused."""
    async with served(answering(ANSWER), tls=True) as port:

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"CONNECT elsewhere.example:443 ")
            far_reader, far_writer = await asyncio.open_connection("localhost", port)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n" + early)
            await asyncio.gather(copied(reader, far_writer), copied(far_reader, writer))

        async def copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            finally:
                writer.transport.abort()

        async with served(proxy) as proxy_port:
            monkeypatch.setenv("https_proxy", f"http://localhost:{proxy_port}")
            with pytest.raises(httpcore.ConnectError, match="before TLS" if early else "certificate"):
                await posted("https://elsewhere.example")


@pytest.mark.parametrize("tls", [False, True])
async def test_answer_to_a_body_that_the_server_does_not_read(tls: bool) -> None:
    """No part of the body that is left reaches the server later: the connection is not used again."""
    requests = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await asyncio.Event().wait()

    async with served(serve, tls=tls) as port:
        client = HttpClient(urlsplit(f"http{'s' * tls}://localhost:{port}"), "")
        await client.open()
        async with asyncio.timeout(60):
            for _ in range(2):
                async with client.post("/x", bytes(24_000_000)) as response:  # more than the system takes
                    body = Body(response, 1000)
                    assert [await body.next(), await body.next()] == [b"hello", b""]
        await client.aclose()
    assert requests == 2


async def test_reader_that_stops_stops_the_server() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with served(serve) as port:
        stream = await Backend().connect_tcp("localhost", port)
        assert isinstance(stream, Stream)
        stream.left = 10_000_000
        async with asyncio.timeout(60):
            while not stream._is_paused:  # noqa: ASYNC110
                await asyncio.sleep(0)
            held = len(stream._unread)
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(stream._unread) == held < 1_000_000
            for _ in range(200):
                assert 0 < len(await stream.next(None)) <= 16 * 1024
        await stream.aclose()


async def test_wait_ends_at_its_time_and_not_at_an_earlier_one() -> None:
    async with served(lambda reader, writer: asyncio.sleep(0)) as port:
        stream = await Backend().connect_tcp("localhost", port)
        assert isinstance(stream, Stream)
        loop = asyncio.get_running_loop()
        stream._limit(loop.time() - 1)  # of a wait that is over
        for ahead_s in (0.05, 0.01):
            until = loop.time() + ahead_s
            with pytest.raises(TimeoutError):
                await stream.next(until)
            assert loop.time() >= until - 0.02
        await stream.aclose()
