"""GET /v1/models and /v1/models/{id}, and the choice of a model by name."""

from __future__ import annotations

import logging
import time

import httpx
import openai as sdk
import pytest
from openai import OpenAI

from gateway.config.tables import BreakerConfig, Script, ScriptedModel
from tests.routes.conftest import MODELS
from tests.support.server import Running, config_of, scripted, serving

HELLO = [{"role": "user", "content": "Hello"}]


def test_list_has_models_and_aliases_with_required_fields(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {entry["id"] for entry in listed["data"]} == {*MODELS, "gpt-4o-mini", "org/alias:7b"}
    for entry in listed["data"]:
        assert entry["object"] == "model"
        assert isinstance(entry["created"], int) and abs(entry["created"] - time.time()) < 3600
        assert entry["owned_by"] == "npu-gateway"


def test_entry_has_context_length_device_state_and_capabilities(http: httpx.Client) -> None:
    entry = http.get("/v1/models/narrow").json()
    assert (entry["context_length"], entry["device"], entry["state"]) == (8, "simulated", "ready")
    assert entry["capabilities"] == ["chat", "tools", "logprobs"]  # scripted models have no constrained decoding
    assert http.get("/v1/models/unloadable").json()["state"] == "failed"


def test_local_model_has_structured_outputs_capability(local: Running) -> None:
    with local.http() as http:
        entry = http.get("/v1/models/tiny").json()
        shown = http.post("/api/show", json={"model": "tiny"}).json()
    assert entry["capabilities"] == ["chat", "tools", "logprobs", "structured_outputs"]
    assert shown["capabilities"] == ["completion", "tools"]


def test_request_for_an_unknown_model_is_logged(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gateway")
    response = http.post("/v1/chat/completions", json={"model": "no\nsuch", "messages": HELLO})
    [line] = [record.getMessage() for record in caplog.records if "model_not_found" in record.getMessage()]
    assert line == f"{response.headers['x-request-id']}  no\\nsuch  model_not_found"


@pytest.mark.parametrize("name", ["paris", "gpt-4o-mini", "org/alias:7b", "café"])
def test_retrieve_by_percent_encoded_name_or_alias(openai: OpenAI, name: str) -> None:
    model = openai.models.retrieve(name)
    assert model.id == name
    assert model in openai.models.list().data


def test_slash_in_a_name_may_be_plain_or_encoded(http: httpx.Client) -> None:
    plain, encoded = http.get("/v1/models/org/alias:7b"), http.get("/v1/models/org%2Falias%3A7b")
    assert plain.json() == encoded.json()
    assert plain.json()["root"] == "paris"


def test_retrieve_unknown_model_is_404(openai: OpenAI) -> None:
    with pytest.raises(sdk.NotFoundError) as caught:
        openai.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_reply_to_an_alias_names_a_listed_model(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO)  # type: ignore[arg-type]
    assert reply.model in {model.id for model in openai.models.list()}


def test_open_breaker_reply_names_the_fallback() -> None:
    breaker = BreakerConfig(latency_ms=20, min_calls=1, window=1, probe_itself=False, open_s=60)
    slow = ScriptedModel(script=Script(ttft_s=0.1), breaker=breaker, fallback="quick")
    with serving(config_of({"large": slow, "quick": scripted("Quickly.")})) as server, server.openai() as openai:
        served = [
            openai.chat.completions.create(model="large", messages=HELLO).model  # type: ignore[arg-type]
            for _ in range(2)
        ]
        assert served == ["large", "quick"]
        stream = openai.chat.completions.create(model="large", messages=HELLO, stream=True)  # type: ignore[call-overload]
        assert {chunk.model for chunk in stream} == {"quick"}


def test_request_without_model_gets_the_default_model(server: Running, http: httpx.Client) -> None:
    refused = http.post("/v1/chat/completions", json={"messages": HELLO})
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
    with serving(config_of({"m": scripted("Hi")}, default_model="m")) as other, other.http() as client:
        for fields in ({}, {"model": None}, {"model": "gpt-4o"}):
            reply = client.post("/v1/chat/completions", json={"messages": HELLO, **fields})
            assert (reply.status_code, reply.json()["model"]) == (200, "m")
