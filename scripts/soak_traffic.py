"""The clients of soak.py: chats, streams, clients that leave, slow readers and invalid requests.

A well-behaved client only chats and streams, and every answer but a complete one is a fault.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpx

REPLY_S = 180.0  # a response that takes longer is lost, on any machine
REFUSED_S = 1.0  # the pause of a client after a refusal

_program: ContextVar[str] = ContextVar("_program")  # the gateway takes turns between programs, by what they send

#: Statuses that a gateway may answer under load, after a worker was killed, and while the worker starts again.
REFUSALS = (429, 503, 504)
QUESTION = [{"role": "user", "content": "Say something about the sea."}]
INVALID: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"[1, 2]", 400),
    (b'{"messages": 5}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 9}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -2}', 400),
    (b'{"messages": [{"role": "friend", "content": "x"}]}', 400),
    (b'{"model": "unknown model", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    (b"\xff\xfe\x00", 400),
]


class Traffic:
    """Requests of one gateway and their endings. `faults` lists the endings that must not occur.

    Args:
        well_behaved: only chats and streams, which must all be answered.
    """

    def __init__(self, url: str, model: str, *, well_behaved: bool = False) -> None:
        self._url, self._model = url, model
        self._random = random.Random(0)
        self._well_behaved = well_behaved
        self.http = httpx.AsyncClient(base_url=url, timeout=REPLY_S)
        self.endings: Counter[str] = Counter()
        self.faults: list[str] = []
        self.first_s: list[float] = []  # of streams: seconds to the first chunk
        self.whole_s: list[float] = []  # of complete responses: seconds to the end

    async def start_grammars(self) -> None:
        """The process for grammars starts after the model is ready. After this it runs, and counts from the start."""
        body = self._body(stream=False, max_tokens=1) | {"response_format": {"type": "json_object"}}
        with suppress(httpx.HTTPError):
            await self.http.post("/v1/chat/completions", json=body)

    async def client(self, name: str) -> None:
        """Send one request of a random kind, as the program `name`."""
        _program.set(name)
        kinds = [self._chat, self._stream, self._stream]
        if not self._well_behaved:
            kinds += [self._cancel, self._read_slowly, self._send_invalid]
        kind = self._random.choice(kinds)
        try:
            ending = await kind()
        except (httpx.TimeoutException, TimeoutError):
            ending = "no end"
        except (httpx.HTTPError, OSError) as error:
            ending = f"cut off: {type(error).__name__}"
        except Exception as error:  # the other clients go on, and the report has the reason
            ending = f"unexpected: {error!r}"
        self.endings[ending] += 1
        if ending.startswith("refused"):
            await asyncio.sleep(REFUSED_S)
        if ending.startswith(("no end", "cut off", "unexpected")) or (self._well_behaved and ending != "answered"):
            self.faults.append(f"{kind.__name__.strip('_')}: {ending}")

    async def _chat(self) -> str:
        start = time.monotonic()
        headers = {"User-Agent": _program.get()}
        response = await self.http.post("/v1/chat/completions", json=self._body(stream=False), headers=headers)
        if response.status_code != 200:
            return _refusal(response.status_code, response.content)
        if not response.json()["choices"][0]["finish_reason"]:
            return "unexpected: a response without a finish reason"
        self.whole_s.append(time.monotonic() - start)
        return "answered"

    async def _stream(self) -> str:
        start = time.monotonic()
        headers = {"User-Agent": _program.get()}
        async with self.http.stream("POST", "/v1/chat/completions", json=self._body(), headers=headers) as response:
            if response.status_code != 200:
                return _refusal(response.status_code, await response.aread())
            frames: list[str] = []
            async for frame in _frames(response):
                if not frames:
                    self.first_s.append(time.monotonic() - start)
                frames.append(frame)
        self.whole_s.append(time.monotonic() - start)
        return _ending(frames)

    async def _cancel(self) -> str:
        chunks = self._random.randrange(6)  # 0: before the first chunk
        async with self.http.stream("POST", "/v1/chat/completions", json=self._body(max_tokens=200)) as response:
            if response.status_code != 200:
                return _refusal(response.status_code, await response.aread())
            async for _ in _frames(response):
                if chunks == 0:
                    break
                chunks -= 1
        return "cancelled"

    async def _read_slowly(self) -> str:
        """Read a stream slowly, and close the connection before its end."""
        body = json.dumps(self._body(max_tokens=200)).encode()
        async with self._socket() as (reader, writer):
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            for _ in range(20):
                async with asyncio.timeout(REPLY_S):
                    if not await reader.read(64):
                        break
                await asyncio.sleep(0.1)
        return "read slowly"

    async def _send_invalid(self) -> str:
        content, status = self._random.choice(INVALID)
        response = await self.http.post("/v1/chat/completions", content=content)
        if response.status_code == status and "message" in response.json()["error"]:
            return "rejected as invalid"
        return f"unexpected: {response.status_code} for {content[:60]!r}"

    def _body(self, *, stream: bool = True, max_tokens: int | None = None) -> dict[str, Any]:
        tokens = max_tokens or self._random.randint(1, 48)
        return {"model": self._model, "messages": QUESTION, "stream": stream, "max_tokens": tokens}

    @asynccontextmanager
    async def _socket(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        address = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _frames(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def _ending(frames: list[str]) -> str:
    """The ending of a stream: [DONE] or one error frame, and nothing after it."""
    if not frames:
        return "unexpected: an empty stream"
    *before, last = frames
    if "[DONE]" in before or any("error" in json.loads(frame) for frame in before):
        return "unexpected: something after the end"
    if last == "[DONE]":
        return "answered"
    error = json.loads(last).get("error")
    return f"failed midway: {error['code']}" if error else "unexpected: a stream without an end"


def _refusal(status: int, content: bytes) -> str:
    code = json.loads(content)["error"]["code"]
    return f"refused: {status} {code}" if status in REFUSALS else f"unexpected: {status} {code}"
