"""Servers that do not do what they should, by name: values for `Hostile.answer`."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter

from tests.support.hostile import HEAD, Behave, Hostile, chunk, stream, text_of

_MODELS = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{"data": []}'


def misbehave(server: Hostile, answer: bytes | Behave) -> None:
    """Let `server` answer chats in this way, and each probe of its models as if nothing was wrong."""

    async def answered(reader: StreamReader, writer: StreamWriter) -> None:
        if server.requests[-1].startswith(b"GET"):
            writer.write(_MODELS)
        elif callable(answer):
            await answer(reader, writer)
        else:
            writer.write(answer)
        await writer.drain()

    server.answer = answered


def chats_of(server: Hostile) -> int:
    """The number of chats that it got."""
    return sum(request.startswith(b"POST") for request in server.requests)


async def _hangs(reader: StreamReader, __: StreamWriter) -> None:
    await reader.read()  # up to the end of the connection


async def _hangs_after_its_head(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(HEAD)
    await writer.drain()
    await reader.read()  # up to the end of the connection


async def _hangs_after_its_role(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(stream(chunk(role="assistant", content=""), done=False))
    await writer.drain()
    await reader.read()  # up to the end of the connection


async def _drips_comments(reader: StreamReader, writer: StreamWriter) -> None:
    """Bytes come, and never an event."""
    writer.write(HEAD)
    while True:
        writer.write(b":")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _closes(_: StreamReader, __: StreamWriter) -> None:
    """After it has read the request."""


async def _resets(reader: StreamReader, writer: StreamWriter) -> None:
    writer.transport.abort()


def _status(status: int, body: str = '{"error": {"message": "no"}}', more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\n{more}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


#: Wrong before the first content: none of these costs a client its answer while another target lives.
BAD: dict[str, bytes | Behave] = {
    "hangs": _hangs,
    "hangs_after_its_head": _hangs_after_its_head,
    "hangs_after_its_role": _hangs_after_its_role,
    "drips_comments": _drips_comments,
    "closes": _closes,
    "resets": _resets,
    **{f"answers_{status}": _status(status) for status in (401, 404, 429, 500, 503)},
    "redirects": _status(302, more="location: http://127.0.0.1:9/v1\r\n"),
    "is_a_web_page": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<!doctype html><title>Hello</title>",
    "streams_garbage": HEAD + bytes(range(256)) * 64,
    "streams_wrong_json": stream('{"choices": [{"delta": {"content": 1}}]}', "{", "[1, 2]"),
    "streams_an_error": stream({"error": {"message": "out of memory", "code": 500}}),
    "ends_before_content": stream(chunk(role="assistant", content=""), done=False),
    "speaks_no_http": b"SSH-2.0-OpenSSH_9.6\r\n",
}
_CONTENT = stream(chunk(content="Half "), done=False)


async def _hangs_after_content(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(_CONTENT)
    await writer.drain()
    await reader.read()  # up to the end of the connection


#: Wrong after the first content: the client gets exactly one error.
BAD_LATER: dict[str, bytes | Behave] = {
    "hangs_after_content": _hangs_after_content,
    "closes_after_content": _CONTENT,
    "garbage_after_content": _CONTENT + bytes(range(256)) * 64 + b"\n\n",
    "error_after_content": _CONTENT + b'data: {"error": {"message": "out of memory"}}\n\n',
}


async def slow(reader: StreamReader, writer: StreamWriter) -> None:
    """A right answer, which takes some time."""
    writer.write(HEAD)
    for event in (chunk(content="one "), chunk(content="two "), chunk(content="three"), chunk("stop"), "[DONE]"):
        await asyncio.sleep(0.1)
        writer.write(b"data: %s\n\n" % text_of(event).encode())
        await writer.drain()
