"""Streams over a real socket: pings while waiting, one last frame for a failure, and an end for whatever happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import closing

import httpx
import msgspec
import pytest

from gateway.config import LocalModel, ServerConfig
from gateway.engines.base import Emit, EngineStatus, Prepared
from gateway.errors import EngineFailed
from gateway.generation import Generation, Meter, Started, TextDelta, Usage
from gateway.server.sse import PING, EventStream, frame
from tests.support.server import Running, config_of, scripted, serving

CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
PATH = "/v1/chat/completions"


class Source:
    """What `pieces` yields, read by tasks that may be cancelled, as a job is."""

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        self._pieces = pieces
        self._next: asyncio.Future[bytes] | None = None
        self.is_closed = False

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
    config = config_of({"m": scripted("Hi", ttft_s=0.5)}, ServerConfig(ping_s=0.1))
    with serving(config) as server, server.http() as http:
        text = http.post(PATH, json=CHAT).text
    pings, rest = text.split("data: ", 1)
    assert 2 <= pings.count(": keepalive\n\n") <= 5
    assert rest.endswith("data: [DONE]\n\n") and "keepalive" not in rest


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson"])
async def test_comments_are_sent_only_in_silence_of_event_streams(media_type: str) -> None:
    async def source() -> AsyncGenerator[bytes, None]:
        for pause_s in (0.0, 0.0, 0.5, 0.0):
            await asyncio.sleep(pause_s)
            yield b"data: 1\n\n"

    stream = EventStream(Source(source()), as_is, failed=lambda error: b"", ping_s=0.2, media_type=media_type)
    sent = [body for body in await _bodies(stream) if body]
    before, silence, after = sent[:2], sent[2:-2], sent[-2:]
    assert PING not in (*before, *after)
    assert set(silence) == ({PING} if media_type == "text/event-stream" else set())


class Bursting:
    """An engine whose stream raises what no engine should, and notes when it is closed."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.closed = 0

    status = EngineStatus(state="ready")
    text_tools = None

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...

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
            self.closed += 1


@pytest.mark.parametrize("error", [EngineFailed("The NPU is gone."), RuntimeError("/secret/path")])
def test_failure_is_one_last_frame(error: Exception) -> None:
    engine = Bursting(error)
    with serving(config_of({"m": LocalModel()}), {"m": engine}) as server, server.http() as http:
        response = http.post(PATH, json=CHAT)
        frames = response.text.removesuffix("\n\n").split("\n\n")
        assert response.status_code == 200
        assert "half an ans" in frames[1]
        assert sum("error" in line for line in frames) == 1
        assert msgspec.json.decode(frames[-1].removeprefix("data: "))["error"]["code"] == "engine_failed"
        assert "secret" not in response.text
        assert http.get("/healthz").status_code == 200
    assert engine.closed == 1


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
    await stream({"type": "http", "method": "POST"}, gone, _swallow)
    assert source.is_closed


async def test_request_of_stalled_client_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.server.sse.SEND_TIMEOUT_S", 0.05)

    async def pieces() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"data: 1\n\n"

    async def stuck(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    source = Source(pieces())
    stream = EventStream(source, as_is, failed=lambda error: b"", ping_s=15)
    with caplog.at_level(logging.INFO):
        await stream({"type": "http", "method": "POST"}, _connected, stuck)
    assert source.is_closed
    assert "stopped reading" in caplog.text


def test_stalled_client_does_not_delay_others() -> None:
    words = scripted("word " * 50, repeat=True, context_length=10_000_000)
    with serving(config_of({"m": words})) as server, server.http() as http:
        with closing(server.connect()) as slow:
            content = msgspec.json.encode({**CHAT, "max_tokens": 1_000_000})
            head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            slow.sendall(head.encode() + content)
            slow.recv(100)  # and no more
            time.sleep(0.5)
            begun = time.monotonic()
            assert http.post(PATH, json={**CHAT, "max_tokens": 5}).status_code == 200
            assert time.monotonic() - begun < 2
        time.sleep(0.5)
        assert server.app.state.router.status()[0].running == 0


@pytest.mark.parametrize("stream", [True, False])
def test_shutdown_lets_short_answer_finish(stream: bool) -> None:
    config = config_of({"m": scripted("a b c d e f g h", token_s=0.1)})
    with serving(config) as server, server.http() as http:
        with http.stream("POST", PATH, json={**CHAT, "stream": stream}) as response:
            server.stop()
            response.read()
        assert response.status_code == 200
        assert "[DONE]" in response.text if stream else response.json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_shutdown_ends_long_answer_with_error(stream: bool) -> None:
    endless = scripted("word", repeat=True, token_s=0.01, context_length=10_000_000)
    config = config_of({"m": endless}, ServerConfig(shutdown_grace_s=0.5))
    with serving(config) as server, server.http() as http:
        request = http.build_request("POST", PATH, json={**CHAT, "stream": stream, "max_tokens": 1_000_000})
        begun = time.monotonic()
        response = _while_stopping(server, http, request)
        assert 0.4 < time.monotonic() - begun < 5
    if stream:
        *_, last = response.text.removesuffix("\n\n").split("\n\n")
        assert msgspec.json.decode(last.removeprefix("data: "))["error"]["code"] == "model_not_ready"
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_not_ready")


def test_shutdown_does_not_wait_for_stalled_clients(caplog: pytest.LogCaptureFixture) -> None:
    endless = scripted("word " * 50, repeat=True, context_length=10_000_000)
    config = config_of({"m": endless}, ServerConfig(shutdown_grace_s=0.2))
    content = msgspec.json.encode({**CHAT, "max_tokens": 1_000_000})
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with serving(config) as server:
        reads_no_more, sends_no_more, silent = server.connect(), server.connect(), server.connect()
        reads_no_more.sendall(head + content)
        reads_no_more.recv(100)
        sends_no_more.sendall(head + b"{")
        time.sleep(0.3)
        begun = time.monotonic()
    assert time.monotonic() - begun < 4
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for connection in (reads_no_more, sends_no_more, silent):
        connection.close()


def _while_stopping(server: Running, http: httpx.Client, request: httpx.Request) -> httpx.Response:
    from threading import Timer

    timer = Timer(0.2, server.stop)
    timer.start()
    response = http.send(request)
    timer.join()
    return response


async def _bodies(stream: EventStream) -> list[bytes]:
    sent: list[bytes] = []

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            assert isinstance(message["body"], bytes)
            sent.append(message["body"])

    await stream({"type": "http", "method": "POST"}, _connected, send)
    return sent


async def _connected() -> dict[str, str]:
    await asyncio.Event().wait()
    return {}


async def _swallow(message: dict[str, object]) -> None: ...
