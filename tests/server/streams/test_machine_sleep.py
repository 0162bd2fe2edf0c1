"""EventStream on a machine that sleeps between two callbacks of the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.server.sse import EventStream


class Source:
    """Two items. The first one is there when a timer of its wait is due; the machine sleeps at the second one."""

    is_over = False

    def __init__(self, first: asyncio.Event) -> None:
        self._first = first
        self._items = [b"first"]
        self.slept_s = 0.0
        self.sent: list[bytes | None] = []

    def poll(self) -> bytes | None:
        if not self._first.is_set() or not self._items:
            return None
        self.slept_s += 3600 if self._items == [b"second"] else 0
        return self._items.pop()

    async def __anext__(self) -> bytes:
        if not self._first.is_set():
            await self._first.wait()
            return self._items.pop()
        raise StopAsyncIteration

    async def send(self, message: Any) -> None:
        self.sent.append(message.get("body"))
        if self.sent[-1] == b"first":
            self._items.append(b"second")

    async def aclose(self) -> None: ...


async def test_item_that_is_there_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    source = Source(first := asyncio.Event())
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + source.slept_s)
    stream = EventStream(source, lambda item: [item], failed=lambda error: b"", ping_s=15)
    scope: Any = {"type": "http", "method": "POST", "state": {}}
    running = asyncio.ensure_future(stream(scope, asyncio.Event().wait, source.send))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    source.slept_s = 15
    first.set()
    await running
    assert source.sent == [None, b"first", b"second", b""]
