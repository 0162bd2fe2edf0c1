"""Whether someone is connected. While no client is, nothing looks at files at fixed times: the machine can sleep.

The watcher of the configuration looks at once when someone comes, and a request waits for the end of that look. So it
finds a model that was added meanwhile.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

#: A request waits no longer for the look at the files: a network drive can be slow. To apply a change takes a second.
_LOOK_S = 3.0


class Presence:
    """A server says who is connected. Without a server, someone always is."""

    def __init__(self) -> None:
        self._here, self._fresh = asyncio.Event(), asyncio.Event()
        self.came()
        self.looked()

    @property
    def is_here(self) -> bool:
        return self._here.is_set()

    def came(self) -> None:
        """Someone has connected, or the server stops."""
        self._here.set()

    def left(self) -> None:
        """The last connection has ended."""
        self._here.clear()

    async def someone(self) -> None:
        """Wait until someone is connected."""
        await self._here.wait()

    def rests(self) -> None:
        """The watcher does not look until someone comes."""
        self._fresh.clear()

    def looked(self) -> None:
        """The watcher has looked after someone came."""
        self._fresh.set()

    @property
    def is_fresh(self) -> bool:
        return self._fresh.is_set()

    async def fresh(self) -> None:
        """Wait for the look that follows a time without a connection."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._fresh.wait()
