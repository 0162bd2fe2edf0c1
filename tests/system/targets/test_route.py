"""`x-gateway-route`: the answer and the log line of each API name the server that answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.config.tables import Script, ScriptedModel, ServerConfig, UpstreamModel
from tests.support.hostile import Hostile, chunk, hostile, stream
from tests.support.server import Running, config_of, scripted, serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {**CHAT, "max_tokens": 9},
    "/api/chat": CHAT,
    "/api/generate": {"prompt": "Hi"},
}
ORIGIN = "https://chat.example"
ROUTE = "x-gateway-route"


@pytest.fixture(scope="module")
def server() -> Iterator[Hostile]:
    with hostile() as running:
        running.answer = stream(chunk(content="Hello"), chunk("stop"))
        yield running


@pytest.fixture(scope="module")
def gateway(server: Hostile) -> Iterator[Running]:
    models = {
        "far": UpstreamModel(url=f"http://127.0.0.1:{server.port}/secret/v1?key=secret", api_key="secret"),
        "near": scripted("Hello"),
        "vectors": scripted(kind="encoder"),
        "broken": ScriptedModel(script=Script(load_error="no")),
        "covered": ScriptedModel(script=Script(load_error="no"), fallback="far"),
    }
    with serving(config_of(models, ServerConfig(cors_origins=(ORIGIN,)))) as running:
        yield running


def ask(gateway: Running, path: str, model: str, **fields: Any) -> httpx.Response:
    with gateway.http(verify=False, headers={"origin": ORIGIN}) as http:
        return http.post(path, json={**ENDPOINTS.get(path, {}), "model": model, **fields})


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_answer_of_each_api_names_its_server(server: Hostile, gateway: Running, path: str, streamed: bool) -> None:
    far = ask(gateway, path, "far", stream=streamed)
    assert far.status_code == 200, far.text
    assert far.headers[ROUTE] == f"127.0.0.1:{server.port};reason=only;attempts=1"
    assert ROUTE in far.headers["access-control-expose-headers"]
    assert ask(gateway, path, "near", stream=streamed).headers[ROUTE] == "local"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
def test_answer_with_vectors_names_its_server(gateway: Running, path: str) -> None:
    assert ask(gateway, path, "vectors", input="Hi").headers[ROUTE] == "local"


def test_fallback_is_named_with_its_server_and_the_cause(server: Hostile, gateway: Running) -> None:
    answer = ask(gateway, "/v1/chat/completions", "covered")
    assert answer.headers[ROUTE] == f"127.0.0.1:{server.port};reason=only;attempts=1;fallback=model_not_ready"


@pytest.mark.parametrize("path", ENDPOINTS)
def test_error_names_the_server_that_failed(server: Hostile, gateway: Running, path: str) -> None:
    good, server.answer = server.answer, b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"
    try:
        answer = ask(gateway, path, "far")
    finally:
        server.answer = good
    assert (answer.status_code, answer.headers[ROUTE]) == (502, f"127.0.0.1:{server.port};reason=only;attempts=1")


@pytest.mark.parametrize("model", ["broken", "unknown"])
def test_error_before_a_server_was_asked_names_none(gateway: Running, model: str) -> None:
    answer = ask(gateway, "/v1/chat/completions", model)
    assert answer.status_code in (404, 503) and ROUTE not in answer.headers


def test_log_and_live_view_have_the_server_and_no_secret(
    server: Hostile, gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway")
    ask(gateway, "/v1/chat/completions", "far")
    assert f"far  on 127.0.0.1:{server.port}  chat" in caplog.text and "secret" not in caplog.text
    with gateway.http(verify=False) as http:
        live = http.get("/gateway/live").text
    last = json.loads(live)["answers"][-1]
    assert (last["target"], last["attempts"], last["hedged"]) == (f"127.0.0.1:{server.port}", 1, False)
    assert "secret" not in live
