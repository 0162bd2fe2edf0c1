"""Clients that leave: the device is free at its next step, the counters return to zero, the others are answered."""

from __future__ import annotations

import logging
import math
import random
import socket
import sys
from contextlib import closing, suppress

import pytest

from gateway.engines.scripted.engine import ScriptedEngine
from gateway.server import connections as protocol
from tests.support.server import Running, config_of, scripted, serving, wait_until
from tests.support.stepped_device import SteppedDevice
from tests.system.clients.raw import (
    busy,
    chat,
    connections,
    head,
    leave,
    read_to_end,
    statuses,
    still_serves,
    unparsed,
)


def test_client_that_leaves_at_any_byte_leaves_nothing_behind(server: Running) -> None:
    rng, request = random.Random(6), chat("endless", stream=True, max_tokens=100_000)
    edges = (0, 1, request.index(b"\r\n\r\n") + 3, request.index(b"\r\n\r\n") + 4, len(request) - 1, len(request))
    for length in (*edges, *(rng.randrange(len(request)) for _ in range(60))):
        connection = server.connect()
        connection.sendall(request[:length])
        if length % 3 == 0:
            wait_until(lambda: connections(server) > 0, "the connection was not accepted")
        leave(connection, rng.choice(("closed", "reset")))
    still_serves(server)


@pytest.mark.parametrize("how", ["closed", "reset", "half-closed"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["endless", "slow_prompt"])
def test_client_that_leaves_during_generation_frees_the_device(
    server: Running, caplog: pytest.LogCaptureFixture, model: str, stream: bool, how: str
) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(chat(model, stream=stream, max_tokens=100_000))
        wait_until(lambda: model in busy(server), "the request did not begin")
        if stream and model == "endless":
            connection.recv(1000)
        leave(connection, how)
        wait_until(lambda: not busy(server), f"the device still works: {busy(server)}")
    wait_until(lambda: not server.server.server_state.tasks, "the request still runs")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_the_queue_frees_its_position(server: Running, stream: bool) -> None:
    with closing(server.connect()) as first, closing(server.connect()) as second:
        first.sendall(chat("single", stream=True, max_tokens=100_000))
        wait_until(lambda: busy(server).get("single") == (1, 0), "the first request did not begin")
        second.sendall(chat("single", stream=stream))
        wait_until(lambda: busy(server).get("single") == (1, 1), "the second request is not in the queue")
        second.close()
        wait_until(lambda: busy(server).get("single") == (1, 0), "the second request is still in the queue")
        first.close()
        wait_until(lambda: not busy(server), "the first request still runs")


def test_device_stops_at_the_step_in_which_the_client_leaves() -> None:
    """The client requests 100,000 tokens and leaves during the sixth device call."""
    model, device = scripted("word", repeat=True, context_length=1_000_000), SteppedDevice()
    with serving(
        config_of({"m": model}), {"m": ScriptedEngine("m", model, clock=device.clock, sleep=device.sleep)}
    ) as server:
        device.allowed = device.calls + 5
        with closing(server.connect()) as connection:
            connection.sendall(chat("m", stream=True, max_tokens=100_000))
            wait_until(lambda: device.calls > device.allowed, "the sixth call did not begin")
        wait_until(lambda: not busy(server), "the device still works")
        calls = device.calls
        device.allowed = math.inf
        with server.http() as http:
            metrics = http.get("/metrics").text.splitlines()
        assert device.calls == calls
    [tokens] = [line for line in metrics if line.startswith("gateway_tokens_total") and "completion" in line]
    assert float(tokens.rsplit(" ", 1)[1]) == 5


def test_client_that_leaves_behind_pipelined_requests_frees_the_device(server: Running) -> None:
    """uvicorn pauses reading while a pipelined request waits. A paused connection does not notice the end."""
    pipelined = [chat("m") + head("/healthz", method="GET"), chat("m")]
    with closing(server.connect()) as connection:
        connection.sendall(chat("endless", max_tokens=100_000) + pipelined[0])
        wait_until(lambda: "endless" in busy(server), "the request did not begin")
        connection.sendall(pipelined[1])
        wait_until(lambda: unparsed(server) == sum(map(len, pipelined)), "the server did not read the requests")
    wait_until(lambda: not busy(server), "the device still works")


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(chat("m") + head("/healthz", method="GET") + head("/nowhere", "Connection: close"))
        assert statuses(read_to_end(connection)) == [b"200", b"200", b"404"]


def test_too_many_pipelined_requests_are_cut_off(server: Running) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(chat("endless", max_tokens=100_000))
        wait_until(lambda: "endless" in busy(server), "the request did not begin")
        with suppress(ConnectionError):
            connection.sendall(head("/healthz", method="GET") * 10_000)
            assert read_to_end(connection) == b""
    still_serves(server)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can close a socket without a packet")
def test_client_that_lost_power_is_noticed_by_keepalive(monkeypatch: pytest.MonkeyPatch, server: Running) -> None:
    """TCP_REPAIR closes the socket without a packet, as a crash does. Only a keepalive probe can notice it."""
    monkeypatch.setattr(protocol, "TCP_OPTIONS", {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2})
    connection = server.connect()
    connection.sendall(chat("endless", max_tokens=100_000))
    wait_until(lambda: "endless" in busy(server), "the request did not begin")
    try:
        connection.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR
    except OSError:
        connection.close()
        pytest.skip("needs the permission to administer the network")
    connection.close()
    wait_until(lambda: not busy(server), "the server sent no keepalive probe")
