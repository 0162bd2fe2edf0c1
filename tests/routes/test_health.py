"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import threading

import httpx

from gateway.config.tables import BreakerConfig, Script, ScriptedModel, UpstreamModel
from gateway.engines.scripted.engine import ScriptedEngine
from tests.support.processes import free_port
from tests.support.server import config_of, scripted, serving, wait_until

HELLO = [{"role": "user", "content": "Hello"}]


def test_metrics_count_requests(http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json={"model": "paris", "messages": HELLO})
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'gateway_requests_total{model="paris",outcome="ok"}' in response.text


def test_readyz_reports_the_state_of_every_lane(http: httpx.Client) -> None:
    answer = http.get("/readyz")
    assert answer.status_code == 200 and answer.json()["ready"]
    states = {lane["model"]: lane for lane in answer.json()["models"]}
    assert states["paris"]["engine"]["state"] == "ready"
    assert states["paris"]["breaker"]["state"] == "closed"
    assert states["paris"]["breaker"]["budget"] is None, "the breaker of this gateway is off"
    assert states["unloadable"]["engine"]["detail"] == "The bundle is broken."


def test_healthz_is_200_and_readyz_503_while_loading() -> None:
    loaded = threading.Event()

    async def sleep(seconds: float) -> None:
        await asyncio.to_thread(loaded.wait)

    model = scripted("Hi")
    engines = {"m": ScriptedEngine("m", model, sleep=sleep)}
    with serving(config_of({"m": model}), engines, loaded=False) as server, server.http() as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/health").status_code == 200
        loading = http.get("/readyz")
        assert (loading.status_code, loading.json()["models"][0]["engine"]["state"]) == (503, "loading")
        refused = http.post("/v1/chat/completions", json={"messages": HELLO, "model": "m"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
        loaded.set()
        server.wait_until_tried()
        assert http.get("/readyz").status_code == 200


def test_readyz_is_503_while_the_only_breaker_is_open() -> None:
    breaker = BreakerConfig(latency_ms=20, min_calls=1, window=1, probe_itself=False, open_s=60)
    slow = ScriptedModel(script=Script(ttft_s=0.1), breaker=breaker)
    with serving(config_of({"m": slow})) as server, server.http() as http:
        assert http.post("/v1/chat/completions", json={"messages": HELLO, "model": "m"}).status_code == 200
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()["models"][0]["breaker"]["state"]) == (503, "open")
        budget = {"latency_ms": 20.0, "prompt_token_ms": 0.0, "token_ms": 0.0, "is_measured": False}
        assert answer.json()["models"][0]["breaker"]["budget"] == budget
        refused = http.post("/v1/chat/completions", json={"messages": HELLO, "model": "m", "stream": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "latency_breaker_open")
        assert refused.headers["x-should-retry"] == "false"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "m is too slow" in refused.json()["error"]["message"]


def test_readyz_is_503_while_no_server_of_a_model_answers_and_shows_no_address() -> None:
    ports = free_port(), free_port()
    model = UpstreamModel(targets=tuple(f"http://127.0.0.1:{port}/v1" for port in ports))
    with serving(config_of({"m": model})) as gateway, gateway.http(verify=False) as http:
        wait_until(lambda: http.get("/readyz").status_code == 503, "a server that is not there counts as ready")
        answer = http.get("/readyz")
        targets = answer.json()["models"][0]["engine"]["targets"]
        assert [(each["number"], each["state"], each["detail"]) for each in targets] == [
            (1, "down", "does not answer"),
            (2, "down", "does not answer"),
        ]
        assert not any(str(port) in answer.text for port in ports)


def test_model_for_its_first_request_does_not_make_a_starting_gateway_ready() -> None:
    loaded = threading.Event()

    async def sleep(seconds: float) -> None:
        await asyncio.to_thread(loaded.wait)

    models = {"m": scripted("Hi"), "later": ScriptedModel(load="demand")}
    engines = {"m": ScriptedEngine("m", models["m"], sleep=sleep), "later": ScriptedEngine("later", models["later"])}
    with serving(config_of(models), engines, loaded=False) as server, server.http() as http:
        loading = http.get("/readyz")
        assert [model["loads_on_demand"] for model in loading.json()["models"]] == [False, True]
        assert loading.status_code == 503
        loaded.set()
        wait_until(lambda: http.get("/readyz").status_code == 200, "the gateway did not become ready")


def test_gateway_with_models_for_their_first_request_is_ready() -> None:
    with serving(config_of({"later": ScriptedModel(load="demand")})) as server, server.http() as http:
        assert http.get("/readyz").status_code == 200
