"""The gateway on a real socket, in a thread of the test process."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import httpx
import msgspec
from litestar import Litestar
from msgspec.structs import replace
from openai import OpenAI

from gateway.app import create_app
from gateway.config.tables import BreakerConfig, Config, ModelConfig, Script, ScriptedModel, ServerConfig
from gateway.engines.base import Engine
from gateway.server.server import Server, bind

PATIENCE_S = 60.0  # a real model may take this long to load on a busy machine


class Running:
    """A server that accepts connections."""

    def __init__(self, app: Litestar, server: Server, port: int) -> None:
        self.app = app
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """Stop as a signal does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "x", "max_retries": 0, "timeout": PATIENCE_S, **options}
        )

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(**{"base_url": self.url, "timeout": PATIENCE_S, "trust_env": False, **options})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def exchange(self, request: bytes) -> bytes:
        """Send raw bytes and read until the server closes the connection."""
        with closing(self.connect()) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def wait_until_tried(self) -> None:
        """Wait until every model is ready, or failed to load once."""
        with self.http() as client:
            wait_until(
                lambda: all(m["engine"]["state"] != "loading" for m in client.get("/readyz").json()["models"]),
                "a model is still loading",
            )


def wait_until(condition: Callable[[], bool], message: str) -> None:
    """Poll `condition`; fail with `message` after PATIENCE_S seconds."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, message
        time.sleep(0.02)


def config_of(models: Mapping[str, ModelConfig], server: ServerConfig | None = None, **fields: Any) -> Config:
    """A configuration without a circuit breaker, unless `fields` has one."""
    fields = {"breaker": BreakerConfig(enabled=False), **fields}
    return Config(server=replace(server or ServerConfig(), port=0), models=dict(models), **fields)


def scripted(*replies: str, **script: Any) -> ScriptedModel:
    if replies:
        script["replies"] = replies
    return ScriptedModel(script=script_of(**script))


def script_of(**fields: Any) -> Script:
    """A script from the values of a `[models.NAME.script]` table."""
    return msgspec.convert(fields, Script)


@contextmanager
def serving(
    config: Config, engines: Mapping[str, Engine] | None = None, *, loaded: bool = True, **options: Any
) -> Iterator[Running]:
    """A running server, stopped at the end. `loaded`: wait until every model is ready, or failed to load once.
    `options`: of `create_app`."""
    config = replace(config, server=replace(config.server, port=0))
    app = create_app(config, engines, **options)
    with bind(config.server) as listener:
        started = threading.Event()
        server = Server(app, config.server, started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert started.wait(PATIENCE_S), "the server did not start"
            running = Running(app, server, listener.getsockname()[1])
            if loaded:
                running.wait_until_tried()
            yield running
        finally:
            if not server.should_exit:
                server.handle_exit(signal.SIGTERM, None)
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the server did not stop"


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The `error` object of an error reply in OpenAI's form."""
    assert response.headers["content-type"] == "application/json"
    [(name, error)] = response.json().items()
    assert name == "error" and error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and isinstance(error["type"], str)
    return dict(error)
