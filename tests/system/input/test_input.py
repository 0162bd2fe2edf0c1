"""Every field of every endpoint gets values that fit and values that do not.

The answer is a success, or a refusal in the form of the endpoint's API. It is never a 5xx except 503, never a hang,
and never an error in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec import inspect as types

from gateway.app import create_app
from gateway.config.tables import LocalModel
from gateway.routes.anthropic_api.wire import CountTokensRequest, MessagesRequest
from gateway.routes.embeddings_api.wire import EmbeddingsRequest, RerankRequest
from gateway.routes.ollama_api.wire import (
    EmbedRequest,
    OllamaChatRequest,
    OllamaGenerateRequest,
    PromptRequest,
    ShowRequest,
)
from gateway.routes.openai_api.wire import ChatRequest
from gateway.routes.openai_api.wire_completions import CompletionRequest
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.routes.tokenize import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from tests.support.server import config_of, scripted
from tests.system.input.app import AppClient
from tests.system.input.values import HOSTILE, Step, around, encoded, fields, fitting, json_values

EXAMPLES = 6  # per field; half as many for a field within another one
ErrorForm = Literal["openai", "ollama", "anthropic"]


class Endpoint(Struct, frozen=True):
    """Args: the path, the struct of the request, the smallest body that is accepted, and the form of its errors."""

    path: str
    request: type
    body: dict[str, Any]
    errors: ErrorForm = "openai"


TURN = [{"role": "user", "content": "x"}]
ENDPOINTS = {
    "chat": Endpoint("/v1/chat/completions", ChatRequest, {"model": "m", "messages": TURN}),
    "completions": Endpoint("/v1/completions", CompletionRequest, {"model": "m", "prompt": "x"}),
    "responses": Endpoint("/v1/responses", ResponsesRequest, {"model": "m", "input": "x"}),
    "messages": Endpoint(
        "/v1/messages", MessagesRequest, {"model": "m", "max_tokens": 2, "messages": TURN}, "anthropic"
    ),
    "ollama chat": Endpoint("/api/chat", OllamaChatRequest, {"model": "m", "messages": TURN}, "ollama"),
    "ollama generate": Endpoint("/api/generate", OllamaGenerateRequest, {"model": "m", "prompt": "x"}, "ollama"),
    "ollama show": Endpoint("/api/show", ShowRequest, {"model": "m"}, "ollama"),
    "embeddings": Endpoint("/v1/embeddings", EmbeddingsRequest, {"model": "v", "input": "x"}),
    "rerank": Endpoint("/v1/rerank", RerankRequest, {"model": "v", "query": "x", "documents": ["x"]}),
    "ollama embed": Endpoint("/api/embed", EmbedRequest, {"model": "v", "input": "x"}, "ollama"),
    "ollama embeddings": Endpoint("/api/embeddings", PromptRequest, {"model": "v", "prompt": "x"}, "ollama"),
    # with a template, a tokenizer, a sampler and a grammar compiler
    "real chat": Endpoint("/v1/chat/completions", ChatRequest, {"model": "tiny", "messages": TURN, "max_tokens": 2}),
    "real completions": Endpoint(
        "/v1/completions", CompletionRequest, {"model": "tiny", "prompt": "x", "max_tokens": 2}
    ),
    "count_tokens": Endpoint(
        "/v1/messages/count_tokens", CountTokensRequest, {"model": "tiny", "messages": TURN}, "anthropic"
    ),
    "tokenize": Endpoint("/tokenize", TokenizeRequest, {"model": "tiny", "content": "x"}),
    "detokenize": Endpoint("/detokenize", DetokenizeRequest, {"model": "tiny", "tokens": [65]}),
    "apply-template": Endpoint("/apply-template", ApplyTemplateRequest, {"model": "tiny", "messages": TURN}),
}


def fields_of(name: str) -> dict[tuple[Step, ...], types.Type]:
    """Path of each field of the endpoint's request -> its type."""
    return dict(fields(types.type_info(ENDPOINTS[name].request)))


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[AppClient]:
    tools = scripted("<tool_call>{}</tool_call> Hello.", context_length=64)
    encoder = scripted(kind="encoder")
    app = create_app(config_of({"m": tools, "v": encoder, "tiny": LocalModel(path=str(tiny), threads=1)}))
    with asyncio.Runner() as runner:
        runner.run(app.state.router.start())
        runner.run(app.state.router.tried())
        yield AppClient(app, runner)
        runner.run(app.state.router.aclose())


def check(endpoint: Endpoint, status: int, answer: bytes) -> None:
    assert status == 200 or 400 <= status < 500 or status == 503, (status, answer[:500])
    for failure in (b'"server_error"', b'"engine_failed"'):
        assert failure not in answer, answer[-500:]
    if status == 200:
        return
    refusal = msgspec.json.decode(answer)
    match endpoint.errors:
        case "openai":
            assert refusal.keys() == {"error"}
            assert refusal["error"].keys() == {"message", "type", "param", "code"}
            message = refusal["error"]["message"]
        case "anthropic":
            assert refusal.keys() == {"type", "error"} and refusal["type"] == "error"
            message = refusal["error"]["message"]
        case "ollama":
            assert refusal.keys() == {"error"}
            message = refusal["error"]
    assert isinstance(message, str) and message and "Traceback" not in message


def test_every_endpoint_accepts_its_smallest_body(client: AppClient) -> None:
    for name, endpoint in ENDPOINTS.items():
        status, answer = client.post(endpoint.path, encoded(endpoint.body))
        assert status == 200, (name, answer)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_any_value_of_a_field_is_answered_or_refused(
    client: AppClient, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    endpoint = ENDPOINTS[name]
    for path, kind in fields_of(name).items():
        check_field(client, endpoint, path, kind)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR], (path, caplog.text)


def check_field(client: AppClient, endpoint: Endpoint, path: tuple[Step, ...], kind: types.Type) -> None:
    whole = types.type_info(endpoint.request)

    @settings(
        max_examples=EXAMPLES if len(path) == 1 else EXAMPLES // 2,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(HOSTILE) | fitting(kind), st.booleans())
    def holds(value: Any, streamed: bool) -> None:
        first = around(whole, path, value)[path[0]]
        body = {**endpoint.body, **({"stream": True} if streamed else {}), path[0]: first}
        check(endpoint, *client.post(endpoint.path, encoded(body)))

    holds()


@pytest.mark.parametrize("name", ENDPOINTS)
def test_any_body_is_answered_or_refused(client: AppClient, caplog: pytest.LogCaptureFixture, name: str) -> None:
    endpoint = ENDPOINTS[name]

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(fitting(types.type_info(endpoint.request)) | json_values | st.sampled_from(HOSTILE), st.booleans())
    def holds(body: Any, keeps_base: bool) -> None:
        if keeps_base and isinstance(body, dict):
            body = {**body, **endpoint.body}
        check(endpoint, *client.post(endpoint.path, encoded(body)))

    holds()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text
