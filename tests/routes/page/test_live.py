"""GET /gateway/live and /gateway/log over a real socket."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.config.tables import BreakerConfig, Script, ScriptedModel, ServerConfig
from tests.support.server import Running, config_of, error_of, scripted, serving

CHAT = "/v1/chat/completions"
KEYS = ServerConfig(api_keys={"anna": "sk-anna", "ben": "sk-ben"}, log_prompts=True)
SLOW = ScriptedModel(
    script=Script(ttft_s=0.05, cached_tokens=2),
    breaker=BreakerConfig(latency_ms=20, token_ms=7, min_calls=1, window=1, probe_itself=False, open_s=600),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = {"m": scripted("a b c"), "slow": SLOW, "broken": scripted("a", load_error="The bundle is broken.")}
    with serving(config_of(models, KEYS), config_file="/etc/gateway.toml") as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http(headers={"authorization": "Bearer sk-anna"}) as client:
        yield client


def ask(http: httpx.Client, model: str, **headers: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "a secret question"}]}
    return http.post(CHAT, json=body, headers=headers)


def live(http: httpx.Client, after: int = 0) -> dict[str, Any]:
    response = http.get("/gateway/live", params={"after": after})
    assert response.status_code == 200
    return dict(response.json())


def test_answers_follow_the_number_of_the_last_poll(http: httpx.Client) -> None:
    before = live(http)
    assert (before["config_file"], before["chip"]) == ("/etc/gateway.toml", "")
    assert 0 < before["started_at"] <= before["now"]
    assert before["gateway"]["memory_mb"] > 10
    seq = max((answer["seq"] for answer in before["answers"]), default=0)
    ask(http, "m", authorization="Bearer sk-ben")
    ask(http, "nowhere" * 100)
    [answered, unknown] = live(http, after=seq)["answers"]
    assert (answered["seq"], answered["model"], answered["key"], answered["endpoint"]) == (seq + 1, "m", "ben", CHAT)
    assert (answered["ending"], answered["status"], answered["completion_tokens"]) == ("stop", 200, 4)
    assert answered["ttft_ms"] >= 0 and answered["per_token_ms"] >= 0
    assert (unknown["model"], unknown["ending"], unknown["status"]) == ("", "model_not_found", 404)
    assert len(unknown["requested"]) <= 110
    assert live(http, after=seq + 2)["answers"] == []


def test_path_of_a_client_is_cut(http: httpx.Client) -> None:
    http.get("/v1/models/" + "x" * 50_000)
    [*_, answer] = live(http)["answers"]
    assert answer["endpoint"].startswith("/v1/models/xxx") and len(answer["endpoint"]) <= 110


def test_breaker_and_limits_are_in_numbers(http: httpx.Client) -> None:
    assert ask(http, "slow").status_code == 200
    assert ask(http, "slow").status_code == 503
    body = live(http)
    slow, refused = [answer for answer in body["answers"] if answer["model"] == "slow"][-2:]
    assert (slow["limit_ttft_ms"], slow["limit_per_token_ms"], slow["is_slow"]) == (20.0, 7.0, True)
    assert slow["device_ms"] > 20
    assert (refused["ending"], refused["status"], refused["is_slow"]) == ("latency_breaker_open", 503, False)
    [model] = [model for model in body["models"] if model["model"] == "slow"]
    assert model["breaker"]["state"] == "open" and 0 < model["breaker"]["retry_after_s"] <= 600
    assert model["budget"] == model["breaker"]["budget"]
    prompt_tokens = slow["prompt_tokens"]
    assert model["prefix_cache"] == {"hit_tokens": 2, "prompt_tokens": prompt_tokens}


def test_model_that_cannot_load_says_why(http: httpx.Client) -> None:
    states = {model["model"]: model for model in live(http)["models"]}
    assert (states["m"]["load_state"], states["broken"]["load_state"]) == ("ready", "failed")
    assert states["broken"]["engine"]["detail"] == "The bundle is broken."


def test_log_has_lines_and_no_prompt(http: httpx.Client) -> None:
    logger = logging.getLogger("gateway.lanes.answer")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        ask(http, "m")
    finally:
        logger.setLevel(level)
    lines = http.get("/gateway/log").json()["lines"]
    assert lines[-1]["level"] == "INFO" and "4 tokens" in lines[-1]["text"]
    assert "secret" not in str(lines)
    last = lines[-1]["n"]
    assert http.get("/gateway/log", params={"after": last - 1}).json()["lines"] == [lines[-1]]
    assert http.get("/gateway/log", params={"after": last}).json()["lines"] == []


@pytest.mark.parametrize("path", ["/gateway/live", "/gateway/log"])
@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "after=1.0", "after=", "after=1&after=2", "after=" + "9" * 99]
)
def test_wrong_after_is_400(http: httpx.Client, path: str, query: str) -> None:
    response = http.get(f"{path}?{query}")
    assert (response.status_code, error_of(response)["param"]) == (400, "after")
    assert "'after' must be one whole number from 0" in error_of(response)["message"]
    assert len(error_of(response)["message"]) < 250


@pytest.mark.parametrize("path", ["/gateway/live", "/gateway/log"])
def test_key_is_needed(server: Running, path: str) -> None:
    with server.http() as client:
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer sk-ben"}).status_code == 200
        assert client.get(path, headers={"origin": "http://evil.example", "host": "127.0.0.1"}).status_code == 403


def test_log_of_closed_gateway_gets_no_more_lines() -> None:
    before = list(logging.getLogger().handlers)
    with serving(config_of({"m": scripted("a")})) as server:
        ring = server.app.state.live.log
        assert ring in logging.getLogger().handlers
    assert logging.getLogger().handlers == before
