"""One server of a model: its HTTP client, its requests in flight and its health."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.config.hosts import server_url
from gateway.config.tables import UpstreamTarget
from gateway.engines.base import TargetStatus
from gateway.engines.upstream import reach
from gateway.engines.upstream.client import HttpClient
from gateway.engines.upstream.targets.health import Health
from gateway.engines.upstream.targets.silence import Silence

_CONNECT_S = 3.0  # with other targets: a machine that is off answers nothing at all
PROBE_S = 3.0


class Target:
    """Args:
    number: in the configuration, from 1.
    server: its URL, name of the model and key.
    is_only: the model has no other target.
    """

    def __init__(self, number: int, server: UpstreamTarget, *, is_only: bool) -> None:
        url = server_url(server.url)
        self.number, self.server = number, server
        self.address = url.netloc
        self.client = HttpClient(url, server.api_key, *(() if is_only else (_CONNECT_S,)))
        self.health = Health(_now)
        self.silence = Silence(self.is_silent)
        self.wanted = asyncio.Event()  # the model got a request after the last trial
        self.running = 0

    def __str__(self) -> str:
        return f"server {self.number} ({self.address})"

    @property
    def relative_load(self) -> float:
        """Its requests in flight, for its weight."""
        return self.running / self.server.weight

    @property
    def status(self) -> TargetStatus:
        return TargetStatus(
            number=self.number,
            state=self.health.state,
            detail=self.health.reason,
            running=self.running,
            weight=self.server.weight,
        )

    async def check(self) -> tuple[str, reach.Level]:
        """Ask for the list of models. Returns what is wrong, with the next step; "": nothing."""
        return await reach.check(self.client, self.server, PROBE_S)

    @contextmanager
    def counted(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def is_silent(self) -> bool:
        _, level = await self.check()
        return level == "silent"

    async def aclose(self) -> None:
        await self.silence.aclose()
        await self.client.aclose()


def _now() -> float:
    return asyncio.get_running_loop().time()
