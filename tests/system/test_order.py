"""Who is served when, and who is told no, over real sockets: the queue, the deadlines, the fallback, the probes."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config import BreakerConfig, LocalModel, ScriptedModel, ServerConfig
from tests.support.server import PATIENCE_S, Running, config_of, scripted, serving

TOKENS = 10
STEADY = {"replies": ["word"], "repeat": True, "token_s": 0.1}  # so an answer of TOKENS holds its place for 0.9 s


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS, **fields}


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[Running]:
    models = {
        "one": ScriptedModel(max_sequences=1, queue=2, script=STEADY),
        "slow": replace(scripted("late", ttft_s=60.0), fallback="quick", ttft_timeout_s=0.3),
        "endless": scripted("word", repeat=True, token_s=0.05),
        "quick": scripted("soon"),
        "smollm2": LocalModel(path=str(smollm2), threads=1, max_sequences=2),
    }
    with serving(config_of(models, ServerConfig(timeout_s=600.0))) as running:
        yield running


def test_the_queue_is_bounded_and_tells_the_wait_that_its_service_rate_says(server: Running) -> None:
    with server.http() as http, ThreadPoolExecutor() as pool:
        path = "/v1/chat/completions"
        assert http.post(path, json=body("one")).status_code == 200  # one answer is what is measured
        asked = [pool.submit(http.post, path, json=body("one")) for _ in range(3)]  # one runs and two wait
        row = _row(server, "one", waiting=2)
        refused = http.post(path, json=body("one"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "1 requests in progress and 2 waiting" in refused.json()["error"]["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 1 + row["expected_wait_s"] * 1.5
        assert 1.0 < row["expected_wait_s"] < PATIENCE_S  # three answers of 0.9 s, less what has run
        assert [each.result(PATIENCE_S).status_code for each in asked] == [200] * 3


def test_a_short_answer_is_not_stuck_behind_a_long_one_of_a_real_model(server: Running) -> None:
    ask = {"model": "smollm2", "prompt": [40, 41], "ignore_eos": True, "stream": True}
    with server.http() as http, http.stream("POST", "/v1/completions", json={**ask, "max_tokens": 4000}) as long:
        lines = long.iter_lines()
        next(lines)
        short = http.post("/v1/completions", json={**ask, "max_tokens": 4})
        assert short.text.endswith("data: [DONE]\n\n") and short.text.count("data: {") >= 4
        row = _row(server, "smollm2", waiting=0)
        assert row["running"] == 1  # the long one goes on
        assert next(line for line in lines if line).startswith("data: {")


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"stream": False}, {"x-request-timeout-ms": "300"}, 504),
        ({"stream": True}, {"x-request-timeout-ms": "300"}, 200),
    ],
)
def test_a_requests_own_deadline_ends_it(
    server: Running, fields: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    began = time.monotonic()
    with server.http() as http:
        reply = http.post("/v1/chat/completions", json=body("endless", max_tokens=1000, **fields), headers=headers)
    assert time.monotonic() - began < 10  # the answer would take 50 s
    last = reply.text if status == 504 else reply.text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert (reply.status_code, json.loads(last)["error"]["code"]) == (status, "deadline_exceeded")


def test_the_configured_deadline_ends_every_request() -> None:
    model = scripted("word", repeat=True, token_s=0.05)
    with serving(config_of({"m": model}, ServerConfig(timeout_s=0.4))) as server, server.http() as http:
        reply = http.post("/v1/chat/completions", json=body("m", max_tokens=1000))
        longer = http.post(
            "/v1/chat/completions", json=body("m", max_tokens=1000), headers={"x-request-timeout-ms": "60000"}
        )
    assert [each.json()["error"]["code"] for each in (reply, longer)] == ["deadline_exceeded"] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_first_token_in_time_the_fallback_answers(server: Running, stream: bool) -> None:
    began = time.monotonic()
    with server.http() as http:
        reply = http.post("/v1/chat/completions", json=body("slow", stream=stream))
    assert reply.status_code == 200 and "soon" in reply.text and '"model":"quick"' in reply.text
    assert time.monotonic() - began < 20  # of 60; the second one is foreseen, and does not even wait the 0.3 s


def test_of_a_thousand_requests_at_once_none_but_the_probes_reach_a_half_open_model() -> None:
    failing = [{"requests": [0], "error": "EngineFailed"}]
    model = replace(scripted("word", ttft_s=(0.0, 600.0), faults=failing), max_sequences=8)
    breaker = BreakerConfig(latency_ms=600_000, min_calls=1, open_s=0.5, probes=3, probe_itself=False)
    with serving(config_of({"m": model}, breaker=breaker)) as server, server.http() as http:
        assert http.post("/v1/chat/completions", json=body("m")).status_code == 503
        lane = server.app.state.router.lanes["m"]
        until = time.monotonic() + PATIENCE_S
        while lane.breaker.state != "half_open":
            assert time.monotonic() < until
            time.sleep(0.01)
        codes = Counter(asyncio.run(_refusals(server.port, 1000, 997)))
        assert codes == {"latency_breaker_open": 997}
        assert lane.engine._requests == 1 + 3


async def _refusals(port: int, count: int, wanted: int) -> list[str]:
    """Send `count` requests at once; the codes of the first `wanted` answers. The others are left."""
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


def _row(server: Running, model: str, *, waiting: int) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE_S
    with server.http() as http:
        while True:
            row: dict[str, Any] = next(r for r in http.get("/readyz").json()["models"] if r["model"] == model)
            if row["waiting"] == waiting:
                return row
            assert time.monotonic() < until, row
