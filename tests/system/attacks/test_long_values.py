"""A long value in any part of a request is not repeated in the refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from msgspec import inspect as types

from gateway.config.tables import ServerConfig
from tests.support.server import Running, config_of, scripted, serving
from tests.system.input.app import AppClient
from tests.system.input.test_input import ENDPOINTS, check, client, fields_of
from tests.system.input.values import Raw, around, encoded

LONGEST_REPLY = 4096  # bytes
LENGTH = 20_000  # five times the longest reply
LONG: dict[str, Any] = {
    "string": "x" * LENGTH,
    "escaped": "\0" * LENGTH,  # six times longer in JSON
    "path": "$.messages[0] - at `$.messages[0]`" * 1000,
    "integer": Raw("1" * LENGTH),
    "float": Raw("1." + "1" * LENGTH),
    "key": {"k" * LENGTH: 1},
    "type": {"type": "t" * LENGTH, "name": "n" * LENGTH, "role": "r" * LENGTH, "format": "f" * LENGTH},
    "list": ["x" * LENGTH],
    "schema": {"type": "object", "properties": {"p" * LENGTH: {"type": "t" * LENGTH}}, "$ref": "#/" + "r" * LENGTH},
}

__all__ = ["client"]  # the fixture


@pytest.mark.parametrize("name", sorted(ENDPOINTS.keys() - {"chat", "completions"}))
def test_long_value_of_a_field_is_not_repeated(client: AppClient, name: str) -> None:
    """The two that are left out are the same with a scripted model."""
    endpoint = ENDPOINTS[name]
    for path in fields_of(name):
        for kind, value in LONG.items():
            first = around(types.type_info(endpoint.request), path, value)[path[0]]
            status, answer = client.post(endpoint.path, encoded({**endpoint.body, path[0]: first}))
            check(endpoint, status, answer)
            assert status == 200 or len(answer) <= LONGEST_REPLY, (path, kind, answer[:500])


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(config_of({"m": scripted("Hello.")}, ServerConfig(api_keys={"a": "key"}))) as running:
        yield running


LONG_NAME = "n" * 30_000
AUTHORIZED = {"authorization": "Bearer key"}


@pytest.mark.parametrize(
    "headers",
    [
        {"host": LONG_NAME},
        {"origin": f"https://{LONG_NAME}"},
        {"authorization": f"Bearer {LONG_NAME}"},
        {"x-api-key": LONG_NAME, "authorization": ""},
        {"x-request-id": LONG_NAME},
        {"x-request-timeout-ms": "9" * 30_000},
        {"x-max-ttft-ms": LONG_NAME},
        {"x-gateway-priority": LONG_NAME},
        {"content-type": LONG_NAME},
        {"accept": LONG_NAME},
        {"anthropic-version": LONG_NAME},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_long_header_is_not_repeated(server: Running, headers: dict[str, str]) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    with server.http(headers={**AUTHORIZED, **headers}) as http:
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
            reply = http.post(path, json={**chat, "max_tokens": 1})
            assert size_of(reply) <= LONGEST_REPLY


@pytest.mark.parametrize(
    "path", ["/v1/models/", "/v1/responses/", "/", "/api/", "/v1/messages/", "/schema/", "/v1/chat?"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "HEAD", "M" * 30_000])
def test_long_path_and_method_are_not_repeated(server: Running, method: str, path: str) -> None:
    headers = "Host: 127.0.0.1\r\nAuthorization: Bearer key\r\nConnection: close"
    head = f"{method} {path}{LONG_NAME} HTTP/1.1\r\n{headers}\r\n\r\n"
    with closing(server.connect()) as connection:
        connection.sendall(head.encode())
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 4" if method != "OPTIONS" else b"HTTP/1.1 ")
    assert len(reply) <= LONGEST_REPLY


def test_long_names_in_a_body_are_not_repeated(server: Running) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {**chat, "model": "x" * 7_000_000}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": "r" * 7_000_000, "content": "x"}]}),
        ("/v1/chat/completions", {**chat, "tool_choice": {"type": "function", "function": {"name": "x" * 7_000_000}}}),
        ("/v1/messages", {**chat, "messages": [{"role": "user", "content": [{"type": "t" * 7_000_000}]}]}),
        ("/v1/responses", {"model": "m", "input": "x", "previous_response_id": "r" * 7_000_000}),
        ("/v1/responses", {"model": "m", "input": [{"type": "item_reference", "id": "r" * 7_000_000}]}),
        ("/v1/responses", {"model": "m", "input": [{"type": "t" * 7_000_000}]}),
    ]
    with server.http(headers=AUTHORIZED) as http:
        for path, body in bodies:
            reply = http.post(path, content=json.dumps(body).encode())
            assert (
                reply.status_code == 200 or 400 <= reply.status_code < 500
            )  # 200: a part of another server is left out
            assert size_of(reply) <= LONGEST_REPLY


def size_of(reply: httpx.Response) -> int:
    """Bytes of the body and of the headers."""
    return len(reply.content) + sum(len(name) + len(value) for name, value in reply.headers.raw)
