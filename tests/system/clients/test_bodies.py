"""Bodies with a wrong length, bodies that are too large or too deep, and the memory that all bodies take together."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest

from gateway.config.tables import ServerConfig
from tests.support.server import PATIENCE_S, Running, config_of, serving, wait_until
from tests.system.clients.conftest import MODELS
from tests.system.clients.raw import PATH, busy, chat, head, read_answer, still_serves

BODY = chat("m").partition(b"\r\n\r\n")[2]
SILENT = "too long and then silence"
LENGTHS = {
    "too short": (["Content-Length: 10"], BODY, b"400"),
    SILENT: ([f"Content-Length: {len(BODY) + 10}"], BODY, b"408"),
    "negative": (["Content-Length: -5"], BODY, b"400"),
    "not a number": (["Content-Length: 0x10"], BODY, b"400"),
    "twice": (["Content-Length: 10", "Content-Length: 11"], BODY, b"400"),
    "huge": (["Content-Length: 99999999999999999999999"], BODY, b"4"),
    "5000 digits": ([f"Content-Length: {'9' * 5000}"], BODY, b"400"),
    "none": ([], BODY, b"400"),
    "chunks without a size": (["Transfer-Encoding: chunked"], b"zz\r\n" + BODY, b"400"),
    "a chunk shorter than its size": (["Transfer-Encoding: chunked"], b"5\r\n{}\r\n0\r\n\r\n", b"4"),
    "a chunk size of 100 digits": (["Transfer-Encoding: chunked"], b"f" * 100 + b"\r\n", b"400"),
    "an unknown coding": (["Transfer-Encoding: gzip"], BODY, b"400"),
    "a head without end": ([f"X: {'y' * 300_000}"], b"", b"400"),
}


@pytest.mark.parametrize("length", LENGTHS)
def test_body_with_wrong_length_is_refused(monkeypatch: pytest.MonkeyPatch, server: Running, length: str) -> None:
    lines, body, status = LENGTHS[length]
    with closing(server.connect()) as connection, monkeypatch.context() as patch:
        if length == SILENT:
            patch.setattr("gateway.server.body.BODY_TIMEOUT_S", 0.5)
        with suppress(ConnectionError):
            connection.sendall(head(PATH, *lines) + body)
        answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:100]
    refusal, _ = json.JSONDecoder().raw_decode(answer.partition(b"\r\n\r\n")[2].decode())
    assert refusal["error"].keys() == {"message", "type", "param", "code"}
    still_serves(server)


def body_with(field: bytes) -> bytes:
    return b'{"messages": [{"role": "user", "content": "x"}], ' + field + b"}"


PARAMETERS = b'"tools": [{"function": {"name": "f", "parameters": %s}}]'
LARGE_BODIES = {
    "4,000,000 brackets": b"[" * 4_000_000,
    "500,000 open objects": b'{"messages":' * 500_000,
    "100,000 nested arrays as messages": b'{"messages": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
    "100,000 nested objects in a schema": body_with(PARAMETERS % (b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    "250,000 messages": b'{"messages": [' + b'{"role":"user","content":""},' * 250_000 + b'{"role":"user"}]}',
    "2,000,000 objects in a schema": body_with(PARAMETERS % (b'{"a":[' + b"{}," * 2_000_000 + b"{}]}")),
    "3,000,000 numbers in a response format": body_with(
        b'"response_format": {"type": "json_object", "schema": {"a":[' + b"1," * 3_000_000 + b"1]}}"
    ),
    "1,500,000 stop strings": body_with(b'"stop": [' + b'"a",' * 1_500_000 + b'"a"]'),
    "a seed of 1,000,000 digits": b'{"seed": ' + b"1" * 1_000_000 + b"}",
    "an exponent of 1,000,000 digits": b'{"temperature": 1e' + b"9" * 1_000_000 + b"}",
    "8,000,000 bytes that are not UTF-8": b"\xff" * 8_000_000,
    "1,000,000 escapes": b'"' + b"\\u0000" * 1_000_000,
}


@pytest.mark.parametrize("body", LARGE_BODIES.values(), ids=LARGE_BODIES.keys())
def test_large_or_deep_json_is_refused_and_others_are_answered(server: Running, body: bytes) -> None:
    with server.http(timeout=PATIENCE_S) as http, server.http(timeout=PATIENCE_S) as other:
        with ExitStack() as stack:
            response = stack.enter_context(http.stream("POST", PATH, content=body))
            response.read()
        assert response.status_code == 400, response.text[:300]
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert len(response.content) < 2_000
        assert other.get("/healthz").status_code == 200


def wait_for_requests(server: Running, count: int) -> None:
    wait_until(lambda: sum(busy(server).get("single", (0, 0))) == count, f"{count} requests are not in progress")


def test_bodies_in_progress_take_bounded_memory() -> None:
    """One client may hold half of four of the largest bodies, the next one half of the rest."""
    largest = 200_000
    fields = {"model": "single", "max_tokens": 100_000, "user": "x" * (largest - 500)}
    with serving(config_of(MODELS, ServerConfig(max_body_bytes=largest))) as server, ExitStack() as stack:

        def send(agent: str, **fields: Any) -> socket.socket:
            connection = stack.enter_context(closing(server.connect()))
            line = f"Host: localhost\r\nUser-Agent: {agent}".encode()
            with suppress(ConnectionError):  # it is refused before its end
                connection.sendall(chat(**fields).replace(b"Host: localhost", line, 1))
            return connection

        for agent, sent, total in (("one", 2, 2), ("two", 1, 3)):
            for _ in range(sent):
                send(agent, **fields)
            wait_for_requests(server, total)
            refused = read_answer(send(agent, **fields))
            assert refused.startswith(b"HTTP/1.1 503") and b"too much memory" in refused
        with server.http() as http:
            assert http.post(PATH, json={"model": "m", "messages": [{"role": "user", "content": "x"}]}).is_success
        stack.close()
        wait_until(lambda: not server.server.server_state.tasks, "a request still runs")
        assert read_answer(send("one", model="m", user="x" * (largest - 500))).startswith(b"HTTP/1.1 200")
