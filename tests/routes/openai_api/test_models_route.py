"""GET /v1/models, /v1/models/{id}, /healthz, /readyz, /metrics and /."""

from __future__ import annotations

import logging
import time

import httpx
import openai as sdk
import pytest
from openai import OpenAI

from gateway.config import BreakerConfig, ScriptedModel
from tests.routes.conftest import MODELS
from tests.support.server import Running, config_of, scripted, serving

HELLO = [{"role": "user", "content": "Hello"}]


def test_list_has_models_and_aliases_with_every_required_field(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {entry["id"] for entry in listed["data"]} == {*MODELS, "gpt-4o-mini", "org/alias:7b"}
    for entry in listed["data"]:
        assert entry["object"] == "model"
        assert isinstance(entry["created"], int) and abs(entry["created"] - time.time()) < 3600
        assert entry["owned_by"] == "npu-gateway"


def test_entry_says_what_editors_ask(http: httpx.Client) -> None:
    entry = http.get("/v1/models/narrow").json()
    assert (entry["context_length"], entry["device"], entry["state"]) == (8, "simulated", "ready")
    assert entry["capabilities"] == ["chat", "tools", "logprobs"]  # a script is held to no grammar
    assert http.get("/v1/models/unloadable").json()["state"] == "failed"


def test_a_model_that_runs_here_can_be_held_to_a_schema(local: Running) -> None:
    with local.http() as http:
        entry = http.get("/v1/models/tiny").json()
        shown = http.post("/api/show", json={"model": "tiny"}).json()
    assert entry["capabilities"] == ["chat", "tools", "logprobs", "structured_outputs"]
    assert shown["capabilities"] == ["completion", "tools"]


def test_a_request_for_an_unknown_model_is_in_the_log(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gateway")
    response = http.post("/v1/chat/completions", json={"model": "no\nsuch", "messages": HELLO})
    [line] = [record.getMessage() for record in caplog.records if "model_not_found" in record.getMessage()]
    assert line == f"{response.headers['x-request-id']}  no\\nsuch  model_not_found"


@pytest.mark.parametrize("name", ["paris", "gpt-4o-mini", "org/alias:7b", "café"])
def test_retrieve_by_name_or_alias_percent_encoded(openai: OpenAI, name: str) -> None:
    model = openai.models.retrieve(name)
    assert model.id == name
    assert model in openai.models.list().data


def test_slash_may_come_as_it_is_or_encoded(http: httpx.Client) -> None:
    plain, encoded = http.get("/v1/models/org/alias:7b"), http.get("/v1/models/org%2Falias%3A7b")
    assert plain.json() == encoded.json()
    assert plain.json()["root"] == "paris"


def test_retrieve_unknown_is_404(openai: OpenAI) -> None:
    with pytest.raises(sdk.NotFoundError) as caught:
        openai.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_reply_to_an_alias_names_a_listed_model(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO)  # type: ignore[arg-type]
    assert reply.model in {model.id for model in openai.models.list()}


def test_root_answers_people_and_knocks(http: httpx.Client) -> None:
    assert "npu-gateway" in http.get("/").text
    knock = http.head("/")
    assert (knock.status_code, knock.content) == (200, b"")


def test_metrics_count_requests(http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json={"model": "paris", "messages": HELLO})
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'gateway_requests_total{model="paris",outcome="ok"}' in response.text


def test_ready_says_the_state_of_every_lane(http: httpx.Client) -> None:
    answer = http.get("/readyz")
    assert answer.status_code == 200 and answer.json()["ready"]
    states = {lane["model"]: lane for lane in answer.json()["models"]}
    assert states["paris"]["engine"]["state"] == "ready"
    assert states["paris"]["breaker"]["state"] == "closed"
    assert states["unloadable"]["engine"]["detail"] == "The bundle is broken."


def test_alive_while_loading_and_ready_after() -> None:
    with serving(config_of({"m": scripted("Hi", load_s=0.7)}), loaded=False) as server, server.http() as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/health").status_code == 200
        loading = http.get("/readyz")
        assert (loading.status_code, loading.json()["models"][0]["engine"]["state"]) == (503, "loading")
        refused = http.post("/v1/chat/completions", json={"messages": HELLO, "model": "m"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
        server.wait_until_tried()
        assert http.get("/readyz").status_code == 200


def test_not_ready_while_the_only_breaker_is_open() -> None:
    breaker = BreakerConfig(latency_ms=20, min_calls=1, window=1, probe_itself=False, open_s=60)
    slow = ScriptedModel(script={"ttft_s": 0.1}, breaker=breaker)
    with serving(config_of({"m": slow})) as server, server.http() as http:
        assert http.post("/v1/chat/completions", json={"messages": HELLO, "model": "m"}).status_code == 200
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()["models"][0]["breaker"]["state"]) == (503, "open")
        refused = http.post("/v1/chat/completions", json={"messages": HELLO, "model": "m", "stream": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "latency_breaker_open")
        assert refused.headers["x-should-retry"] == "false"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "m is too slow" in refused.json()["error"]["message"]


def test_open_breaker_moves_to_the_fallback_and_the_reply_says_so() -> None:
    breaker = BreakerConfig(latency_ms=20, min_calls=1, window=1, probe_itself=False, open_s=60)
    slow = ScriptedModel(script={"ttft_s": 0.1}, breaker=breaker, fallback="quick")
    with serving(config_of({"large": slow, "quick": scripted("Quickly.")})) as server, server.openai() as openai:
        served = [
            openai.chat.completions.create(model="large", messages=HELLO).model  # type: ignore[arg-type]
            for _ in range(2)
        ]
        assert served == ["large", "quick"]
        stream = openai.chat.completions.create(model="large", messages=HELLO, stream=True)  # type: ignore[call-overload]
        assert {chunk.model for chunk in stream} == {"quick"}


def test_request_without_a_model_gets_the_default_one(server: Running, http: httpx.Client) -> None:
    refused = http.post("/v1/chat/completions", json={"messages": HELLO})
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
    with serving(config_of({"m": scripted("Hi")}, default_model="m")) as other, other.http() as client:
        for fields in ({}, {"model": None}, {"model": "gpt-4o"}):
            reply = client.post("/v1/chat/completions", json={"messages": HELLO, **fields})
            assert (reply.status_code, reply.json()["model"]) == (200, "m")
