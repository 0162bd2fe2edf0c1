"""Counts what uses an engine, so that the engine is closed when nothing does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Uses:
    """The number of requests that need an engine: accepted ones, and those that only need its tokenizer.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = 0
        self._over = asyncio.Event()
        self._over.set()
        self.on_change: Callable[[], None] = lambda: None  # called when the number changes from 0 or to 0
        self.last_at = clock()  # the time of the last begin or end

    def begin(self) -> None:
        self._count += 1
        self._over.clear()
        self._changed(is_first=self._count == 1)

    def end(self) -> None:
        self._count -= 1
        if not self._count:
            self._over.set()
        self._changed(is_first=not self._count)

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

    def _changed(self, *, is_first: bool) -> None:
        self.last_at = self._clock()
        if is_first:
            self.on_change()
