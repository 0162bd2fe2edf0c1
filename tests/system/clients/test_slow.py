"""Clients that do not read, and clients that send too slowly. `pass_time` replaces waiting for their time limits."""

from __future__ import annotations

import gc
import socket
import time
from collections import deque
from contextlib import ExitStack, closing, suppress

import psutil
import pytest

from gateway.server.connections import PENDING_LIMIT_S
from tests.support.server import PATIENCE_S, Running, wait_until
from tests.system.clients.raw import (
    PATH,
    busy,
    chat,
    connections,
    head,
    pass_time,
    read_answer,
    read_to_end,
    statuses,
    still_serves,
    unparsed,
    unsent,
)


@pytest.fixture(autouse=True)
def no_connection(server: Running) -> None:
    """`pass_time` acts on every connection, so no connection of an earlier test may be left."""
    wait_until(lambda: connections(server) == 0, "a connection of an earlier test is left")


def connect_with_small_buffers(server: Running) -> socket.socket:
    """Connect with small kernel buffers on both sides, so that the kernel takes little from the server."""
    for listening in server.server.servers:
        for each in listening.sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # accepted sockets inherit it
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    return connection


def wait_until_stalled(server: Running, count: int) -> None:
    """Wait until `count` clients hold up data, and the amount does not change in 20 polls."""
    last: deque[list[int]] = deque(maxlen=20)

    def is_stalled() -> bool:
        last.append(unsent(server))
        return len(last) == 20 and all(each == last[0] for each in last) and sum(map(bool, last[0])) == count

    wait_until(is_stalled, f"the connections are not stalled: {unsent(server)}")


# --- clients that do not read


def test_stalled_reader_is_cut_off_and_holds_little_memory(server: Running) -> None:
    """Each client requests 20 MB, made as fast as the machine can. The device waits for the client."""
    process, tokens = psutil.Process(), 100_000
    gc.collect()
    before = process.memory_info().rss
    with ExitStack() as stack:
        for _ in range(4):  # as many as the model runs at once
            connection = stack.enter_context(closing(connect_with_small_buffers(server)))
            connection.sendall(chat("fast", stream=True, max_tokens=tokens))
        wait_until_stalled(server, 4)
        held = process.memory_info().rss - before
        assert busy(server)["fast"][0] == 4
        pass_time(server, PENDING_LIMIT_S["reading"] - 1)
        assert busy(server)["fast"][0] == 4
        pass_time(server, PENDING_LIMIT_S["reading"] + 1)
        wait_until(lambda: not busy(server), "the clients were not cut off")
    print(f"held for 4 stalled readers: {held / 2**20:.1f} MiB")
    assert held < 4 * 6 * 2**20
    with server.http() as http:
        metrics = http.get("/metrics").text.splitlines()
    [made] = [line for line in metrics if line.startswith("gateway_tokens_total") and "fast" in line and "comp" in line]
    assert float(made.rsplit(" ", 1)[1]) < 4 * tokens
    still_serves(server)


def test_whole_reply_that_no_client_reads_is_dropped(server: Running) -> None:
    """A reply of 10 MB is sent in one piece to a client with a receive buffer of 4 KiB."""
    with closing(connect_with_small_buffers(server)) as connection:
        connection.sendall(chat("bulky", max_tokens=200))
        wait_until_stalled(server, 1)
        pass_time(server, PENDING_LIMIT_S["reading"] + 1)
        wait_until(lambda: connections(server) == 0, "the reply is still held")
    still_serves(server)


# --- clients that send too slowly


def test_head_that_drips_gets_408(server: Running) -> None:
    with closing(server.connect()) as connection:
        for number, seconds in enumerate((0, 10, 20, PENDING_LIMIT_S["head"] + 1), 1):
            connection.sendall(b"G")
            wait_until(lambda sent=number: unparsed(server) == sent, "the server did not read the byte")  # type: ignore[misc]
            pass_time(server, seconds)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b'"code":"request_timeout"' in answer


@pytest.mark.parametrize("pipelined", [False, True], ids=["after the first answer", "with the first request"])
def test_second_head_that_stops_gets_408(server: Running, pipelined: bool) -> None:
    first, second = head("/healthz", method="GET"), b"GET / HT"
    with closing(server.connect()) as connection:
        connection.sendall(first + second if pipelined else first)
        answers = read_answer(connection)
        if not pipelined:
            connection.sendall(second)
        wait_until(lambda: unparsed(server) == len(second), "the server did not read the second head")
        pass_time(server, PENDING_LIMIT_S["head"] + 1)
        answers += read_to_end(connection)
    assert statuses(answers) == [b"200", b"408"]


def test_silent_connection_is_closed_after_the_limit(server: Running) -> None:
    with closing(server.connect()) as connection:
        wait_until(lambda: connections(server) == 1, "the connection was not accepted")
        pass_time(server, PENDING_LIMIT_S["head"] - 1)
        pass_time(server, 0)  # one more turn of the event loop, in which a closed connection would end
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        pass_time(server, PENDING_LIMIT_S["head"] + 1)
        assert read_to_end(connection) == b""


def test_body_that_drips_after_the_answer_is_cut_off(server: Running) -> None:
    """The path does not exist, so the answer is sent before the body. No handler waits for the body."""
    with closing(server.connect()) as connection:
        connection.sendall(head("/nowhere", "Content-Length: 1000000"))
        assert statuses(read_answer(connection)) == [b"404"]
        for seconds in (0, 2, PENDING_LIMIT_S["rest"] + 1):
            connection.sendall(b"x")
            pass_time(server, seconds)
        wait_until(lambda: connections(server) == 0, "the connection is still open")


def test_body_that_drips_gets_408(monkeypatch: pytest.MonkeyPatch, server: Running) -> None:
    with closing(server.connect()) as connection, monkeypatch.context() as patch:
        patch.setattr("gateway.server.body.BODY_TIMEOUT_S", 0.5)
        connection.sendall(head(PATH, "Content-Length: 100000"))
        assert statuses(drip(connection)) == [b"408"]
    still_serves(server)


def drip(connection: socket.socket) -> bytes:
    """Send a byte every 20 ms until the server answers."""
    connection.settimeout(0.02)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with suppress(ConnectionError):
            connection.sendall(b" ")
        with suppress(TimeoutError):
            return connection.recv(1000)
    raise AssertionError("the server did not answer")
