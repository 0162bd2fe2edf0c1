"""Many clients at once: idle connections, more connections than the limit, and full queues."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.config.tables import LocalModel, Script, ScriptedModel, ServerConfig
from gateway.server import connections as protocol
from tests.support.processes import SCRIPTED, free_port
from tests.support.processes import serving as gateway_process
from tests.support.server import PATIENCE_S, Running, config_of, scripted, serving, wait_until
from tests.system.clients.conftest import MODELS
from tests.system.clients.raw import (
    PATH,
    busy,
    chat,
    connections,
    head,
    open_connections,
    still_serves,
    whole_answer,
)


async def test_thousand_idle_connections_do_not_block_a_request(server: Running) -> None:
    await asyncio.to_thread(wait_until, lambda: connections(server) == 0, "a connection of the start is left")
    process = psutil.Process()
    before = process.memory_info().rss
    async with open_connections(server.port, 1_000):
        await asyncio.to_thread(wait_until, lambda: connections(server) == 1_000, "not all are open")
        each = (process.memory_info().rss - before) / 1_000
        print(f"an idle connection: {each / 1024:.1f} KiB, both ends")
        assert each < 64 * 1024
        await asyncio.to_thread(still_serves, server)
    await asyncio.to_thread(wait_until, lambda: connections(server) == 0, "some are still held")


@pytest.mark.slow
async def test_ten_thousand_idle_connections_do_not_block_a_request(tmp_path: Path) -> None:
    """The gateway is a separate process, because each end needs 10,000 open files, if the system allows that."""
    (tmp_path / "config.toml").write_text(SCRIPTED, encoding="utf-8")
    count, port = min(10_000, protocol.connection_limit() - 200), free_port()
    with gateway_process("--port", port, cwd=tmp_path) as running:
        running.read_greeting()
        process = psutil.Process(running.process.pid)
        before = process.memory_info().rss
        async with open_connections(port, count) as writers:
            each = (process.memory_info().rss - before) / len(writers)
            start = time.monotonic()
            answer = await whole_answer(port, chat("paris"))
            took_s = time.monotonic() - start
            assert answer.startswith(b"HTTP/1.1 200")
            print(f"{len(writers)} idle connections: {each / 1024:.1f} KiB each; a chat answered in {took_s:.3f} s")


@pytest.fixture
def few_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that accepts 64 connections, and 8 above that to refuse them."""
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 64)
    monkeypatch.setattr(protocol, "SPARE_CONNECTIONS", 8)
    with serving(config_of({"m": scripted("Hello."), "endless": MODELS["endless"]})) as server:
        wait_until(lambda: connections(server) == 0, "a connection of the start is left")
        yield server


def from_client(request: bytes, agent: object) -> bytes:
    return request.replace(b"Host: localhost", f"Host: localhost\r\nUser-Agent: {agent}".encode(), 1)


UNFINISHED = head(PATH, "Content-Length: 10") + b"{"  # a request in progress: its body does not end


async def test_connection_above_the_limit_gets_503_and_others_continue(few_connections: Running) -> None:
    """64 clients with a request each. Connections above that are refused, and most of 30 more are closed at once."""
    server = few_connections
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(63)]
    for agent, (_, writer) in enumerate(opened[1:]):
        writer.write(from_client(UNFINISHED, agent))
    stream = from_client(chat("endless", stream=True, max_tokens=100_000), "stream")
    opened[0][1].write(stream)
    assert (await opened[0][0].readline()).startswith(b"HTTP/1.1 200")
    await asyncio.to_thread(wait_until, lambda: idle(server) == 0, "not all have begun")
    opened.append(await asyncio.open_connection("127.0.0.1", server.port))
    opened[-1][1].write(from_client(UNFINISHED, "last"))
    assert (await opened[-1][0].readline()).startswith(b"HTTP/1.1 503")  # nothing is left for the last one
    beyond = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(30)]
    await _wait_until_cut([reader for reader, _ in beyond], 30 - 8 - 1)
    assert b"data: " in await opened[0][0].readuntil(b"data: ")
    for _, writer in (*opened, *beyond):
        writer.transport.abort()
    await asyncio.to_thread(still_serves, server)


async def test_idle_connections_are_closed_for_new_ones(few_connections: Running) -> None:
    """One client holds every connection, some with the start of a head. The longest idle one is closed first."""
    server = few_connections
    idle_ones = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(64)]
    for _, writer in idle_ones[::2]:
        writer.write(b"POST /v1/chat")
    await asyncio.to_thread(wait_until, lambda: connections(server) == 64, "not all are open")
    for _ in range(100):
        assert (await whole_answer(server.port, chat("m"))).startswith(b"HTTP/1.1 200")
    assert await idle_ones[0][0].read() == b"" and connections(server) <= 64
    _, writer = idle_ones[-1]
    writer.write(b"/completions" if writer is idle_ones[-2][1] else chat("m"))
    assert (await idle_ones[-1][0].readline()).startswith(b"HTTP/1.1 200")  # the newest one is still open
    for _, writer in idle_ones:
        writer.transport.abort()


async def test_refused_requests_whose_bodies_never_come_are_closed_for_new_ones(few_connections: Running) -> None:
    """A wrong path or key is answered after the head. The client holds the connection with a body that it announced."""
    server = few_connections
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(64)]
    for reader, writer in opened:
        writer.write(head("/v1/nowhere", "Content-Length: 10"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    assert connections(server) == 64
    for _ in range(20):
        assert (await whole_answer(server.port, chat("m"))).startswith(b"HTTP/1.1 200")
    assert (await opened[0][0].read()).startswith(b"date: ")
    for _, writer in opened:
        writer.transport.abort()


async def test_one_client_cannot_hold_every_connection_with_requests(few_connections: Running) -> None:
    server = few_connections
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(60)]
    for _, writer in opened:
        writer.write(from_client(UNFINISHED, "one"))
    refused = [asyncio.create_task(reader.readline()) for reader, _ in opened]
    done = [await each for each in itertools.islice(asyncio.as_completed(refused), 28)]
    assert all(line.startswith(b"HTTP/1.1 503") for line in done)
    assert sum(not each.done() for each in refused) == 32  # half of the limit
    for _ in range(20):
        assert (await whole_answer(server.port, from_client(chat("m"), "other"))).startswith(b"HTTP/1.1 200")
    for each, (_, writer) in zip(refused, opened, strict=True):
        each.cancel()
        writer.transport.abort()


def idle(server: Running) -> int:
    return sum(each.is_idle for each in list(server.server.server_state.connections))  # type: ignore[union-attr]


async def _wait_until_cut(readers: list[asyncio.StreamReader], count: int) -> None:
    """Wait until the server has closed or reset `count` of the connections."""

    async def is_cut(reader: asyncio.StreamReader) -> bool:
        try:
            return await reader.read(1) == b""
        except ConnectionError:
            return True

    tasks = [asyncio.create_task(is_cut(reader)) for reader in readers]
    async with asyncio.timeout(PATIENCE_S):
        assert all([await each for each in itertools.islice(asyncio.as_completed(tasks), count)])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_200_streams_each_end_once(smollm2: Any) -> None:
    """The default model runs 4 requests and queues 32. The others get 429."""
    models = {"m": LocalModel(path=str(smollm2), threads=1)}
    with serving(config_of(models, ServerConfig(timeout_s=600.0))) as server:
        answers = await asyncio.gather(
            *(whole_answer(server.port, chat("m", stream=True, max_tokens=2)) for _ in range(200))
        )
        finished = [answer for answer in answers if answer.startswith(b"HTTP/1.1 200")]
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429")]
        assert len(finished) + len(refused) == 200 and len(finished) >= 4 + 32
        assert all(answer.count(b"data: [DONE]") == 1 and b'"error"' not in answer for answer in finished)
        assert all(b"retry-after" in answer.lower() and b"[DONE]" not in answer for answer in refused)
        print(f"200 streams: {len(finished)} finished, {len(refused)} refused with 429")
        await asyncio.to_thread(wait_until, lambda: not busy(server), "still busy")


async def test_queued_request_takes_little_memory() -> None:
    model = ScriptedModel(max_sequences=1, queue=500, script=Script(replies=("word",), repeat=True, token_s=0.05))
    with serving(config_of({"m": model})) as server:
        process = psutil.Process()
        async with open_connections(server.port, 500) as writers:
            gc.collect()  # what other tests left
            before = process.memory_info().rss
            for writer in writers:
                writer.write(chat("m", max_tokens=4_000))
            await asyncio.to_thread(
                wait_until, lambda: sum(busy(server).get("m", (0, 0))) == 500, f"not all are queued: {busy(server)}"
            )
            gc.collect()
            each = (process.memory_info().rss - before) / 500
            print(f"a queued request: {each / 1024:.1f} KiB")
            assert each < 100 * 1024
        await asyncio.to_thread(wait_until, lambda: not busy(server), "still busy")
