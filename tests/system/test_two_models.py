"""A larger model with a lighter one as its fallback: SmolLM2 with exact products, and with int8 activations.

Real bundles, real workers, a real socket. While the larger model is busy, unloaded, dead or slow, the lighter one
answers, and the body, the header and the log say so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from msgspec.structs import replace

from gateway.config.tables import BreakerConfig, LocalModel
from gateway.lanes.lane import Lane
from tests.support.server import PATIENCE_S, Running, config_of, serving, wait_until

PROMPT: Any = [{"role": "user", "content": "What is the capital of France?"}]
BODY: dict[str, Any] = {"model": "larger", "messages": PROMPT, "max_tokens": 8, "temperature": 0}
#: Every answer is slower than this. The breaker opens at the sixth of them, in the last test, and no probe closes it.
SLOW = BreakerConfig(latency_ms=1e-6, min_calls=6, open_s=1e6)


@pytest.fixture(scope="module")
def server(smollm2: Path, smollm2_int8: Path) -> Iterator[Running]:
    models = {
        "larger": LocalModel(
            path=str(smollm2), threads=1, max_sequences=1, queue=0, prefix_cache=False, fallback="lighter", breaker=SLOW
        ),
        "lighter": LocalModel(path=str(smollm2_int8), threads=1, max_sequences=1),
    }
    with serving(config_of(models)) as running:
        yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def lane_of(server: Running) -> Lane:
    lane: Lane = server.app.state.router.lanes["larger"]
    return lane


def answer(http: httpx.Client) -> tuple[str, str]:
    """The model that answered, and the header. Of this question, only the larger model knows the answer."""
    reply = http.post("/v1/chat/completions", json=BODY)
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] > 0, reply.text
    model = reply.json()["model"]
    assert model == "lighter" or "Paris" in reply.text
    return model, reply.headers.get("x-gateway-fallback", "")


def lines(caplog: pytest.LogCaptureFixture, logger: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith(logger)]


def test_larger_model_answers_while_it_can(http: httpx.Client) -> None:
    assert answer(http) == ("larger", "")


def test_lighter_model_answers_while_the_larger_is_busy(
    server: Running, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    endless = {**BODY, "stream": True, "max_tokens": 8000, "ignore_eos": True}
    with server.http() as other, other.stream("POST", "/v1/chat/completions", json=endless) as stream:
        chunks = stream.iter_lines()  # httpx closes the stream with its iterator
        next(chunks)
        assert answer(http) == ("lighter", "lighter;cause=rate_limit_exceeded")
    assert any("its queue is full; lighter answers" in line for line in lines(caplog, "gateway.lanes"))
    assert lines(caplog, "gateway.lanes.answer")[0].startswith("larger -> lighter (rate_limit_exceeded)  chat")
    wait_until(lambda: not lane_of(server).status.running, "the stream that its client left still runs")


def test_lighter_model_answers_while_the_larger_is_loaded(server: Running, http: httpx.Client) -> None:
    """The configured limit is shorter than any load. It is set here: a real answer may take as long as it likes."""
    assert http.post("/v1/models/larger/unload").json()["engine"]["state"] == "unloaded"
    lane = lane_of(server)
    lane.config = replace(lane.config, ttft_timeout_s=0.001)
    try:
        assert answer(http) == ("lighter", "lighter;cause=model_not_ready")
    finally:
        lane.config = replace(lane.config, ttft_timeout_s=None)
    assert answer(http) == ("larger", "")


def test_lighter_model_answers_while_the_larger_starts_again(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new worker starts after the answer, because it could be ready before the request comes."""
    engine, answered = lane_of(server).engine, threading.Event()
    start = engine.start

    async def start_later() -> None:
        await asyncio.to_thread(answered.wait, PATIENCE_S)
        await start()

    monkeypatch.setattr(engine, "start", start_later)
    worker = psutil.Process(lane_of(server).status.engine.pid)
    worker.kill()
    worker.wait(PATIENCE_S)
    model, header = answer(http)
    assert model == "lighter" and header in ("lighter;cause=model_not_ready", "lighter;cause=engine_failed")
    answered.set()
    wait_until(lambda: lane_of(server).status.engine.state == "ready", "the worker does not start again")
    assert answer(http) == ("larger", "")


def test_lighter_model_answers_when_the_larger_has_been_slow(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers = iter(lambda: answer(http), ("lighter", "lighter;cause=latency_breaker_open"))
    assert all(each == ("larger", "") for each in islice(answers, SLOW.min_calls + 1))
    opened = next(line for line in lines(caplog, "gateway.lanes") if "breaker open" in line)
    assert "'lighter' answers" in opened
    assert lines(caplog, "gateway.lanes.answer")[-1].startswith("larger -> lighter (latency_breaker_open)  chat")
