"""What the check of an upstream server finds, against real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.config.tables import UpstreamTarget
from gateway.engines.upstream.reach import reach
from tests.support.processes import free_port

MODELS = '{"object": "list", "data": [{"id": "a"}, {"id": "qwen3:latest"}]}'


@asynccontextmanager
async def server(status: str, body: str = "", *, hangs: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers every request in the same way. Yields its URL, and the heads of the requests."""
    heads: list[bytes] = []
    open_writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        open_writers.append(writer)
        if not hangs:
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            await writer.drain()
            writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", heads
        for writer in open_writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


def model(name: str, url: str, **keys: str) -> UpstreamTarget:
    return UpstreamTarget(url=url, **{"upstream_model": name, **keys})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a", "qwen3"])
def test_server_that_has_the_model_is_right(name: str) -> None:
    async def run() -> None:
        async with server("200 OK", MODELS) as (url, heads):
            assert await reach(model(name, url, api_key="k-1"), limit_s=60) == ""
            assert heads[0].startswith(b"GET /v1/models HTTP/1.1") and b"Bearer k-1" in heads[0]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        ("200 OK", MODELS, "has no model 'x'; it has a, qwen3:latest. Set `upstream_model` to one of them"),
        ("401 Unauthorized", "", "refuses the key (HTTP 401). Set `api_key` in the model's table"),
        ("403 Forbidden", "", "refuses the key (HTTP 403). Set `api_key` in the model's table"),
        ("502 Bad Gateway", "", "answers with HTTP 502. Look into the log of that server"),
        ("404 Not Found", "", ""),  # some servers have only the path for chats
        ("200 OK", "<html>", ""),
        ("200 OK", "\xff", ""),
        ("200 OK", '{"data": [{"id": "a", "x": ' + "[" * 100_000, ""),
    ],
)
def test_answer_is_explained(status: str, body: str, problem: str) -> None:
    async def run() -> None:
        async with server(status, body) as (url, _):
            assert await reach(model("x", url), limit_s=60) == (f"{url} {problem}" if problem else "")

    asyncio.run(run())


def test_other_key_can_be_the_one_of_the_server_or_of_the_model() -> None:
    async def run() -> None:
        async with server("401 Unauthorized", "") as (url, _):
            problem = await reach(model("x", url, api_key="k-1"), limit_s=60)
            assert problem.endswith("Set another key in the table of this server or of the model")

    asyncio.run(run())


def test_other_name_on_the_server_is_compared() -> None:
    async def run() -> None:
        async with server("200 OK", MODELS) as (url, _):
            assert await reach(model("x", url, upstream_model="a"), limit_s=60) == ""

    asyncio.run(run())


def test_silent_server_ends_after_the_limit() -> None:
    async def run() -> None:
        async with server("", hangs=True) as (url, _):
            assert await reach(model("x", url), limit_s=0.1) == f"{url} does not answer within 0.1 s"

    asyncio.run(run())


@pytest.mark.parametrize("host", ["127.0.0.1", "a..b", "a" * 64], ids=["closed", "empty label", "long label"])
def test_server_that_is_not_there_does_not_answer(host: str) -> None:
    url = f"http://{host}:{free_port()}/v1"
    expected = f"{url} does not answer. Start that server, or correct `url`"
    assert asyncio.run(reach(model("x", url), limit_s=60)) == expected


def test_wrong_url_is_explained() -> None:
    assert "is not the URL of a server" in asyncio.run(reach(model("x", "localhost:8081")))
