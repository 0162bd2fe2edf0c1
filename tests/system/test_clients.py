"""Clients as they should not be, over real sockets: they leave, stall, drip, lie and come by the thousand.

Whatever one does: the device is free at its next step, the counters are back at zero, and the others are answered.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.config import LocalModel, ScriptedModel, ServerConfig
from gateway.server import connections as protocol
from tests.support.processes import SCRIPTED, free_port
from tests.support.processes import serving as gateway_process
from tests.support.server import Running, config_of, scripted, serving

PATIENCE_S = 60.0  # for a machine that does other things
PATH = "/v1/chat/completions"
MODELS = {
    "m": scripted("Hello."),
    "endless": scripted("word", repeat=True, token_s=0.01, context_length=1_000_000),
    "thinks": scripted("word", repeat=True, ttft_s=0.5, token_s=0.01, context_length=1_000_000),
    "gushes": scripted("word " * 50, repeat=True, context_length=100_000_000),
    "bulky": scripted("x" * 50_000, repeat=True, context_length=1_000_000),
    "single": ScriptedModel(
        max_sequences=1,
        script={"replies": ["word"], "repeat": True, "token_s": 0.01, "context_length": 1_000_000},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def open_files() -> None:
    protocol.allow_open_files()  # both ends of every connection are here


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(config_of(MODELS)) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owes the gateway something has a second or two."""
    monkeypatch.setattr(protocol, "PATIENCE_S", {"head": 1.0, "rest": 1.0, "reading": 1.0})


def chat(model: str = "m", path: str = PATH, **fields: Any) -> bytes:
    """A whole request, ready to be sent."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], **fields}).encode()
    return head(path, f"Content-Length: {len(body)}") + body


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def busy(server: Running) -> dict[str, tuple[int, int]]:
    """(running, waiting) of every model where that is not (0, 0)."""
    rows = {name: (lane.slots.running, lane.slots.waiting) for name, lane in server.app.state.router.lanes.items()}
    return {name: row for name, row in rows.items() if row != (0, 0)}


def wait_until(holds: Callable[[], bool], what: str) -> None:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < PATIENCE_S, what
        time.sleep(0.005)


def read_to_end(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or resets."""
    connection.settimeout(PATIENCE_S)
    received = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return received


def leave(connection: socket.socket, how: str) -> None:
    if how == "reset":
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        )
    if how == "half-closed":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()


def still_serves(server: Running) -> None:
    with server.http(timeout=PATIENCE_S) as http:
        assert http.post(PATH, json={"model": "m", "messages": [{"role": "user", "content": "x"}]}).status_code == 200
    wait_until(lambda: not busy(server), f"still busy: {busy(server)}")


# ---- leaving


def test_leaving_at_any_byte_leaves_nothing_behind(server: Running) -> None:
    rng, request = random.Random(6), chat("endless", stream=True, max_tokens=100_000)
    edges = (0, 1, request.index(b"\r\n\r\n") + 3, request.index(b"\r\n\r\n") + 4, len(request) - 1, len(request))
    for place in (*edges, *(rng.randrange(len(request)) for _ in range(60))):
        connection = server.connect()
        connection.sendall(request[:place])
        if place % 3 == 0:
            time.sleep(0.01)
        leave(connection, rng.choice(("closed", "reset")))
    still_serves(server)


@pytest.mark.parametrize("how", ["closed", "reset", "half-closed"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["endless", "thinks"])
def test_leaving_while_the_device_works_frees_it(
    server: Running, caplog: pytest.LogCaptureFixture, model: str, stream: bool, how: str
) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(chat(model, stream=stream, max_tokens=100_000))
        wait_until(lambda: model in busy(server), "it never began")
        if stream and model == "endless":
            connection.recv(1000)
        leave(connection, how)
        wait_until(lambda: not busy(server), f"the device still works for nobody: {busy(server)}")
    wait_until(lambda: not server.server.server_state.tasks, "the request still runs")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_waiting_frees_the_stand_in_the_line(server: Running, stream: bool) -> None:
    with closing(server.connect()) as first, closing(server.connect()) as second:
        first.sendall(chat("single", stream=True, max_tokens=100_000))
        wait_until(lambda: busy(server).get("single") == (1, 0), "the first never began")
        second.sendall(chat("single", stream=stream))
        wait_until(lambda: busy(server).get("single") == (1, 1), "the second never waited")
        second.close()
        wait_until(lambda: busy(server).get("single") == (1, 0), "the second still waits")
        first.close()
        wait_until(lambda: not busy(server), "the first still runs")


def test_the_device_stops_at_its_next_step(server: Running) -> None:
    """Of 100,000 tokens that it asked for, a client that leaves after five has cost the device a few more."""
    with serving(config_of({"m": scripted("word", repeat=True, token_s=0.05, context_length=100_000)})) as slow:
        with closing(slow.connect()) as connection:
            connection.sendall(chat("m", stream=True, max_tokens=100_000))
            received = b""
            while received.count(b'"content"') < 5:
                received += connection.recv(65536)
        wait_until(lambda: not busy(slow), "the device still works")
        with slow.http() as http:
            generated = http.get("/metrics").text
    [tokens] = [
        line for line in generated.splitlines() if line.startswith("gateway_tokens_total") and "completion" in line
    ]
    assert float(tokens.rsplit(" ", 1)[1]) < 40


def test_leaving_behind_a_pipelined_request_is_heard(server: Running) -> None:
    """uvicorn stops reading then, and would hear nothing."""
    with closing(server.connect()) as connection:
        connection.sendall(chat("endless", max_tokens=100_000) + chat("m") + head("/healthz", method="GET"))
        wait_until(lambda: "endless" in busy(server), "it never began")
        connection.sendall(chat("m"))
        time.sleep(0.1)
    wait_until(lambda: not busy(server), "the device still works for nobody")


def test_pipelined_requests_are_answered_in_order_and_too_many_cut_off(server: Running) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(chat("m") + head("/healthz", method="GET") + head("/nowhere", "Connection: close"))
        answers = read_to_end(connection)
    assert [line.split()[1] for line in answers.splitlines() if b"HTTP/1.1" in line] == [b"200", b"200", b"404"]
    with closing(server.connect()) as connection:
        connection.sendall(chat("endless", max_tokens=100_000))
        wait_until(lambda: "endless" in busy(server), "it never began")
        with suppress(ConnectionError):
            connection.sendall(head("/healthz", method="GET") * 10_000)
            assert read_to_end(connection) == b""
    still_serves(server)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can forget a connection without a word")
def test_a_client_whose_power_went_is_noticed(monkeypatch: pytest.MonkeyPatch, server: Running) -> None:
    """The socket is forgotten as by a crash: nothing is sent. Only asking finds out."""
    monkeypatch.setattr(protocol, "TCP_OPTIONS", {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2})
    connection = server.connect()
    connection.sendall(chat("endless", max_tokens=100_000))
    wait_until(lambda: "endless" in busy(server), "it never began")
    try:
        connection.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR
    except OSError:
        connection.close()
        pytest.skip("needs the right to administer the network")
    connection.close()
    wait_until(lambda: not busy(server), "nobody asked")


# ---- not reading


def test_a_reader_that_stops_is_cut_off_and_holds_little_until_then(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty megabytes are made for each, as fast as the machine can; what is held for it stays within a few."""
    monkeypatch.setattr(protocol, "PATIENCE_S", {"head": 30.0, "rest": 30.0, "reading": 3.0})
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    with ExitStack() as stack:
        for _ in range(4):  # the model's places
            connection = stack.enter_context(closing(server.connect()))
            connection.sendall(chat("gushes", stream=True, max_tokens=100_000))
            connection.recv(100)
        wait_until(lambda: busy(server).get("gushes", (0, 0))[0] == 4, "they never began")
        most = 0
        while busy(server):
            most = max(most, process.memory_info().rss - before)
            time.sleep(0.05)
    print(f"held for 4 stalled readers: {most / 2**20:.1f} MiB")
    assert most < 4 * 6 * 2**20
    still_serves(server)


def test_a_whole_reply_that_nobody_reads_is_dropped(impatient: None, server: Running) -> None:
    """A reply of megabytes, sent at once, into a window of a few kilobytes."""
    wait_until(lambda: connections(server) == 0, "a connection of another test is left")
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(chat("bulky", max_tokens=200))
        wait_until(lambda: connections(server) > 0, "it never came in")
        wait_until(lambda: connections(server) == 0, "the reply is still held")
    still_serves(server)


def connections(server: Running) -> int:
    return len(server.server.server_state.connections)


# ---- dripping and lying


def test_a_head_that_drips_is_408_in_the_end(impatient: None, server: Running) -> None:
    with closing(server.connect()) as connection:
        answer = b""
        connection.settimeout(0.2)
        begun = time.monotonic()
        while not answer:
            assert time.monotonic() - begun < PATIENCE_S
            with suppress(TimeoutError):
                connection.sendall(b"G")
                answer = connection.recv(1000)
        while b"request_timeout" not in answer and (more := connection.recv(1000)):  # head and body may come apart
            answer += more
    assert answer.startswith(b"HTTP/1.1 408") and b'"code":"request_timeout"' in answer


@pytest.mark.parametrize("behind", [False, True], ids=["after the first answer", "behind the first request"])
def test_who_stops_in_the_second_head_is_408(impatient: None, server: Running, behind: bool) -> None:
    first, second = head("/healthz", method="GET"), b"GET / HT"
    begun = time.monotonic()
    with closing(server.connect()) as connection:
        connection.sendall(first + second if behind else first)
        answers = connection.recv(10_000)  # the first, or its beginning: its head and its body are sent one by one
        if not behind:
            connection.sendall(second)
        answers += read_to_end(connection)
    assert time.monotonic() - begun > 0.5
    assert [line.split()[1] for line in answers.splitlines() if b"HTTP/1.1" in line] == [b"200", b"408"]


def test_who_says_nothing_is_cut_off(impatient: None, server: Running) -> None:
    begun = time.monotonic()
    with closing(server.connect()) as connection:
        assert read_to_end(connection) == b""
    assert time.monotonic() - begun > 0.5


def test_a_body_that_nobody_waits_for_may_not_drip(impatient: None, server: Running) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(head("/nowhere", "Content-Length: 1000000"))
        with pytest.raises(ConnectionError):
            for _ in range(int(PATIENCE_S / 0.05)):
                connection.sendall(b"x")
                time.sleep(0.05)


def test_a_body_that_drips_is_408(monkeypatch: pytest.MonkeyPatch, server: Running) -> None:
    monkeypatch.setattr("gateway.server.body.BODY_TIMEOUT_S", 0.5)
    with closing(server.connect()) as connection:
        connection.sendall(head(PATH, "Content-Length: 1000"))
        with suppress(ConnectionError):
            for _ in range(20):
                connection.sendall(b" ")
                time.sleep(0.05)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    still_serves(server)


BODY = chat("m").partition(b"\r\n\r\n")[2]
LIES = {
    "too short": (["Content-Length: 10"], BODY, b"400"),
    "too long and then silence": ([f"Content-Length: {len(BODY) + 10}"], BODY, b"408"),
    "negative": (["Content-Length: -5"], BODY, b"400"),
    "not a number": (["Content-Length: 0x10"], BODY, b"400"),
    "twice": (["Content-Length: 10", "Content-Length: 11"], BODY, b"400"),
    "huge": (["Content-Length: 99999999999999999999999"], BODY, b"4"),
    "absurdly huge": ([f"Content-Length: {'9' * 5000}"], BODY, b"400"),
    "none": ([], BODY, b"400"),
    "chunks of no size": (["Transfer-Encoding: chunked"], b"zz\r\n" + BODY, b"400"),
    "a chunk shorter than it says": (["Transfer-Encoding: chunked"], b"5\r\n{}\r\n0\r\n\r\n", b"4"),
    "a chunk size of many digits": (["Transfer-Encoding: chunked"], b"f" * 100 + b"\r\n", b"400"),
    "an unknown coding": (["Transfer-Encoding: gzip"], BODY, b"400"),
    "a head without end": ([f"X: {'y' * 300_000}"], b"", b"400"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_body_that_lies_about_its_length_is_refused(
    monkeypatch: pytest.MonkeyPatch, impatient: None, server: Running, lie: str
) -> None:
    monkeypatch.setattr("gateway.server.body.BODY_TIMEOUT_S", 0.5)
    lines, body, status = LIES[lie]
    with closing(server.connect()) as connection:
        with suppress(ConnectionError):
            connection.sendall(head(PATH, *lines) + body)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:100]
    refusal, _ = json.JSONDecoder().raw_decode(answer.partition(b"\r\n\r\n")[2].decode())
    assert refusal["error"].keys() == {"message", "type", "param", "code"}
    still_serves(server)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 4_000_000,
        b'{"messages":' * 500_000,
        b'{"messages": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "f", "parameters": '
        + b'{"a":' * 100_000
        + b"1"
        + b"}" * 100_000
        + b"}}]}",
        b'{"messages": [' + b'{"role":"user","content":""},' * 250_000 + b'{"role":"user"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "f", "parameters": {"a":['
        + b"{}," * 2_000_000
        + b"{}]}}}]}",
        b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object", "schema": {"a":['
        + b"1," * 3_000_000
        + b"1]}}}",
        b'{"messages": [{"role": "user", "content": "x"}], "stop": [' + b'"a",' * 1_500_000 + b'"a"]}',
        b'{"seed": ' + b"1" * 1_000_000 + b"}",
        b'{"temperature": 1e' + b"9" * 1_000_000 + b"}",
        b"\xff" * 8_000_000,
        b'"' + b"\\u0000" * 1_000_000,
    ],
    ids=range(12),
)
def test_gigantic_and_deep_json_is_refused_and_holds_nobody_up(server: Running, body: bytes) -> None:
    with server.http(timeout=PATIENCE_S) as http, server.http(timeout=PATIENCE_S) as other:
        with ExitStack() as stack:
            response = stack.enter_context(http.stream("POST", PATH, content=body))
            response.read()
        assert response.status_code == 400, response.text[:300]
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert len(response.content) < 2_000
        assert other.get("/healthz").status_code == 200


# ---- by the thousand


async def open_crowd(port: int, count: int) -> list[asyncio.StreamWriter]:
    writers = []
    for _ in range(count // 100):  # no more at once than wait to be accepted
        opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(100)))
        writers += [writer for _, writer in opened]
    return writers


async def test_a_thousand_idle_connections_do_not_keep_others_from_an_answer(server: Running) -> None:
    process = psutil.Process()
    before, already = process.memory_info().rss, connections(server)
    writers = await open_crowd(server.port, 1_000)
    await asyncio.to_thread(wait_until, lambda: connections(server) >= already + 1_000, "not all are open")
    each = (process.memory_info().rss - before) / 1_000
    print(f"an idle connection: {each / 1024:.1f} KiB, both ends")
    assert each < 64 * 1024
    await asyncio.to_thread(still_serves, server)
    for writer in writers:
        writer.transport.abort()
    await asyncio.to_thread(wait_until, lambda: connections(server) <= already, "some are still held")


@pytest.mark.slow
async def test_ten_thousand_idle_connections(tmp_path: Path) -> None:
    """On a gateway of its own process: each end needs 10,000 open files, as far as the system allows."""
    (tmp_path / "config.toml").write_text(SCRIPTED, encoding="utf-8")
    count, port = min(10_000, protocol.connection_limit() - 200), free_port()
    with gateway_process("--port", port, cwd=tmp_path) as running:
        running.read_greeting()
        process = psutil.Process(running.process.pid)
        before = process.memory_info().rss
        writers = await open_crowd(port, count)
        each = (process.memory_info().rss - before) / len(writers)
        begun = time.monotonic()
        answer = await whole_answer(port, chat("paris"))
        took_s = time.monotonic() - begun
        assert answer.startswith(b"HTTP/1.1 200")
        print(f"{len(writers)} idle connections: {each / 1024:.1f} KiB each; a chat answered in {took_s:.3f} s")
        for writer in writers:
            writer.transport.abort()


async def test_one_connection_too_many_is_told_so_and_the_rest_serve_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 64)
    monkeypatch.setattr(protocol, "SPARE_CONNECTIONS", 8)
    with serving(config_of({"m": scripted("Hello.")})) as server:
        await asyncio.to_thread(wait_until, lambda: connections(server) == 0, "a connection of the start is left")
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(64)]
        await asyncio.to_thread(wait_until, lambda: connections(server) == 64, "not all are open")
        refused = await asyncio.to_thread(server.exchange, chat("m"))
        assert refused.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in refused.lower()
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "service_unavailable"
        reader, writer = idle[0]
        writer.write(chat("m"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        beyond = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(30)]
        await asyncio.to_thread(wait_until, lambda: connections(server) <= 64 + 8, "nobody was cut off")
        for _, writer in (*idle, *beyond):
            writer.transport.abort()
        await asyncio.to_thread(still_serves, server)


async def test_200_streams_at_once_each_get_one_ending(smollm2: Any) -> None:
    """On the default model as configured: the line is bounded, what does not fit is 429."""
    models = {"m": LocalModel(path=str(smollm2), threads=1)}
    with serving(config_of(models, ServerConfig(timeout_s=600.0))) as server:
        answers = await asyncio.gather(
            *(whole_answer(server.port, chat("m", stream=True, max_tokens=2)) for _ in range(200))
        )
        finished = [answer for answer in answers if answer.startswith(b"HTTP/1.1 200")]
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429")]
        assert len(finished) + len(refused) == 200 and len(finished) >= 4 + 32
        assert all(answer.count(b"data: [DONE]") == 1 and b'"error"' not in answer for answer in finished)
        assert all(b"retry-after" in answer.lower() and b"[DONE]" not in answer for answer in refused)
        print(f"200 streams: {len(finished)} finished, {len(refused)} refused with 429")
        await asyncio.to_thread(wait_until, lambda: not busy(server), "still busy")


async def whole_answer(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close", 1))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


# ---- what is held for one


def test_bodies_in_progress_take_a_bounded_amount_of_memory() -> None:
    """Eight of the largest bodies fit; one more is refused, and there is room again when they have gone."""
    largest = 200_000
    long = {"model": "m", "messages": [{"role": "user", "content": "x"}], "user": "x" * (largest - 500)}
    with serving(config_of(MODELS, ServerConfig(max_body_bytes=largest))) as server, server.http() as http:
        with ExitStack() as stack:
            for _ in range(8):
                connection = stack.enter_context(closing(server.connect()))
                connection.sendall(chat("single", max_tokens=100_000, user="x" * (largest - 500)))
            wait_until(lambda: sum(busy(server).get("single", (0, 0))) == 8, "not all wait")
            refused = http.post(PATH, json=long)
            assert refused.status_code == 503 and "too much memory" in refused.json()["error"]["message"]
            assert http.post(PATH, json={**long, "user": "x"}).status_code == 200
        wait_until(lambda: not busy(server), "still busy")
        assert http.post(PATH, json=long).status_code == 200


async def test_a_queued_request_takes_little_memory() -> None:
    waits = ScriptedModel(max_sequences=1, queue=500, script={"replies": ["word"], "repeat": True, "token_s": 0.05})
    with serving(config_of({"m": waits})) as server:
        process = psutil.Process()
        writers = await open_crowd(server.port, 500)
        before = process.memory_info().rss
        for writer in writers:
            writer.write(chat("m", max_tokens=4_000))
        await asyncio.to_thread(
            wait_until, lambda: sum(busy(server).get("m", (0, 0))) == 500, f"not all wait: {busy(server)}"
        )
        each = (process.memory_info().rss - before) / 500
        print(f"a queued request: {each / 1024:.1f} KiB")
        assert each < 100 * 1024
        for writer in writers:
            writer.transport.abort()
        await asyncio.to_thread(wait_until, lambda: not busy(server), "still busy")
