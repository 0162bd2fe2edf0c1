"""What an upstream server repeats, where it leads, how it refuses: a key, a loop of gateways, a closed connection."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from gateway.config.tables import BreakerConfig, UpstreamModel
from tests.support.hostile import (
    CHAT,
    ENDPOINTS,
    Behave,
    Hostile,
    chunk,
    gateway_before,
    hostile,
    post,
    stream,
    text_of,
)
from tests.support.server import Running, config_of, scripted, serving

KEY = "sk-upstream-secret-0123456789"


@pytest.fixture(scope="module")
def gateway(server: Hostile) -> Iterator[Running]:
    with gateway_before(server, api_key=KEY) as running:
        yield running


def with_status(status: int, body: Any) -> bytes:
    text = text_of(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    return head.encode() + text


REPEATED = {
    **{
        f"status_{status}": with_status(status, {"error": {"message": f"Bearer {KEY} x"}}) for status in (200, 400, 500)
    },
    "param": with_status(422, {"error": {"message": "x", "param": KEY, "code": KEY, "type": KEY}}),
    "detail": with_status(413, {"detail": KEY}),
    "escaped": with_status(400, {"error": {"message": KEY}}).replace(b"sk-upstream", b"\\u0073k-upstr\\u0065am"),
    "at_the_cut": with_status(400, {"error": {"message": "x" * 490 + KEY}}),
    "other_key": with_status(429, {"error": {"message": KEY}}),
    "event": stream({"error": {"message": f"x {KEY}"}}),
    "event_later": stream(chunk(content="a"), {"error": f"x {KEY}"}),
}


@pytest.mark.parametrize("answer", REPEATED.values(), ids=REPEATED)
def test_key_that_the_server_repeats_is_not_shown(
    server: Hostile, gateway: Running, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = answer
    if b"\\u0073" in answer:  # the same length in characters, more bytes
        head, _, body = answer.partition(b"\r\n\r\n")
        server.answer = head.rpartition(b"\r\n")[0] + b"\r\nconnection: close\r\n\r\n" + body
    caplog.set_level(logging.DEBUG, "gateway")
    for path, fields in ENDPOINTS.items():
        for streamed in (False, True):
            _, content = post(gateway, path, {**fields, "stream": streamed})
            assert KEY[:10].encode() not in content and b"error" in content
    assert KEY not in caplog.text


def relay(gateway: Running) -> Behave:
    """Behaves as a server that is the gateway itself."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Hostile) -> None:
        reader, other = await asyncio.open_connection("127.0.0.1", gateway.port)
        with closing(other):
            other.write(server.requests[-1].replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    return answer  # type: ignore[return-value]


def leads_to(server: Hostile, gateway: Running) -> None:
    behave: Any = relay(gateway)
    server.answer = lambda reader, writer: behave(reader, writer, server)


@pytest.mark.parametrize("max_sequences", [1, 4])
def test_url_of_the_gateway_itself_is_one_502(max_sequences: int) -> None:
    with hostile() as server, gateway_before(server, max_sequences=max_sequences) as gateway:
        leads_to(server, gateway)
        status, content = post(gateway, "/v1/chat/completions", CHAT)
        assert (status, len(server.requests)) == (502, 1)
        assert "sends requests back to this gateway" in json.loads(content)["error"]["message"]


def test_circle_of_two_gateways_with_fallback_ends_and_the_fallback_answers() -> None:
    breaker = BreakerConfig(enabled=False)
    with hostile() as one, hostile() as two, gateway_before(one, max_sequences=1) as first:
        models = {
            "m": UpstreamModel(url=f"http://127.0.0.1:{two.port}/v1", max_sequences=1, fallback="s"),
            "s": scripted("fallback"),
        }
        with serving(config_of(models, breaker=breaker)) as second:
            leads_to(one, second)
            leads_to(two, first)
            status, content = post(first, "/v1/chat/completions", CHAT)
            assert (status, len(one.requests), len(two.requests)) == (200, 1, 1)
            assert json.loads(content)["choices"][0]["message"]["content"] == "fallback"


def test_target_that_is_this_gateway_does_not_answer_with_the_fallback() -> None:
    with hostile() as circle, hostile() as good:
        circle.answer = good.answer = stream(chunk(content="good"), chunk("stop"))  # also at the start
        targets = tuple(f"http://127.0.0.1:{server.port}/v1" for server in (circle, good))
        models = {"m": UpstreamModel(targets=targets, fallback="s"), "s": scripted("fallback")}
        with serving(config_of(models)) as gateway:
            leads_to(circle, gateway)
            for _ in range(2):
                status, content = post(gateway, "/v1/chat/completions", CHAT)
                assert status == 200 and json.loads(content)["choices"][0]["message"]["content"] == "good"


def test_model_that_is_another_model_of_the_same_gateway_answers() -> None:
    """Not a loop: it passes each model once."""
    with hostile() as server:
        models = {
            "a": UpstreamModel(url=f"http://127.0.0.1:{server.port}/v1", upstream_model="b"),
            "b": UpstreamModel(url=f"http://127.0.0.1:{server.port}/v1", upstream_model="s"),
            "s": scripted("found"),
        }
        with serving(config_of(models)) as gateway:
            leads_to(server, gateway)
            status, content = post(gateway, "/v1/chat/completions", {**CHAT, "model": "a"})
            assert status == 200 and json.loads(content)["choices"][0]["message"]["content"] == "found"
            assert len(server.requests) == 2


def test_server_that_cuts_off_large_requests_stays_available_for_others(
    server: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client's large prompts must not open the breaker for all."""

    async def read_head(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if length > 100_000:
            raise ConnectionResetError
        return head + await reader.readexactly(length)

    monkeypatch.setattr("tests.support.hostile.read_request", read_head)
    with gateway_before(server, BreakerConfig(window=4, min_calls=2, open_s=1000.0)) as gateway:
        server.answer = stream(chunk(content="Hello"), chunk("stop"))
        large = {"messages": [{"role": "user", "content": "x" * 6_000_000}]}
        for _ in range(6):
            status, content = post(gateway, "/v1/chat/completions", large)
            assert status == 502 and "large request" in json.loads(content)["error"]["message"]
        assert post(gateway, "/v1/chat/completions", CHAT)[0] == 200
