"""The queue, deadlines, the fallback and the breaker's probes, over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from gateway.config.tables import BreakerConfig, LocalModel, Script, ScriptedModel, ServerConfig
from gateway.engines.scripted.engine import ScriptedEngine
from tests.support.server import PATIENCE_S, Running, config_of, scripted, serving, wait_until
from tests.support.stepped_device import SteppedDevice

PATH = "/v1/chat/completions"
TOKENS, TOKEN_S = 10, 0.1
ANSWER_S = (TOKENS - 1) * TOKEN_S  # the first token takes no time in a script without `ttft_s`


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS, **fields}


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[Running]:
    models = {
        "slow": replace(scripted("late", ttft_s=600.0), fallback="quick", ttft_timeout_s=0.3),
        "endless": scripted("word", repeat=True, token_s=0.05, context_length=1_000_000),
        "quick": scripted("soon"),
        "smollm2": LocalModel(path=str(smollm2), threads=1, max_sequences=2),
    }
    with serving(config_of(models, ServerConfig(timeout_s=600.0))) as running:
        yield running


def test_full_queue_gets_429_with_the_wait_of_the_service_rate() -> None:
    model = ScriptedModel(max_sequences=1, queue=2, script=Script(replies=("word",), repeat=True, token_s=TOKEN_S))
    device = SteppedDevice()
    engine = ScriptedEngine("m", model, clock=device.clock, sleep=device.sleep)
    with (
        serving(config_of({"m": model}), {"m": engine}) as server,
        server.http(timeout=PATIENCE_S) as http,
        ThreadPoolExecutor() as pool,
    ):
        assert http.post(PATH, json=body("m")).status_code == 200  # the service rate is measured on this answer
        device.allowed = device.calls + 1  # of the next answer, the first token only
        in_progress = [pool.submit(http.post, PATH, json=body("m")) for _ in range(3)]
        row = _row(
            server, "m", lambda row: (row["running"], row["waiting"]) == (1, 2) and device.calls > device.allowed
        )
        refused = http.post(PATH, json=body("m"))
        device.allowed = math.inf
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "1 running and 2 waiting requests" in refused.json()["error"]["message"]
        assert 2 * ANSWER_S - 0.001 < row["expected_wait_s"] < 3 * ANSWER_S  # of another client: the turns alternate
        assert int(refused.headers["retry-after"]) == math.ceil(3 * ANSWER_S)  # behind its own requests
        assert [each.result(PATIENCE_S).status_code for each in in_progress] == [200] * 3


def test_short_answer_of_a_real_model_does_not_wait_for_a_long_one(server: Running) -> None:
    fields = {"model": "smollm2", "prompt": [40, 41], "ignore_eos": True, "stream": True}
    with server.http() as http, http.stream("POST", "/v1/completions", json={**fields, "max_tokens": 4000}) as long:
        lines = long.iter_lines()
        next(lines)
        short = http.post("/v1/completions", json={**fields, "max_tokens": 4})
        assert short.text.endswith("data: [DONE]\n\n") and short.text.count("data: {") >= 4
        _row(server, "smollm2", lambda row: (row["running"], row["waiting"]) == (1, 0))  # the long one continues
        assert next(line for line in lines if line).startswith("data: {")


@pytest.mark.parametrize(("stream", "status"), [(False, 504), (True, 200)], ids=["whole", "streamed"])
def test_deadline_of_a_request_ends_it(server: Running, stream: bool, status: int) -> None:
    with server.http(timeout=PATIENCE_S) as http:
        reply = _until_begun(http, body("endless", max_tokens=100_000, stream=stream), status)
    last = reply.text if status == 504 else reply.text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert (reply.status_code, json.loads(last)["error"]["code"]) == (status, "deadline_exceeded")


def _until_begun(http: httpx.Client, request: dict[str, Any], status: int) -> httpx.Response:
    """Repeat the request with a longer deadline while the machine is too busy to begin a stream within it."""
    for deadline_ms in (300 * 2**n for n in range(7)):
        reply = http.post(PATH, json=request, headers={"x-request-timeout-ms": str(deadline_ms)})
        if reply.status_code == status:
            break
    return reply


def test_configured_deadline_ends_a_request_with_a_longer_one() -> None:
    model = scripted("word", repeat=True, token_s=0.05, context_length=1_000_000)
    with serving(config_of({"m": model}, ServerConfig(timeout_s=0.4))) as server, server.http() as http:
        request = body("m", max_tokens=100_000)
        reply = http.post(PATH, json=request)
        longer = http.post(PATH, json=request, headers={"x-request-timeout-ms": "60000"})
    assert [each.json()["error"]["code"] for each in (reply, longer)] == ["deadline_exceeded"] * 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_fallback_answers_without_a_first_token_in_time(server: Running, stream: bool) -> None:
    """The first token would take 600 s. The second request is refused by the forecast and does not wait 0.3 s."""
    with server.http(timeout=PATIENCE_S) as http:
        reply = http.post(PATH, json=body("slow", stream=stream))
    assert reply.status_code == 200 and "soon" in reply.text and '"model":"quick"' in reply.text


def test_only_the_probes_of_a_thousand_requests_reach_a_half_open_model() -> None:
    failing = [{"requests": [0], "error": "EngineFailed"}]
    model = replace(scripted("word", ttft_s=(0.0, 600.0), faults=failing), max_sequences=8)
    breaker = BreakerConfig(latency_ms=600_000, min_calls=1, open_s=0.5, probes=3, probe_itself=False)
    with serving(config_of({"m": model}, breaker=breaker)) as server, server.http() as http:
        assert http.post(PATH, json=body("m")).status_code == 503
        lane = server.app.state.router.lanes["m"]
        wait_until(lambda: lane.breaker.state == "half_open", "the breaker is not half-open")
        codes = Counter(asyncio.run(_refusals(server.port, 1000, 997)))
        assert codes == {"latency_breaker_open": 997}
        assert lane.engine._requests == 1 + 3


async def _refusals(port: int, count: int, wanted: int) -> list[str]:
    """Send `count` requests at once and return the error codes of the first `wanted` answers."""
    content = json.dumps(body("m")).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"

    async def one() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head % len(content) + content)
            _, _, reply = (await reader.read()).partition(b"\r\n\r\n")
            return str(json.loads(reply)["error"]["code"])
        finally:
            writer.close()

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    codes = [await each for each in itertools.islice(asyncio.as_completed(tasks), wanted)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return codes


def _row(server: Running, model: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for a row of /readyz for which `holds` is true."""
    row: dict[str, Any] = {}

    def read() -> bool:
        row.update(next(r for r in http.get("/readyz").json()["models"] if r["model"] == model))
        return holds(row)

    with server.http() as http:
        wait_until(read, f"{model} does not reach the state")
    return row
