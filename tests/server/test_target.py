"""HEAD for every GET route, and request targets in absolute form, over a raw socket."""

from __future__ import annotations

import httpx
import pytest

from gateway.app import HANDLERS
from tests.support.server import Running

GET_PATHS = sorted(
    path.replace("{model_id:path}", "m").replace("{file_path:path}", "icon.svg")
    for handler in HANDLERS
    for path in handler.paths
    if "GET" in handler.http_methods and "response_id" not in path and path != "/gateway/usage"
)


def reply(server: Running, request_line: str, host: str = "localhost") -> tuple[bytes, bytes, bytes]:
    """Status, headers and body."""
    raw = server.exchange(f"{request_line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = raw.partition(b"\r\n\r\n")
    status, _, headers = head.partition(b"\r\n")
    return status.split()[1], headers.lower(), body


def test_there_are_get_paths() -> None:
    assert {"/", "/health", "/healthz", "/v1/models", "/v1/models/m", "/api/tags", "/api/version"} <= set(GET_PATHS)


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_is_get_without_a_body(server: Running, http: httpx.Client, path: str) -> None:
    status, headers, body = reply(server, f"HEAD {path}")
    got = http.get(path)
    assert (int(status), body) == (got.status_code, b"") == (200, b"")
    assert f"content-type: {got.headers['content-type']}".encode() in headers
    assert b"content-length:" in headers


def test_head_of_a_post_route_is_405_and_of_an_unknown_path_404(server: Running) -> None:
    assert reply(server, "HEAD /v1/chat/completions")[::2] == (b"405", b"")
    assert reply(server, "HEAD /v1/nothing")[::2] == (b"404", b"")
    assert reply(server, "HEAD /v1/models/unknown")[::2] == (b"404", b"")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://127.0.0.1:8000/v1/models", b"200"),
        ("HTTP://LocalHost/v1/models", b"200"),
        ("https://localhost:1/v1/models?x=1", b"200"),
        ("http://[::1]:8000/v1/models/m", b"200"),
        ("http://localhost", b"200"),
        ("http://localhost/", b"200"),
        ("http://localhost/v1/nothing", b"404"),
        ("ftp://localhost/v1/models", b"404"),
        ("http:///v1/models", b"404"),
        ("http://user@localhost/v1/models", b"404"),
    ],
)
def test_target_in_absolute_form_is_served(server: Running, target: str, status: bytes) -> None:
    assert reply(server, f"GET {target}")[0] == status


def test_host_of_an_absolute_target_replaces_the_header(server: Running) -> None:
    assert reply(server, "GET http://evil.example/v1/models")[0] == b"403"
    assert reply(server, "GET http://localhost/v1/models", host="evil.example")[0] == b"200"


def test_post_and_head_in_absolute_form(server: Running) -> None:
    assert reply(server, "HEAD http://127.0.0.1/v1/models")[::2] == (b"200", b"")
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    head = f"POST http://127.0.0.1:{server.port}/v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    raw = server.exchange(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert raw.startswith(b"HTTP/1.1 200") and b"Hello." in raw


@pytest.mark.parametrize("target", ["*", "/v1/models", "http://localhost/v1/models"])
def test_options_lists_methods(server: Running, target: str) -> None:
    status, headers, _ = reply(server, f"OPTIONS {target}")
    assert status == b"204" and b"allow:" in headers and b"get" in headers
