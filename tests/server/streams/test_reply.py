"""Reply: how many writes a reply takes, and that the bytes are those of h11."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import h11
import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from gateway.server.streams.reply import Reply

LENGTH = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.writes.append(b"(closed)")


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Answered:
    """uvicorn's reply to a request, through `Reply`. The callbacks of `call_soon` run with `end_turn`."""

    def __init__(self, method: str = "GET", version: str = "1.1", ended: Callable[[], None] = lambda: None) -> None:
        connection, self.transport = h11.Connection(h11.SERVER), Transport()
        connection.receive_data(f"{method} / HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        connection.next_event()
        connection.next_event()
        transport: Any = self.transport
        scope: Any = {"type": "http", "method": method, "headers": []}
        log = logging.getLogger("test")
        self.flow = FlowControl(transport)
        self.cycle = RequestResponseCycle(
            scope, connection, transport, self.flow, log, log, False, [], asyncio.Event(), on_response=ended
        )
        self._soon: list[Callable[[], None]] = []
        self._reply = Reply(self.cycle, self._soon.append)

    async def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self._reply.send(message)

    def take_part(self, body: bytes, *, is_last: bool = False) -> bool:
        return self._reply.take_part(body, is_last=is_last)

    def end_turn(self) -> None:
        while self._soon:
            self._soon.pop()()

    def body(self, method: str = "GET") -> bytes:
        """What a client reads."""
        client, body = h11.Connection(h11.CLIENT), b""
        client.send(h11.Request(method=method, target="/", headers=[("Host", "localhost")]))
        client.send(h11.EndOfMessage())
        client.receive_data(b"".join(self.transport.writes))
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA
            body += bytes(event.data) if isinstance(event, h11.Data) else b""
        return body


async def test_a_whole_reply_is_one_write() -> None:
    answered = Answered()
    await answered.send(LENGTH, part(b"hello", more=False))
    assert len(answered.transport.writes) == 1
    assert answered.body() == b"hello"


async def test_a_stream_writes_once_in_each_turn_and_not_for_its_head_and_end() -> None:
    answered = Answered()
    for turn in [START, part(b"one"), part(b"")], [part(b"x" * 300)], [part(b"last"), part(b"", more=False)]:
        await answered.send(*turn)
        answered.end_turn()
    assert len(answered.transport.writes) == 3
    assert answered.body() == b"one" + b"x" * 300 + b"last"
    assert answered.cycle.response_complete


async def test_a_head_without_a_body_is_written_at_the_end_of_the_turn() -> None:
    answered = Answered()
    await answered.send(START)
    assert answered.transport.writes == []
    answered.end_turn()
    [head] = answered.transport.writes
    assert head.startswith(b"HTTP/1.1 200") and head.endswith(b"\r\n\r\n")
    answered.end_turn()
    await answered.send(part(b"", more=False))
    assert answered.body() == b""


@pytest.mark.parametrize(("method", "version", "body"), [("GET", "1.0", b"onetwo"), ("HEAD", "1.1", b"")])
async def test_chunks_are_only_for_clients_that_know_them(method: str, version: str, body: bytes) -> None:
    answered = Answered(method, version)
    await answered.send(START, part(b"one"), part(b"two", more=False))
    sent = b"".join(answered.transport.writes).removesuffix(b"(closed)")
    assert sent.partition(b"\r\n\r\n")[2] == body


async def test_the_next_request_begins_after_the_last_byte() -> None:
    written: list[int] = []
    answered = Answered(ended=lambda: written.append(len(answered.transport.writes)))
    await answered.send(LENGTH, part(b"hello", more=False))
    assert written == [1]


async def test_a_part_waits_while_the_client_does_not_read_and_is_dropped_when_it_has_gone() -> None:
    answered = Answered()
    await answered.send(START, part(b"one"))
    answered.end_turn()
    answered.flow.pause_writing()
    sending = asyncio.ensure_future(answered.send(part(b"two")))
    await asyncio.sleep(0)
    assert not sending.done() and len(answered.transport.writes) == 1
    answered.cycle.disconnected = True
    answered.flow.resume_writing()
    await sending
    answered.end_turn()
    assert len(answered.transport.writes) == 1


async def test_large_body_is_written_in_parts_as_fast_as_the_client_reads() -> None:
    """To copy ten megabytes at once holds up the event loop."""
    body = bytes(range(256)) * 4096 + b"end"
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    answered = Answered()
    await answered.send(start, part(body[:-3]))
    assert max(map(len, answered.transport.writes)) == len(body) // 4
    assert answered.transport.writes[0].startswith(b"HTTP/1.1 200") and len(answered.transport.writes[0]) < 200
    answered.flow.pause_writing()
    sending = asyncio.ensure_future(answered.send(part(b"end", more=False)))
    await asyncio.sleep(0)
    assert not sending.done()
    answered.flow.resume_writing()
    await sending
    assert answered.body() == body


async def test_large_last_part_of_a_body_waits_for_a_client_that_does_not_read() -> None:
    body = bytes(1024 * 1024)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    answered = Answered()
    answered.flow.pause_writing()
    sending = asyncio.ensure_future(answered.send(start, part(body, more=False)))
    await asyncio.sleep(0)
    assert sum(map(len, answered.transport.writes)) < 1000
    answered.flow.resume_writing()
    await sending
    assert answered.body() == body


async def test_a_part_leaves_at_once_and_the_head_and_the_end_are_joined_with_one() -> None:
    answered = Answered()
    await answered.send(START)
    assert answered.take_part(b"first")
    assert not answered.transport.writes
    answered.end_turn()
    assert len(answered.transport.writes) == 1
    assert answered.take_part(b"second")
    assert answered.transport.writes[1:] == [b"6\r\nsecond\r\n"]
    assert answered.take_part(b"last", is_last=True)
    await answered.send(part(b"", more=False))
    assert answered.transport.writes[2:] == [b"4\r\nlast\r\n0\r\n\r\n"]
    assert answered.body() == b"firstsecondlast"


async def test_no_part_is_taken_that_would_wait_or_needs_another_framing() -> None:
    answered = Answered()
    await answered.send(START)
    answered.flow.pause_writing()
    assert not answered.take_part(b"x")
    old = Answered(version="1.0")
    await old.send(START)
    assert not old.take_part(b"x")
