"""Everything wired together: configuration in, a running server out."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import cast

import uvicorn
from litestar import Litestar
from litestar.datastructures import State
from litestar.types import Message, Scope

from gateway.config import Config, ServerConfig
from gateway.engines.base import Engine
from gateway.engines.factory import make_engine
from gateway.errors import ConfigError
from gateway.lanes.lane import Lane
from gateway.lanes.router import Router
from gateway.metrics import Metrics
from gateway.routes import health, root, tokenize
from gateway.routes import openapi as schema
from gateway.routes.anthropic_api import routes as anthropic
from gateway.routes.error_handler import refuse
from gateway.routes.ollama_api import models as ollama_models
from gateway.routes.ollama_api import routes as ollama
from gateway.routes.openai_api import chat, completions, embeddings, models
from gateway.routes.responses_api import routes as responses
from gateway.routes.responses_api.store import ResponseStore
from gateway.server.body import bodies_within
from gateway.server.connections import BACKLOG, LimitedProtocol, allow_open_files
from gateway.server.guards import cors_of, guards_of
from gateway.server.request import request_number

HANDLERS = [
    root.root,
    chat.chat_completions,
    completions.completions,
    responses.create_response,
    responses.kept_response,
    embeddings.embeddings,
    tokenize.tokenize,
    tokenize.detokenize,
    tokenize.apply_template,
    anthropic.messages,
    anthropic.count_tokens,
    ollama.chat,
    ollama.generate,
    ollama_models.tags,
    ollama_models.show,
    ollama_models.running,
    ollama_models.version,
    models.list_models,
    models.get_model,
    health.healthz,
    health.readyz,
    health.metrics,
    schema.schema,
]
_LARGEST_BODIES = 8  # so many of the largest bodies are held at once, or more smaller ones
_TICK_S = 1.0  # what a tick does counts seconds: uvicorn renews its `Date` header, we look at who owes something
LAST_FRAME_S = 1.0  # after the grace period, for streams to send their last frame


def create_app(config: Config, engines: Mapping[str, Engine] | None = None) -> Litestar:
    """The ASGI application. `engines`: one for each model by name, not yet started; made from the config if None.

    Loading begins with the lifespan and does not hold it up: /healthz answers meanwhile. Raises ConfigError.
    """
    metrics = Metrics()
    router = Router(config, _lanes(config, engines, metrics))
    return Litestar(
        HANDLERS,
        state=State(
            {
                "router": router,
                "metrics": metrics,
                "responses": ResponseStore(),
                "started_at": int(time.time()),
            }
        ),
        lifespan=[_lifespan],
        middleware=[bodies_within(_LARGEST_BODIES * config.server.max_body_bytes)],
        guards=[*guards_of(config.server)],
        cors_config=cors_of(config.server),
        exception_handlers={Exception: refuse},
        before_send=[_add_request_id],
        request_max_body_size=config.server.max_body_bytes,
        logging_config=None,
        openapi_config=None,
        debug=False,  # said, because Litestar otherwise asks the environment
        pdb_on_exception=False,
    )


def _lanes(config: Config, engines: Mapping[str, Engine] | None, metrics: Metrics) -> dict[str, Lane]:
    return {
        name: Lane(
            name,
            model,
            make_engine(name, model, config.models_dir) if engines is None else engines[name],
            model.breaker or config.breaker,
            metrics=metrics,
            timeout_s=config.server.timeout_s,
        )
        for name, model in config.models.items()
    }


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncGenerator[None, None]:
    router: Router = app.state.router
    await router.start()
    try:
        yield
    finally:
        await router.aclose()


async def _add_request_id(message: Message, scope: Scope) -> None:
    if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], (b"x-request-id", f"req_{request_number(scope)}".encode())]


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
