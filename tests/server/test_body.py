"""Limits on request bodies: size and time to arrive."""

from __future__ import annotations

import select
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.support.server import Running, error_of

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def test_body_over_the_limit_is_413_with_content_length_or_chunked(server: Running, http: httpx.Client) -> None:
    for content in (b" " * 100_001, iter([b" " * 50_000] * 3)):
        response = http.post(PATH, content=content)
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    assert http.post(PATH, content=b" " * 100_000).status_code == 400
    with closing(server.connect()) as connection:  # the header alone is enough
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_stalled_bodies_do_not_delay_other_requests(server: Running, http: httpx.Client) -> None:
    stalled = [server.connect() for _ in range(50)]
    for connection in stalled:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert http.post(PATH, json=CHAT).status_code == 200
    answered, _, _ = select.select(stalled, [], [], 0)
    assert not answered  # so the request above did not wait for their time limit
    for connection in stalled:
        connection.close()


def test_stalled_body_is_408_and_closes_the_connection(monkeypatch: pytest.MonkeyPatch, server: Running) -> None:
    monkeypatch.setattr("gateway.server.body.BODY_TIMEOUT_S", 0.2)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
    assert server.exchange(head.encode()).startswith(b"HTTP/1.1 408")
