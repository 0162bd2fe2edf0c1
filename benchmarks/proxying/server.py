"""A scripted OpenAI server that costs as little as it can: each chunk is the time at which it is sent.

    python server.py PORT

It streams `max_tokens` chunks to each request, one each `EVERY` milliseconds, which the last message says: "EVERY 10".
0: all chunks at full speed. A connection is kept, unless the client wants it closed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from typing import Any

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    b"cache-control: no-cache\r\n\r\n"
)
_READY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n" + b'{"data":[]}'
_COMMON = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"scripted"'
_CHUNK = f'data: {_COMMON},"choices":[{{"index":0,"delta":{{"content":"%d"}},"finish_reason":null}}]}}\n\n'.encode()
_END = f'data: {_COMMON},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}\n\n'.encode()
_COUNTS = '{"prompt_tokens":2,"completion_tokens":%d,"total_tokens":%d}'
_USAGE = f'data: {_COMMON},"choices":[],"usage":{_COUNTS}}}\n\n'.encode()
_AT_ONCE = 16  # chunks of a stream at full speed, in one turn of the event loop
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_EVERY = re.compile(rb"EVERY (\d+)")


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        length = int(found[1]) if (found := _LENGTH.search(head)) else 0
        if not end or len(rest) < length:
            return
        self._received = rest[length:]
        self._closes = _CLOSE.search(head) is not None
        if head.startswith(b"GET"):
            self._transport.write(_READY)
        else:
            self._answer(rest[:length])

    def _answer(self, body: bytes) -> None:
        fields = json.loads(body)
        self._count = fields.get("max_tokens") or fields["max_completion_tokens"]
        self._left = self._count
        self._wants_usage = (fields.get("stream_options") or {}).get("include_usage", False)
        self._every_s = int(_EVERY.findall(body)[-1]) / 1000
        self._due = asyncio.get_running_loop().time()
        self._transport.write(_HEAD)
        self._next()

    def _next(self) -> None:
        loop = asyncio.get_running_loop()
        if self._transport.is_closing():
            return
        for _ in range(1 if self._every_s else min(_AT_ONCE, self._left)):
            self._send(_CHUNK % time.perf_counter_ns())
        self._left -= 1 if self._every_s else min(_AT_ONCE, self._left)
        self._due += self._every_s
        if self._left:
            loop.call_at(self._due, self._next)
        else:
            self._end()

    def _end(self) -> None:
        self._send(_END)
        if self._wants_usage:
            self._send(_USAGE % (self._count, self._count + 2))
        self._send(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")
        if self._closes:
            self._transport.close()

    def _send(self, frame: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(frame), frame))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=1024)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
