"""HTTP/1.1 on one connection."""

from __future__ import annotations

import socket
from contextlib import closing
from http.client import HTTPConnection

import httpx
import pytest

from gateway.app import create_app
from gateway.config.tables import Config, ScriptedModel, ServerConfig
from gateway.server.server import Server
from tests.support.server import Running


@pytest.mark.parametrize(
    "request_",
    [
        b"NONSENSE\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n\r\n\r\n",
    ],
)
def test_bytes_that_are_not_http_are_refused_and_the_server_goes_on(
    server: Running, http: httpx.Client, request_: bytes
) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in connection.recv(1000)[:20]
    assert http.get("/healthz").status_code == 200


def test_keep_alive_reuses_the_connection(server: Running) -> None:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.connect()
        first = connection.sock
        for path in ("/healthz", "/nowhere", "/healthz"):
            connection.request("GET", path)
            connection.getresponse().read()
        assert first is not None and connection.sock is first


def test_idle_connection_stays_open_for_longer_than_clients_use_it_again() -> None:
    """Otherwise a client that sends while the gateway closes gets "Server disconnected"."""
    aiohttp_s, go_s = 15, 90  # defaults of `TCPConnector` and of `http.DefaultTransport`
    longest_s = max(httpx.Limits().keepalive_expiry or 0, aiohttp_s, go_s)
    server = Server(create_app(Config(models={"paris": ScriptedModel()})), ServerConfig())
    assert server.config.timeout_keep_alive > longest_s
