"""The uvicorn server: the listening socket, signals, and a graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn.lifespan.on  # uvicorn imports it on the event loop
from litestar import Litestar

from gateway.config.tables import ServerConfig
from gateway.errors import ConfigError
from gateway.lanes.reload.presence import Presence
from gateway.lanes.reload.reloader import Reloader
from gateway.lanes.router import Router
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.refusals import RefusalLog, is_no_refusal
from gateway.server.connections import BACKLOG, LimitedProtocol, allow_open_files
from gateway.server.loop_watch import loop_watch
from gateway.server.signals.hangup import SETTLE_S, Terminal, on_hangup
from gateway.server.target import with_any_target

_log = logging.getLogger(__name__)
_TICK_S = 1.0  # both timers of `on_tick` count seconds: uvicorn's `Date` header, our check for slow clients
# Messages of asyncio.
_NO_ACCEPT = "socket.accept() out of system resource"
_NO_TRANSPORT = "Error on transport creation for incoming connection"
#: Clients use an idle connection again: httpx for up to 5 s, aiohttp 15 s, Go 90 s. A server that closes it earlier may
#: get a request at that moment, which fails.
KEEP_ALIVE_S = 120
LAST_FRAME_S = 1.0  # after the grace period, for streams to send their last frame
#: Turns of the event loop in which the requests that the system has received are accepted and read, before their
#: connections count as idle and are closed.
_TURNS = 10
_CLOSE = (b"connection", b"close")


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket. Port 0 selects a free port. Raises ConfigError if the address is not available."""
    try:
        return _listen(config.host.strip("[]"), config.port)
    except OSError as error:
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"[server] host, port: cannot listen on {where}: {error.strerror or error}") from error


def other_loopback(
    listener: socket.socket, listen: Callable[[str, int], socket.socket] | None = None
) -> list[socket.socket]:
    """The socket on ::1 with the port of a listener on 127.0.0.1: Windows resolves `localhost` to ::1 first.

    Empty for another listener, without IPv6, and if another program has the port there.
    """
    host, port = listener.getsockname()[:2]
    if host != "127.0.0.1":
        return []
    try:
        return [(listen or _listen)("::1", port)]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            _log.warning("another program listens on [::1]:%d; clients that connect to `localhost` may reach it", port)
        return []


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, port), family=family, backlog=BACKLOG)
    # asyncio sets TCP_NODELAY only if the socket's protocol is IPPROTO_TCP. Without it each small frame takes 40 ms.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())


class Server(uvicorn.Server):
    """uvicorn's server with a graceful shutdown for streams.

    1. The first SIGINT or SIGTERM stops accepting. Running requests get `shutdown_grace_s` seconds. Then the
       router ends each with an error, so that clients see a last frame. Connections that are still open are aborted.
       A second Ctrl-C ends the grace period; a third one is uvicorn's forced exit. SIGHUP does the same if the terminal
       is closed (Terminal), else it applies the changed configuration.
       With `drain_s`, SIGTERM makes /readyz 503 first; requests are accepted for that time, until another signal.
       From the first signal on, each reply closes its connection, and its header says so.
    2. uvicorn raises the signal again after its shutdown. This class does not: a requested stop is a success.
    3. uvicorn polls for a signal ten times a second. Here the signal ends a wait. There is no tick without connections.
    4. In asyncio's debug mode, callbacks that block the event loop are logged.

    Args:
        on_started: called once, on the event loop, when the socket accepts connections.
        on_stopping: called once, on the event loop, with the number of requests that have not ended.
    """

    def __init__(
        self,
        app: Litestar,
        config: ServerConfig,
        on_started: Callable[[], None] | None = None,
        on_stopping: Callable[[int], None] | None = None,
    ) -> None:
        self._presence: Presence = app.state.presence
        protocol = partial(LimitedProtocol, refusals=app.state.refusals, came=self._presence.came)
        super().__init__(
            uvicorn.Config(
                with_any_target(app),
                # h11, because httptools sends chunks to HTTP/1.0 clients
                http=cast(type[LimitedProtocol], protocol),
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
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
        self._metrics: Metrics = app.state.metrics
        self._refusals: RefusalLog = app.state.refusals
        logging.getLogger("uvicorn.error").addFilter(is_no_refusal)
        self._reloader: Reloader | None = app.state.reloader
        self._terminal = Terminal()
        self._on_started, self._on_stopping = on_started, on_stopping
        app.state.stop_server = partial(self.handle_exit, signal.SIGINT, None)
        self._state = app.state
        self._is_draining = False  # between SIGTERM and the end of accepting
        self._is_hurried = False  # a second Ctrl-C has come
        self._no_grace = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # set by `serve`

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:  # uvicorn switches debug mode off
            runner.run(self.serve(sockets))

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_failed)
        with ExitStack() as stack:
            if loop.get_debug():  # python -X dev, or PYTHONASYNCIODEBUG=1
                loop.slow_callback_duration = math.inf  # asyncio's own measurement depends on the load of the machine
                stack.enter_context(loop_watch(lambda what, _: _log.error("%s", what)))
            await super().serve([*sockets, *other_loopback(sockets[0])] if sockets else None)

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if context["message"] == _NO_ACCEPT and isinstance(error, OSError):
            self._refusals.no_connection(error)
        elif context["message"] == _NO_TRANSPORT and self.should_exit:
            pass  # it came in the moment in which the listener was closed: asyncio closes it
        else:
            loop.default_exception_handler(context)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._turn_away()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if self._on_stopping is not None:
            self._on_stopping(self._router.requests)
        ending = asyncio.create_task(self._end_requests())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    def _turn_away(self) -> None:
        """Send the next requests elsewhere: /readyz is 503 for balancers, and each reply closes its connection."""
        self._state.is_stopping = True
        if _CLOSE not in self.config.encoded_headers:
            self.config.encoded_headers.append(_CLOSE)  # uvicorn sends them with the `Date` header
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        for connection in self.server_state.connections:
            if (cycle := cast(LimitedProtocol, connection).cycle) is not None:
                cycle.default_headers = self.server_state.default_headers

    def _drain(self, seconds: float) -> None:
        _log.info("SIGTERM: /readyz is 503; requests are accepted for %g s more", seconds)
        self._turn_away()
        asyncio.get_running_loop().call_later(seconds, self._stop)

    async def _end_requests(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._no_grace.wait(), self._router.config.server.shutdown_grace_s)
        await self._router.aclose()
        await asyncio.sleep(LAST_FRAME_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def main_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while not await self.on_tick(0):  # uvicorn renews its `Date` header at ticks 0, 10, 20, ...
            if not self.server_state.connections:
                self._presence.left()
                await self._presence.someone()
                continue
            due = loop.time() + _TICK_S
            try:
                async with asyncio.timeout_at(due):
                    await self._stop_requested.wait()
            except TimeoutError:
                self._metrics.event_loop_delayed(loop.time() - due)

    async def on_tick(self, counter: int) -> bool:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            cast(LimitedProtocol, connection).check_pending(now)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals(), on_hangup(self._hung_up):
            yield

    def _hung_up(self, sig: int, frame: FrameType | None) -> None:
        if self._reloader is None or self._loop is None:
            self.handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, SETTLE_S, self._reload_or_end)

    def _reload_or_end(self) -> None:
        if self._terminal.is_closed:
            self.handle_exit(signal.SIGTERM, None)
        elif self._reloader is not None and not self.should_exit:
            self._reloader.begin()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        drain_s = self._router.config.server.drain_s
        if sig == signal.SIGTERM and drain_s and self._loop is not None and not (self._is_draining or self.should_exit):
            self._is_draining = True
            self._on_loop(partial(self._drain, drain_s))
            return
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit, self._is_hurried = self._is_hurried, True
            self._on_loop(self._no_grace.set)
        self._stop()

    def _stop(self) -> None:
        self.should_exit = True
        self._on_loop(self._stop_requested.set)
        self._on_loop(self._presence.came)

    def _on_loop(self, call: Callable[[], None]) -> None:
        """A signal handler can run between two lines of `Event.wait`, which would then wait for ever."""
        if self._loop is None:
            call()
        else:
            self._loop.call_soon_threadsafe(call)


def serve(
    app: Litestar,
    config: ServerConfig,
    *,
    listener: socket.socket | None = None,
    on_started: Callable[[], None] | None = None,
    on_stopping: Callable[[int], None] | None = None,
) -> None:
    """Serve until a signal stops the server. Prints nothing.

    Args:
        listener: from `bind`, for a caller that needs the port before; bound here if None.
        on_started, on_stopping: see Server.

    Raises ConfigError if the address is not available.
    """
    allow_open_files()
    with suppress(KeyboardInterrupt), listener or bind(config) as listening:
        Server(app, config, on_started, on_stopping).run(sockets=[listening])
