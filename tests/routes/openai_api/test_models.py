"""GET /v1/models and /v1/models/{id}, and the choice of a model by name."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai as sdk
import pytest
from openai import OpenAI

from gateway.bundles.origin import Origin, write_origin
from gateway.config.tables import BreakerConfig, LocalModel, MemoryConfig, Script, ScriptedModel
from gateway.lanes.memory.needs import estimate
from tests.routes.conftest import MODELS
from tests.support.local_engine import make
from tests.support.server import Running, config_of, scripted, serving
from tests.support.sick_npu import npu_worker

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


def test_context_that_is_limited_for_the_memory_has_a_note(long_tiny: Path) -> None:
    """Also before the model is loaded."""
    window = estimate(LocalModel(path=str(long_tiny))).window
    assert window
    budget_mb = window.bytes * 3 // 2_000_000
    config = config_of({"m": LocalModel(path=str(long_tiny), load="demand")}, memory=MemoryConfig(budget_mb=budget_mb))
    with serving(config) as server, server.http() as http:
        card = http.get("/v1/models/m").json()
        assert card["context_note"].startswith(f"context {card['context_length']} of 8192: ")
        assert 4096 <= card["context_length"] < 8192
        assert http.get("/readyz").json()["models"][0]["engine"]["context_note"] == card["context_note"]


def test_request_for_an_unknown_model_is_logged(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gateway")
    response = http.post("/v1/chat/completions", json={"model": "no\nsuch", "messages": HELLO})
    [line] = [record.getMessage() for record in caplog.records if "model_not_found" in record.getMessage()]
    assert line.startswith("no\\nsuch  chat  404 model_not_found: The model 'no\\nsuch' does not exist; there is ")
    assert line.endswith(f"  ..{response.headers['x-request-id'][-8:]}")


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


class TestSpeed:
    """Where a model runs and how fast, in every answer. The device's clock is advanced by its passes only."""

    @pytest.fixture
    def published(self) -> float:
        return 25.0

    @pytest.fixture
    def npu(self, tiny: Path, tmp_path: Path, published: float) -> Iterator[Running]:
        """A model that calls itself one on an NPU, with 20 tokens per second."""
        bundle = Path(shutil.copytree(tiny, tmp_path / "tiny"))
        write_origin(bundle, Origin(source="m", url="", chip="x-elite", published_tokens_per_s=published))
        with serving(config_of({"m": LocalModel(threads=1)}), {"m": make(bundle, npu_worker)}) as server:
            yield server

    def answer(self, server: Running, path: str = "/v1/completions", **fields: object) -> httpx.Response:
        prompt = {"prompt": "Hello", "ignore_eos": True} if path == "/v1/completions" else {"messages": HELLO}
        with server.http() as http:
            response = http.post(path, json={"model": "m", "max_tokens": 8, "temperature": 0, **prompt, **fields})
        assert response.status_code == 200
        return response

    def test_answer_has_device_and_speeds_in_a_header(self, npu: Running) -> None:
        known = r"npu;cpu-nodes=2;tokens-per-s=\d+\.\d;published-tokens-per-s=25\.0"
        first = self.answer(npu, stream=True).headers["x-gateway-device"]  # a short answer can end before its header
        assert re.fullmatch(r"npu;cpu-nodes=2;(tokens-per-s=20\.0;)?published-tokens-per-s=25\.0", first)
        assert ";tokens-per-s=20.0;" in self.answer(npu).headers["x-gateway-device"]
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/messages"):
            for stream in (False, True):
                header = self.answer(npu, path, stream=stream).headers["x-gateway-device"]
                assert re.fullmatch(known, header), path

    def test_model_and_readiness_have_device_and_speeds(self, npu: Running) -> None:
        with npu.http() as http, npu.openai() as client:
            before = http.get("/v1/models/m").json()
            assert "tokens_per_s" not in before
            assert before["speed"] == "not measured yet, 25.0 tokens/s are published"
            self.answer(npu)
            card = client.models.retrieve("m").model_dump()
            assert card["runtime"] == "own"
            assert (card["device"], card["tokens_per_s"], card["published_tokens_per_s"]) == ("npu", 20.0, 25.0)
            assert card["speed"] == "20.0 tokens/s, 80 % of 25.0"
            assert client.models.list().data[0].model_dump() == card
            [lane] = http.get("/readyz").json()["models"]
            assert (lane["cpu_nodes"], lane["speed"]) == (2, "20.0 tokens/s, 80 % of 25.0")
            assert lane["tokens_per_s"] == pytest.approx(20.0)
            assert lane["engine"]["published_tokens_per_s"] == 25.0

    @pytest.mark.parametrize(("published", "lines"), [(25.0, 0), (100.0, 1)])
    def test_log_warns_once_of_less_than_half_the_published_speed(
        self, npu: Running, lines: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            for _ in range(12):
                self.answer(npu, max_tokens=3)
        found = [record.getMessage() for record in caplog.records if " is slow: " in record.getMessage()]
        assert len(found) == lines
        assert all(
            re.match(r"m is slow: \d+\.\d tokens/s, \d\d % of 100\.0; connect the power", line) for line in found
        )

    def test_log_has_nodes_on_the_cpu(self, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        engine = make(Path(shutil.copytree(tiny, tmp_path / "tiny")), npu_worker)
        with caplog.at_level(logging.INFO), serving(config_of({"m": LocalModel(threads=1)}), {"m": engine}):
            pass
        assert "m is ready (npu, 2 of 42 nodes on the CPU, loaded in " in caplog.text

    def test_cpu_model_has_measured_speed_only(self, local: Running) -> None:
        with local.http() as http:
            for _ in range(2):
                header = http.post(
                    "/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 8, "ignore_eos": True}
                ).headers["x-gateway-device"]
            card = http.get("/v1/models/tiny").json()
        assert re.fullmatch(r"cpu;cpu-nodes=[1-9]\d*;tokens-per-s=\d+\.\d", header)
        assert "published_tokens_per_s" not in card and card["cpu_nodes"] > 0
        assert re.fullmatch(r"\d+\.\d tokens/s", card["speed"])

    def test_fallback_is_named_as_the_device_of_its_answer(self) -> None:
        models = {
            "big": ScriptedModel(fallback="small", script=Script(load_error="no driver")),
            "small": scripted("Quickly."),
        }
        with serving(config_of(models)) as server, server.http() as http:
            response = http.post("/v1/chat/completions", json={"model": "big", "messages": HELLO})
            assert response.json()["model"] == "small"
            assert response.headers["x-gateway-device"].startswith("simulated;cpu-nodes=0")
