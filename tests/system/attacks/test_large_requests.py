"""Large requests and floods: no callback of the event loop takes more than 50 ms of processor time.

tests/conftest.py checks the event loop after each test. Here each body is as large as the limits allow, and is answered
or refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import msgspec
import pytest

from gateway.routes.responses_api.parse_items import MAX_REFERENCES
from tests.support.server import Running, config_of, scripted, serving

LARGEST = 8 * 2**20 - 4096  # bytes; the default of max_body_bytes is 8 MiB
TURN: Any = {"role": "user", "content": "x"}
TEXT: Any = {"type": "text", "text": "x"}
CALL: Any = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ITEM_CALL: Any = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
WIDE: Any = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(9000)}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(config_of({"m": scripted("Hello.", context_length=100_000_000)})) as running:
        yield running


def tools(count: int, parameters: Any) -> Any:
    return [
        {"type": "function", "function": {"name": f"f{number}", "parameters": parameters}} for number in range(count)
    ]


def chat(**fields: Any) -> Any:
    return "/v1/chat/completions", {"messages": [TURN], **fields}


def anthropic(*messages: Any, **fields: Any) -> Any:
    return "/v1/messages", {"max_tokens": 1, "messages": [*messages], **fields}


def responses(items: Any, **fields: Any) -> Any:
    return "/v1/responses", {"input": items, "store": False, **fields}


def filler(name: str, value: bytes) -> Any:
    """A chat with one more field, given as JSON text."""
    return "/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"x"}],"%s":%s}' % (
        name.encode(),
        value,
    )


def listed(value: bytes, count: int) -> bytes:
    return b"[" + b",".join([value] * count) + b"]"


def keyed(value: bytes, count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":%s' % (number, value) for number in range(count)) + b"}"


CASES: dict[str, Any] = {
    "messages": chat(messages=[TURN] * 10_000),
    "too many messages": chat(messages=[TURN] * 100_000),
    "parts in messages": chat(messages=[{"role": "user", "content": [TEXT] * 4}] * 9_999),
    "parts in one message": chat(messages=[{"role": "user", "content": [TEXT] * 120_000}]),
    "calls in one message": chat(messages=[{"role": "assistant", "tool_calls": [CALL] * 60_000}, TURN]),
    "text": chat(messages=[{"role": "user", "content": "x" * (LARGEST - 200)}]),
    "escaped text": chat(messages=[{"role": "user", "content": "\0" * (LARGEST // 6 - 200)}]),
    "text of three bytes": chat(messages=[{"role": "user", "content": "東" * (LARGEST // 3 - 200)}]),
    "role": chat(messages=[{"role": "r" * 7_000_000, "content": "x"}]),
    "path in a role": chat(messages=[{"role": " - at `$.a`" * 600_000, "content": "x"}]),
    "tools": chat(tools=tools(20, WIDE)),
    "many tools": chat(tools=tools(1000, {"type": "object", "properties": {f"p{n}": {} for n in range(150)}})),
    "stop": chat(stop=["x"] * 100_000),
    "logit_bias": chat(logit_bias={str(number): 1 for number in range(200_000)}),
    "prediction": chat(prediction={"type": "content", "content": [TEXT] * 120_000}),
    "unknown list": filler("unknown", listed(b"1", 490_000)),
    "unknown object": filler("unknown", keyed(b"1", 240_000)),
    "unknown strings": filler("metadata", keyed(b'"x"', 240_000)),
    "nested": filler("unknown", b"[" * 490_000 + b"]" * 490_000),
    "nested objects": filler("unknown", b'{"a":' * 490_000 + b"1" + b"}" * 490_000),
    "template variables": filler("chat_template_kwargs", b'{"a":%s}' % listed(b"1", 490_000)),
    "equal keys": filler("unknown", b"{" + b",".join([b'"a":1'] * 490_000) + b"}"),
    "long integer": filler("max_tokens", b"1" * 7_000_000),
    "long float": filler("temperature", b"1." + b"1" * 7_000_000),
    "long integers": filler("chat_template_kwargs", b'{"a":%s}' % listed(b"1" * 4200, 1900)),
    "long floats": filler("chat_template_kwargs", b'{"a":%s}' % listed(b"1." + b"7" * 700, 11_000)),
    "spaces": ("/v1/chat/completions", b" " * LARGEST),
    "commas": ("/v1/chat/completions", b"," * LARGEST),
    "prompts": ("/v1/completions", {"prompt": ["x"] * 1000, "max_tokens": 1}),
    "too many prompts": ("/v1/completions", {"prompt": ["x"] * 100_000}),
    "token ids": ("/v1/completions", {"prompt": [1] * 490_000}),
    "lists of token ids": ("/v1/completions", {"prompt": [[1, 1]] * 160_000}),
    "items": responses([TURN] * 10_000),
    "reasoning items": responses([{"type": "reasoning", "summary": []}] * 9_999 + [TURN]),
    "call items": responses([ITEM_CALL] * 9_999 + [TURN]),
    "calls of one turn": responses([{"type": "reasoning", "summary": []}, *([ITEM_CALL] * 9_999)]),
    "instructions": responses("x", instructions="i" * 7_000_000),
    "metadata": responses("x", metadata={f"k{number}": "x" for number in range(200_000)}),
    "system blocks": anthropic(TURN, system=[TEXT] * 120_000),
    "blocks": anthropic({"role": "user", "content": [TEXT] * 120_000}),
    "tool results": anthropic({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}] * 60_000}),
    "tool uses": anthropic(
        TURN,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {"a": 1}}] * 50_000},
    ),
    "ollama messages": ("/api/chat", {"messages": [TURN] * 10_000, "stream": False}),
    "ollama options": ("/api/chat", {"messages": [TURN], "options": {f"o{n}": n for n in range(240_000)}}),
    "ollama context": ("/api/generate", {"prompt": "x", "context": [1] * 480_000, "stream": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_largest_body_does_not_block_the_event_loop(server: Running, case: str) -> None:
    path, body = CASES[case]
    content = body if isinstance(body, bytes) else msgspec.json.encode({"model": "m", **body})
    with server.http() as http:
        reply = http.post(path, content=content)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text[:500]


def test_references_do_not_depend_on_the_number_of_stored_items(server: Running) -> None:
    with server.http() as http:
        for number in range(4):  # the store keeps 25,000 items
            items = [{"type": "reasoning", "id": f"rs_{number}_{index}", "summary": []} for index in range(9_999)]
            stored = http.post("/v1/responses", json={"model": "m", "input": [*items, TURN]})
            assert stored.status_code == 200
        references = [{"type": "item_reference", "id": f"rs_3_{index}"} for index in range(MAX_REFERENCES + 1)]
        for count, status in ((100, 200), (MAX_REFERENCES, 200), (MAX_REFERENCES + 1, 400)):
            reply = http.post("/v1/responses", json={"model": "m", "input": [*references[:count], TURN]})
            assert reply.status_code == status, reply.text[:500]
        unknown = {"type": "item_reference", "id": "rs_0_1"}  # its response was evicted
        assert http.post("/v1/responses", json={"model": "m", "input": [unknown, TURN]}).status_code == 404


def test_references_to_one_large_item_are_limited(server: Running) -> None:
    large = {"role": "user", "content": "x" * 1_000_000, "id": "msg_large"}
    with server.http() as http:
        assert http.post("/v1/responses", json={"model": "m", "input": [large]}).status_code == 200
        reference = {"type": "item_reference", "id": "msg_large"}
        for count, status in ((8, 200), (9, 400)):
            reply = http.post("/v1/responses", json={"model": "m", "input": [reference] * count})
            assert reply.status_code == status, reply.text[:500]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "GET", "DELETE", "BREW"])
def test_flood_of_pipelined_requests_does_not_block_the_event_loop(server: Running, method: str) -> None:
    """As many requests as fit into the limit of pipelined bytes, in one packet."""
    one = f"{method} /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    last = f"{method} /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    count = 50_000 // len(one)
    with closing(server.connect()) as connection:
        connection.sendall(one * count + last)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    assert reply.count(b"HTTP/1.1 ") == count + 1


@pytest.mark.parametrize("field", ["x-many-{}: {}", "cookie: {}={}", "accept: {}/{}", "x-same: {}{}"])
def test_many_headers_do_not_block_the_event_loop(server: Running, field: str) -> None:
    lines = [field.format(number, number) for number in range(60_000 // (len(field) + 6))]
    head = "\r\n".join(["GET /v1/models HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""])
    assert server.exchange(head.encode()).startswith(b"HTTP/1.1 ")


def test_readers_that_stop_do_not_block_the_event_loop() -> None:
    """Twenty streams of long chunks whose clients read nothing, and one client that is answered."""
    models = {"m": scripted("Hello."), "bulky": scripted("x" * 50_000, repeat=True, context_length=1_000_000)}
    body = msgspec.json.encode({"model": "bulky", "messages": [TURN], "stream": True, "max_tokens": 100_000})
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(config_of(models)) as running, running.http() as http:
        stalled = [running.connect() for _ in range(20)]
        for connection in stalled:
            connection.sendall(head + body)
        for _ in range(20):
            assert http.post("/v1/chat/completions", json={"model": "m", "messages": [TURN]}).status_code == 200
        for connection in stalled:
            connection.close()


def test_many_choices_do_not_block_the_event_loop(server: Running) -> None:
    with server.http() as http:
        reply = http.post("/v1/chat/completions", json={"model": "m", "messages": [TURN], "n": 128})
    assert reply.status_code == 200 and len(reply.json()["choices"]) == 128


@pytest.mark.parametrize("path", ["/schema", "/metrics", "/readyz", "/v1/models", "/api/tags", "/"])
def test_page_does_not_block_the_event_loop(server: Running, path: str) -> None:
    assert httpx.get(f"{server.url}{path}", timeout=60).status_code == 200
