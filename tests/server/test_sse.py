"""EventStream: pings in silence, one last frame for a failure, stalled clients and shutdown."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx
import msgspec
import pytest

from gateway.config.tables import LocalModel, ServerConfig
from gateway.engines.base import Emit, EngineStatus, Prepared
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import EngineFailed
from gateway.generation import Generation, Meter, Started, TextDelta, Usage
from gateway.server.connections import PENDING_LIMIT_S
from gateway.server.sse import PING, SEND_TIMEOUT_S, EventStream, frame
from tests.support.server import PATIENCE_S, Running, config_of, scripted, serving, wait_until
from tests.support.stepped_device import SteppedDevice
from tests.support.virtual_time import in_virtual_time, now

CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
PATH = "/v1/chat/completions"


class Source:
    """The items of `pieces`. Like a job, it loses no item when a read is cancelled."""

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        self._pieces = pieces
        self._next: asyncio.Future[bytes] | None = None
        self.is_closed = self.is_over = False

    def poll(self) -> bytes | None:
        return None

    async def __anext__(self) -> bytes:
        self._next = self._next or asyncio.ensure_future(anext(self._pieces))
        try:
            return await asyncio.shield(self._next)
        finally:
            if self._next.done():
                self._next = None

    async def aclose(self) -> None:
        self.is_closed = True
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])
        await self._pieces.aclose()


class Ready:
    """Items that are there."""

    def __init__(self, items: list[bytes]) -> None:
        self._items = items

    @property
    def is_over(self) -> bool:
        return not self._items

    def poll(self) -> bytes | None:
        return self._items.pop(0) if self._items else None

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def aclose(self) -> None: ...


class Fed:
    """An item in each turn of the event loop, before the other tasks of the stream run."""

    is_over = False

    def __init__(self, items: int) -> None:
        self.left = items
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._feeding: asyncio.Task[None] | None = None

    def poll(self) -> None: ...

    async def __anext__(self) -> bytes:
        self._feeding = self._feeding or asyncio.create_task(self._feed())
        return await self._queue.get()

    async def _feed(self) -> None:
        while self.left:
            self.left -= 1
            self._queue.put_nowait(b"1")
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()


def as_is(piece: bytes) -> list[bytes]:
    return [piece]


def test_frame_is_one_data_line_and_a_blank_line() -> None:
    assert frame({"a": "x\ny"}) == b'data: {"a":"x\\ny"}\n\n'
    assert frame({"a": 1}, "message_start") == b'event: message_start\ndata: {"a":1}\n\n'


def test_frame_has_no_other_line_break() -> None:
    text = "".join(map(chr, [*range(0x20), 0x7F, 0x85, 0xA0, 0x2028, 0x2029, 0xFEFF]))
    encoded = frame({"a": text})
    assert len(encoded.decode().splitlines()) == 2
    assert msgspec.json.decode(encoded.removeprefix(b"data: ")) == {"a": text}


def test_silent_stream_sends_comments() -> None:
    device = SteppedDevice()
    model = scripted("Hi")
    engine = ScriptedEngine("m", model, clock=device.clock, sleep=device.sleep)
    with serving(config_of({"m": model}, ServerConfig(ping_s=0.1)), {"m": engine}) as server, server.http() as http:
        device.allowed = device.calls
        with http.stream("POST", PATH, json=CHAT) as response:
            lines = response.iter_lines()
            before = [line for line in itertools.islice(lines, 6) if line]  # each comment and the blank line after it
            device.allowed = math.inf
            after = list(lines)
    assert before == [": keepalive"] * 3
    assert "data: [DONE]" in after


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson"])
@in_virtual_time
async def test_comments_are_sent_only_in_silence_of_event_streams(media_type: str) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for pause_s in (0.0, 0.0, 35.0, 0.0):
            await asyncio.sleep(pause_s)
            yield b"data: 1\n\n"

    stream = EventStream(Source(pieces()), as_is, failed=lambda error: b"", ping_s=15, media_type=media_type)
    sent = [body for body in await _bodies(stream) if body]
    pings = [PING, PING] if media_type == "text/event-stream" else []
    assert sent == [b"data: 1\n\n"] * 2 + pings + [b"data: 1\n\n"] * 2


class Raising:
    """An engine that fails in the middle of an answer. Counts its ended runs."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.ended_runs = 0

    status = EngineStatus(state="ready")
    text_tools = None
    takes_turns = False

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...

    def free_cache(self) -> None: ...

    async def lost(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def prepare(self, generation: Generation) -> Prepared:
        return Prepared(generation=generation)

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        try:
            emit(Started(prompt_tokens=1))
            emit(TextDelta("half an ans"))
            raise self.error
        finally:
            self.ended_runs += 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineFailed("The NPU is gone."), "engine_failed"), (RuntimeError("/secret/path"), None)],
    ids=["known", "unexpected"],
)
def test_failure_is_one_last_frame(error: Exception, code: str | None) -> None:
    engine = Raising(error)
    with serving(config_of({"m": LocalModel()}), {"m": engine}) as server, server.http() as http:
        response = http.post(PATH, json=CHAT)
        frames = response.text.removesuffix("\n\n").split("\n\n")
        assert response.status_code == 200
        assert "half an ans" in frames[1]
        assert sum("error" in line for line in frames) == 1
        assert msgspec.json.decode(frames[-1].removeprefix("data: "))["error"]["code"] == code
        assert "secret" not in response.text
        assert http.get("/healthz").status_code == 200
    assert engine.ended_runs == 1


async def test_unexpected_exception_is_logged_and_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        raise KeyError("/secret/path")

    stream = EventStream(Source(pieces()), as_is, failed=lambda error: error.message.encode(), ping_s=15)
    sent = await _bodies(stream)
    assert sent[0] == b"data: 1\n\n" and b"secret" not in sent[1]
    assert "KeyError" in caplog.text


async def test_source_is_closed_when_client_disconnects_before_first_frame() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"never read"

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    source = Source(pieces())
    stream = EventStream(source, as_is, failed=lambda error: b"", ping_s=15)
    await stream({"type": "http", "method": "POST", "state": {}}, gone, _swallow)
    assert source.is_closed


async def test_disconnect_ends_a_stream_that_gets_an_item_in_each_turn_of_the_event_loop() -> None:
    async def gone() -> dict[str, str]:
        for _ in range(10):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    source = Fed(1000)
    stream = EventStream(source, as_is, failed=lambda error: b"", ping_s=15)
    await stream({"type": "http", "method": "POST", "state": {}}, gone, _swallow)
    assert source.left > 900


@in_virtual_time
async def test_the_end_follows_the_last_frame_in_its_turn_of_the_event_loop_and_no_task_stays() -> None:
    sent: list[object] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message.get("body"))
        asyncio.get_running_loop().call_soon(sent.append, "next turn")

    stream = EventStream(Ready([b"1", b"2"]), as_is, failed=lambda error: b"", ping_s=15)
    await stream({"type": "http", "method": "POST", "state": {}}, _connected, send)
    await asyncio.sleep(0)
    assert sent[-4:] == [b"12", b"", "next turn", "next turn"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_frames_of_items_before_a_failure_are_sent() -> None:
    def encode(item: bytes) -> list[bytes]:
        if item == b"2":
            raise EngineFailed("It cannot be encoded.")
        return [item]

    stream = EventStream(Ready([b"1", b"2", b"3"]), encode, failed=lambda error: error.message.encode(), ping_s=15)
    assert await _bodies(stream) == [b"1It cannot be encoded.", b""]


@in_virtual_time
async def test_request_of_stalled_client_is_cancelled() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"data: 1\n\n"

    async def stuck(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    source = Source(pieces())
    stream = EventStream(source, as_is, failed=lambda error: b"", ping_s=15)
    await stream({"type": "http", "method": "POST", "state": {}}, _connected, stuck)
    assert source.is_closed
    assert now() == SEND_TIMEOUT_S


def test_stalled_client_does_not_delay_others() -> None:
    words = scripted("word " * 50, repeat=True, context_length=10_000_000)
    with serving(config_of({"m": words})) as server, server.http(timeout=PATIENCE_S) as http:
        with closing(server.connect()) as stalled:
            stalled.sendall(raw_request({**CHAT, "max_tokens": 1_000_000}))
            stalled.recv(100)  # and no more
            assert http.post(PATH, json={**CHAT, "max_tokens": 5}).status_code == 200
            assert running(server) == 1  # the engine waits for the stalled client
        wait_until(lambda: running(server) == 0, "the request of the disconnected client was not cancelled")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_shutdown_lets_short_answer_finish(stream: bool) -> None:
    with one_answer_at_shutdown(stream, ServerConfig(shutdown_grace_s=PATIENCE_S)) as (device, reply):
        device.allowed = math.inf
        response = reply.result(PATIENCE_S)
    assert response.status_code == 200
    assert "[DONE]" in response.text if stream else response.json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_shutdown_ends_long_answer_with_error(stream: bool) -> None:
    with one_answer_at_shutdown(stream, ServerConfig(shutdown_grace_s=0.5)) as (_, reply):
        response = reply.result(PATIENCE_S)
    if stream:
        *_, last = response.text.removesuffix("\n\n").split("\n\n")
        assert msgspec.json.decode(last.removeprefix("data: "))["error"]["code"] == "model_not_ready"
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_not_ready")


@contextmanager
def one_answer_at_shutdown(
    stream: bool, config: ServerConfig
) -> Iterator[tuple[SteppedDevice, Future[httpx.Response]]]:
    """A server that has got its signal while an answer runs. The device stops after 3 tokens until the test lets it."""
    device = SteppedDevice()
    model = scripted("a b c d e f g h")
    engine = ScriptedEngine("m", model, clock=device.clock, sleep=device.sleep)
    with (
        serving(config_of({"m": model}, config), {"m": engine}) as server,
        server.http(timeout=PATIENCE_S) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        device.allowed = device.calls + 3
        reply = pool.submit(http.post, PATH, json={**CHAT, "stream": stream})
        wait_until(lambda: device.calls > device.allowed, "the answer did not begin")
        server.stop()
        yield device, reply


def test_shutdown_does_not_wait_for_stalled_clients(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the server's own limits, waiting for one of these clients would never end."""
    monkeypatch.setattr("gateway.server.sse.SEND_TIMEOUT_S", 3600.0)
    monkeypatch.setattr("gateway.server.body.BODY_TIMEOUT_S", 3600.0)
    monkeypatch.setattr("gateway.server.connections.PENDING_LIMIT_S", dict.fromkeys(PENDING_LIMIT_S, 3600.0))
    endless = scripted("word " * 50, repeat=True, context_length=10_000_000)
    request = raw_request({**CHAT, "max_tokens": 1_000_000})
    with serving(config_of({"m": endless}, ServerConfig(shutdown_grace_s=0.2))) as server:
        reads_no_more, sends_no_more, silent = server.connect(), server.connect(), server.connect()
        reads_no_more.sendall(request)
        reads_no_more.recv(100)
        sends_no_more.sendall(request[:-10])
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for connection in (reads_no_more, sends_no_more, silent):
        connection.close()


def raw_request(body: dict[str, object]) -> bytes:
    content = msgspec.json.encode(body)
    return f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def running(server: Running) -> int:
    return int(server.app.state.router.status()[0].running)


async def _bodies(stream: EventStream) -> list[bytes]:
    sent: list[bytes] = []

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            assert isinstance(message["body"], bytes)
            sent.append(message["body"])

    await stream({"type": "http", "method": "POST", "state": {}}, _connected, send)
    return sent


async def _connected() -> dict[str, str]:
    await asyncio.Event().wait()
    return {}


async def _swallow(message: dict[str, object]) -> None: ...
