"""The uvicorn server: the listening socket, signals, and a graceful shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import cast

import uvicorn
from litestar import Litestar

from gateway.config import ServerConfig
from gateway.errors import ConfigError
from gateway.lanes.router import Router
from gateway.server.connections import BACKLOG, LimitedProtocol, allow_open_files

_TICK_S = 1.0  # both timers of `on_tick` count seconds: uvicorn's `Date` header, our check for slow clients
LAST_FRAME_S = 1.0  # after the grace period, for streams to send their last frame


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket; port 0 takes a free one. Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        made = socket.create_server((config.host.strip("[]"), config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"[server] host, port: cannot listen on {where}: {error.strerror or error}") from error
    # asyncio sends small frames at once (TCP_NODELAY) only on sockets that say they are TCP; without that: 40 ms each.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())


class Server(uvicorn.Server):
    """uvicorn's server, stopping the way streams like it.

    1. A first SIGINT or SIGTERM stops accepting; requests that run get `shutdown_grace_s`, then the router ends each
       with an error of its own, so that no client that reads sees a body cut off. Who neither reads nor sends is cut
       off then. A second Ctrl-C ends the grace; a third is uvicorn's, which drops everything.
    2. uvicorn would raise the signal again when it has stopped; a server that stopped as asked has succeeded.
    3. uvicorn looks ten times a second whether a signal has come; here the signal ends the pause between two ticks.

    Args:
        on_started: called once the socket accepts.
    """

    def __init__(self, app: Litestar, config: ServerConfig, on_started: Callable[[], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=LimitedProtocol,  # h11: an answer to HTTP/1.0 must not be chunked, which it does not know
                backlog=BACKLOG,
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
            )
        )
        self._router: Router = app.state.router
        self._grace_s = config.shutdown_grace_s
        self._on_started = on_started
        self._hurried = asyncio.Event()
        self._asked_to_stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # once it runs

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_requests())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_requests(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), self._grace_s)
        await self._router.aclose()
        await asyncio.sleep(LAST_FRAME_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):  # uvicorn renews the header at every tenth tick, counted from 0
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._asked_to_stop.wait()

    async def on_tick(self, counter: int) -> bool:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            cast(LimitedProtocol, connection).settle(now)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = self._hurried.is_set()
            self._hurried.set()
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._asked_to_stop.set)  # a handler runs between any two instructions


def serve(
    app: Litestar,
    config: ServerConfig,
    *,
    listener: socket.socket | None = None,
    on_started: Callable[[], None] | None = None,
) -> None:
    """Serve until a signal says stop; prints nothing.

    Args:
        listener: from `bind`, so that the caller may tell the port first; bound here if None.
        on_started: called once, on the event loop, when the socket accepts.

    Raises ConfigError when the address cannot be had.
    """
    allow_open_files()
    with suppress(KeyboardInterrupt), listener or bind(config) as listening:
        Server(app, config, on_started).run(sockets=[listening])
