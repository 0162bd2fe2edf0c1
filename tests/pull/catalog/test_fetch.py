"""Documents of a real server, within limits."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from gateway.pull.catalog.fetch import Reader, Unreachable, Unreadable
from tests.support.model_server import Fault, ModelServer


def test_document_is_read(server: ModelServer, reader: Reader) -> None:
    assert reader.json(server.add("a.json", b'{"a": "1"}'), dict[str, int]) == {"a": 1}


def test_redirect_is_followed(server: ModelServer, reader: Reader) -> None:
    server.add("b.json", b"{}")
    assert reader.json(server.add("a.json", b"", redirect="/b.json"), dict[str, Any]) == {}


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "refuses access"), (404, "does not have the file"), (500, "has a fault"), (503, "fault")],
)
def test_refusal_names_status_and_address(server: ModelServer, reader: Reader, status: int, reason: str) -> None:
    url = server.add("a.json", b"{}", status=status)
    with pytest.raises(Unreadable, match=rf"{reason}.*\(HTTP {status} for {url}\)"):
        reader.json(url, dict[str, Any])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "of a form that this version does not know .*malformed"),
        (b'{"a": [1', "truncated"),
        (b'{"a": "\xff"}', "of a form"),
        (b'["a"]', "Expected `object`, got `array`"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "too many nested"),
        (b'{"a": "' + b"x" * (17 << 20) + b'"}', "sent more than 16 MiB"),
    ],
)
def test_bad_document_is_one_reason(server: ModelServer, reader: Reader, content: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason) as raised:
        reader.json(server.add("a.json", content), dict[str, Any])
    assert len(str(raised.value)) < 300


def test_cut_answer_is_unreadable(server: ModelServer, reader: Reader) -> None:
    url = server.add("a.json", b'{"a": 1}', cuts=[4])
    with pytest.raises(Unreadable, match="cannot be reached"):
        reader.json(url, dict[str, Any])


def test_endless_redirects_are_unreadable(server: ModelServer, reader: Reader) -> None:
    url = server.add("a.json", b"", redirect="/a.json")
    with pytest.raises(Unreadable, match="redirects"):
        reader.json(url, dict[str, Any])


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.json", "http://[::1/a", "ftp://a/b", "a.json"])
def test_address_without_a_server_is_unreadable(reader: Reader, url: str) -> None:
    with pytest.raises(Unreadable, match="cannot be reached"):
        reader.json(url, dict[str, Any])


def test_silent_server_is_given_up() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Reader(wait_s=0.1) as reader,
        pytest.raises(Unreadable, match="does not answer within"),
    ):
        reader.json(f"http://127.0.0.1:{silent.getsockname()[1]}/a.json", dict[str, Any])


def test_document_that_takes_too_long_is_given_up(server: ModelServer) -> None:
    times = iter([0.0, 0.0, 61.0])
    with Reader(clock=lambda: next(times)) as reader, pytest.raises(Unreadable, match="needs more than 60 s"):
        reader.json(server.add("a.json", b"{}"), dict[str, Any])


def test_server_that_needs_too_long_for_all_documents_is_given_up(server: ModelServer) -> None:
    times = iter([0.0, 121.0])
    with (
        Reader(clock=lambda: next(times)) as reader,
        pytest.raises(Unreachable, match="the lists need more than 120 s"),
    ):
        reader.json(server.add("a.json", b"{}"), dict[str, Any])
    assert server.requests == []


def test_size_is_that_of_the_header(server: ModelServer, reader: Reader) -> None:
    url = server.add("a.zip", bytes(1234))
    assert reader.size(url) == 1234
    server.faults["a.zip"] = Fault(status=403)
    assert reader.size(url) is None
    assert reader.size("http://127.0.0.1:1/a") is None
