"""Requests as bytes, sockets read by hand, and the state of the server that must come back to zero."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.support.server import PATIENCE_S, Running, wait_until

PATH = "/v1/chat/completions"


def chat(model: str = "m", path: str = PATH, **fields: Any) -> bytes:
    """A complete request as bytes."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], **fields}).encode()
    return head(path, f"Content-Length: {len(body)}") + body


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def statuses(answers: bytes) -> list[bytes]:
    return [line.split()[1] for line in answers.splitlines() if b"HTTP/1.1" in line]


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the server closes or resets the connection."""
    connection.settimeout(PATIENCE_S)
    received = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return received


def read_answer(connection: socket.socket) -> bytes:
    """Read one answer that has a Content-Length."""
    connection.settimeout(PATIENCE_S)
    received = b""
    while (end := _end_of_answer(received)) is None or len(received) < end:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def _end_of_answer(received: bytes) -> int | None:
    lines, separator, _ = received.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in lines.lower().splitlines() if line.startswith(b"content-length:")), 0)
    return len(lines) + len(separator) + length if separator else None


async def whole_answer(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close", 1))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@asynccontextmanager
async def open_connections(port: int, count: int) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Open `count` connections, in groups that fit into the backlog of the listening socket. Abort them at the end."""
    writers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(count // 100):
            opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(100)))
            writers += [writer for _, writer in opened]
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


def leave(connection: socket.socket, how: str) -> None:
    """Leave as a client does: "closed", "reset", or "half-closed" (the sending side only)."""
    if how == "reset":
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        )
    if how == "half-closed":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()


def busy(server: Running) -> dict[str, tuple[int, int]]:
    """(running, waiting) of every model for which it is not (0, 0)."""
    rows = {name: (lane.queue.running, lane.queue.waiting) for name, lane in server.app.state.router.lanes.items()}
    return {name: row for name, row in rows.items() if row != (0, 0)}


def connections(server: Running) -> int:
    return len(server.server.server_state.connections)


def unparsed(server: Running) -> int:
    """Bytes that the server has received and not yet parsed, of all connections."""
    return sum(len(each.conn.trailing_data[0]) for each in list(server.server.server_state.connections))  # type: ignore[union-attr]


def unsent(server: Running) -> list[int]:
    """Bytes that the server holds for each connection, because the client does not read them."""
    return [each.transport.get_write_buffer_size() for each in list(server.server.server_state.connections)]


def pass_time(server: Running, seconds: float) -> None:
    """Run the check for slow clients now, and again as it runs after `seconds` in which no client does anything."""
    loop = server.server._loop
    assert loop is not None

    async def check() -> None:
        now = loop.time()
        for each in list(server.server.server_state.connections):
            each.check_pending(now)  # type: ignore[union-attr]
            each.check_pending(now + seconds)  # type: ignore[union-attr]

    asyncio.run_coroutine_threadsafe(check(), loop).result(PATIENCE_S)


def still_serves(server: Running) -> None:
    with server.http(timeout=PATIENCE_S) as http:
        assert http.post(PATH, json={"model": "m", "messages": [{"role": "user", "content": "x"}]}).status_code == 200
    wait_until(lambda: not busy(server), f"still busy: {busy(server)}")
