"""Counts what uses an engine, so that the engine is closed when nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Uses:
    """The number of requests that need an engine: accepted ones, and those that only need its tokenizer."""

    def __init__(self) -> None:
        self._count = 0
        self._over = asyncio.Event()
        self._over.set()

    def begin(self) -> None:
        self._count += 1
        self._over.clear()

    def end(self) -> None:
        self._count -= 1
        if not self._count:
            self._over.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()

    def __len__(self) -> int:
        return self._count

    async def over(self) -> None:
        """Wait until there is none."""
        await self._over.wait()
