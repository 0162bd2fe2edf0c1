"""`--url` can name any server: whatever JSON it replies, a command prints one line."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway.commands.doctor.gateway_state import fetch
from tests.commands.running.conftest import Command

ENGINE = {"state": "ready", "device": "npu", "load_s": 1.0}
MODEL = {"model": "m", "engine": ENGINE, "running": 0, "waiting": 0, "breaker": {"state": "closed"}}
LINE = {"n": 1, "time": 1.0, "level": "INFO", "text": "a line"}


class OtherServer(ThreadingHTTPServer):
    body = b""
    status = 200
    paths: Sequence[str] = ()  # of the last requests


class Handler(BaseHTTPRequestHandler):
    server: OtherServer

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.paths = [*self.server.paths, self.path]
        self.send_response(self.server.status)
        self.send_header("location", "/moved")
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def other() -> Iterator[OtherServer]:
    with OtherServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)


@pytest.mark.parametrize(
    "value",
    [
        [1],
        {"models": [1], "lines": [1], "engine": 1, "data": [1]},
        {"models": "ab", "lines": "ab", "engine": "ab", "data": "ab"},
        {"models": [{**MODEL, "breaker": None}], **MODEL, "engine": {**ENGINE, "load_s": "x"}, "lines": [{}]},
        {"models": [{**MODEL, "engine": {**ENGINE, "pid": -1}}], "lines": [{**LINE, "time": 1e300}]},
        {"models": 1, "lines": [{**LINE, "text": None}], "data": [{"id": "\ud800"}]},
    ],
)
def test_reply_of_another_server_is_one_line(other: OtherServer, command: Command, value: object) -> None:
    other.body, other.status = json.dumps(value).encode(), 200
    outputs = commands(other, command)
    assert all("is not an npu-gateway" in text for text in outputs[:4]) and "does not list models" in outputs[4]


def test_nested_reply_and_escapes_in_an_error_are_one_line(other: OtherServer, command: Command) -> None:
    other.body, other.status = b"[" * 100_000, 200
    commands(other, command)
    other.body, other.status = b'{"error": {"message": ["\\u001b[2J", {"a": 1}]}}', 418
    commands(other, command)


@pytest.mark.parametrize("status", [302, 307])
def test_key_and_prompt_follow_no_redirect(other: OtherServer, command: Command, status: int) -> None:
    """Another program may have the port of the gateway."""
    other.body, other.status, other.paths = b"{}", status, ()
    commands(other, command)
    assert fetch(f"http://127.0.0.1:{other.server_port}/readyz", "secret", 60) == b"{}"
    assert len(other.paths) == 6 and "/moved" not in other.paths


def commands(other: OtherServer, command: Command) -> list[str]:
    """What each command prints: one line without control characters."""
    lines = []
    for arguments in (["ps"], ["load", "m"], ["unload", "m"], ["logs"], ["chat", "hi"]):
        _, output, errors = command(*arguments, "--url", f"http://127.0.0.1:{other.server_port}")
        [line] = (output + errors).splitlines()
        assert line.replace("\t", "").isprintable()
        lines.append(line)
    return lines
