"""A client of a gateway whose workers fail, and what the gateway reports of its models."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from gateway.config.tables import LocalModel
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.process import Entry
from gateway.worker.entry import local_worker
from tests.support.server import PATIENCE_S, Running, wait_until

PROMPT = list(range(40, 60))
OTHER = "other"  # the model that answers requests while another model fails


class Ending(NamedTuple):
    """How one request ended. `ask` has checked that it ended once."""

    status: int
    chunks: int
    error: dict[str, Any]  # {} if the answer is complete
    at: float


def ask(
    server: Running, model: str, prompt: Sequence[int] = PROMPT, *, begun: threading.Event | None = None, **fields: Any
) -> Ending:
    """Stream a completion. `fields` override the request. `begun` is set when the first chunk has arrived."""
    body = {
        "model": model,
        "prompt": [*prompt],
        "temperature": 0,
        "ignore_eos": True,
        "max_tokens": 400,
        "stream": True,
    }
    chunks: list[str] = []
    with (
        server.http(timeout=PATIENCE_S) as client,
        client.stream("POST", "/v1/completions", json=body | fields) as response,
    ):
        if response.status_code != 200:
            return Ending(response.status_code, 0, json.loads(response.read())["error"], time.monotonic())
        for line in response.iter_lines():
            if line.startswith("data: "):
                chunks.append(line.removeprefix("data: "))
                if begun is not None:
                    begun.set()
    last = chunks.pop() if chunks else "[DONE]"
    assert last == "[DONE]" or "[DONE]" not in chunks
    assert not any("error" in json.loads(chunk) for chunk in chunks)
    error = {} if last == "[DONE]" else json.loads(last)["error"]
    return Ending(200, len(chunks), error, time.monotonic())


@contextmanager
def streams(server: Running, model: str, count: int, **fields: Any) -> Iterator[list[Future[Ending]]]:
    """Requests whose first chunk has arrived. A request to OTHER runs at the same time and must be answered."""
    with ThreadPoolExecutor(count + 1) as pool:
        begun = [threading.Event() for _ in range(count + 1)]
        other = pool.submit(ask, server, OTHER, begun=begun[count])
        requests = [pool.submit(ask, server, model, begun=event, **fields) for event in begun[:count]]
        assert all(event.wait(PATIENCE_S) for event in begun)
        yield requests
        assert other.result(PATIENCE_S).error == {}


def local_engine(name: str, bundle: Path, entry: Entry = local_worker, **options: Any) -> LocalEngine:
    """An engine with one thread. `options`: `clock` of the engine, and keys of the model's table."""
    clock = options.pop("clock", time.monotonic)
    model = LocalModel(path=str(bundle), threads=1, **options)
    return LocalEngine(name, model, bundle.parent, entry=entry, clock=clock)


def worker_of(server: Running, model: str) -> psutil.Process:
    engine = server.app.state.router.lanes[model].engine
    while hasattr(engine, "_engine"):  # an engine of the kind of its bundle
        engine = engine._engine
    return psutil.Process(engine._supervisor._process.pid)


def engine_of(server: Running, model: str) -> dict[str, Any]:
    with server.http() as client:
        assert client.get("/healthz").status_code == 200
        rows = client.get("/readyz").json()["models"]
    return next(row["engine"] for row in rows if row["model"] == model)


def wait_for_engine(server: Running, model: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    engine: dict[str, Any] = {}

    def read() -> bool:
        engine.update(engine_of(server, model))
        return holds(engine)

    wait_until(read, f"the engine of {model} does not reach the state")
    return engine


def wait_until_restarted(server: Running, model: str, times: int = 1) -> None:
    """Wait until the model is ready again, and check how often its worker was started again."""
    engine = wait_for_engine(server, model, lambda engine: engine["restarts"] and engine["state"] == "ready")
    assert engine["restarts"] == times


def logged_fault(caplog: pytest.LogCaptureFixture, model: str) -> str:
    """The log has one line about the model's fault. Return it."""
    of_requests = "gateway.lanes.answer"
    records = [record for record in caplog.records if record.name != of_requests]
    messages = [record.getMessage() for record in records if record.levelno >= logging.WARNING]
    (line,) = (text for text in messages if text.startswith(model))
    return line
