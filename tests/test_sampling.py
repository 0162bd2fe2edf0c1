"""gateway/sampling.py: one declaration of a parameter, and every other part follows it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from gateway.config.tables import Config, Defaults, GenieModel, LocalModel
from gateway.routes.openai_api.wire import GenerationFields
from gateway.sampling import Sampling, changed, configured, parameters, sampling_of, unsupported
from tests.support.paths import ROOT

#: Declares one more parameter before any other module is imported, then reports where it appears.
NEW_PARAMETER = """
import json, sys
from pathlib import Path
from typing import Annotated
from msgspec import Meta
import gateway.sampling as declaration
from gateway.sampling import SamplingParam

class Sampling(declaration.Sampling, frozen=True, kw_only=True):
    typical_p: Annotated[
        float,
        Meta(ge=0, le=1),
        SamplingParam(
            names={"openai": "typical_p", "ollama": "typical", "anthropic": "typical_p", "responses": "typical_p"},
            in_config=True,
            engines=frozenset({"local", "upstream"}),
        ),
    ] = 1.0

declaration.Sampling = Sampling

import msgspec
from litestar.routes import HTTPRoute
from gateway.app import create_app
from gateway.config.tables import Config, Defaults
from gateway.config.file import load_config
from gateway.engines.upstream.body import chat_body
from gateway.errors import GatewayError
from gateway.generation import Chat, Generation
from gateway.routes.anthropic_api.wire import MessagesRequest
from gateway.routes.ollama_api.wire import OllamaChatRequest
from gateway.routes.openapi import document
from gateway.routes.openai_api.wire import ChatRequest
from gateway.routes.openai_api.wire_completions import CompletionRequest
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.sampling import sampling_of, unsupported
from gateway.worker import frames

def load(text, **environ):
    file = Path(sys.argv[1])
    file.write_text(text, encoding="utf-8")
    try:
        return load_config(file, environ)
    except GatewayError as error:
        return error.message

def parsed(api, body, kind, inner=lambda request: request):
    return sampling_of(api, inner(msgspec.json.decode(json.dumps(body), type=kind)), Defaults()).typical_p

table = '[models.m]\\npath = "x"\\n'
general = load("[defaults]\\ntypical_p = 0.3\\n" + table)
message = [{"role": "user", "content": "x"}]
sampling = Sampling(typical_p=0.5)
routes = [route for route in create_app(Config()).routes if isinstance(route, HTTPRoute)]
schemas = document(routes, False)["components"]["schemas"]
generation = Generation(id="r", model="m", prompt=Chat(messages=()), sampling=sampling)
frame = frames.Submit(id=1, ids=[1], sampling=sampling, max_tokens=1)
print(json.dumps({
    "defaults key": general.defaults_for("m").typical_p,
    "model key": load(table + "typical_p = 0.4").defaults_for("m").typical_p,
    "variable": load(table, NPU_GATEWAY_MODELS_M_TYPICAL_P="0.6").defaults_for("m").typical_p,
    "range": load(table + "typical_p = 7"),
    "key of engine": load('[models.m]\\nengine = "genie"\\npath = "x"\\ntypical_p = 0.5'),
    "from defaults": sampling_of("openai", ChatRequest(messages=[]), general.defaults_for("m")).typical_p,
    "chat": parsed("openai", {"messages": message, "typical_p": 0.1}, ChatRequest),
    "completions": parsed("openai", {"prompt": "x", "typical_p": 0.2}, CompletionRequest),
    "responses": parsed("responses", {"input": "x", "typical_p": 0.3}, ResponsesRequest),
    "anthropic": parsed("anthropic", {"model": "m", "max_tokens": 1, "messages": message, "typical_p": 0.4},
                        MessagesRequest),
    "ollama": parsed("ollama", {"model": "m", "options": {"typical": 0.5}}, OllamaChatRequest, lambda r: r.options),
    "schema": [name for name, made in schemas.items() if {"typical_p", "typical"} & made.get("properties", {}).keys()],
    "refused by": [engine for engine in ("local", "genie", "upstream") if list(unsupported(sampling, engine))],
    "upstream body": chat_body(generation, generation.prompt)["typical_p"],
    "worker frame": frames.decode_to_worker(frames.encode(frame)).sampling.typical_p,
}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("declaration") / "config.toml"
    command = [sys.executable, "-c", NEW_PARAMETER, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_new_parameter_is_config_key_of_engines_that_honour_it(seen: dict[str, Any]) -> None:
    assert (seen["defaults key"], seen["model key"], seen["variable"], seen["from defaults"]) == (0.3, 0.4, 0.6, 0.3)
    assert seen["range"].endswith("[models.m] typical_p: expected a number of at most 1, got 7")
    expected = "[models.m] typical_p: means something only with engine = 'local' or 'upstream'"
    assert seen["key of engine"].endswith(expected)


def test_new_parameter_is_parsed_by_every_api(seen: dict[str, Any]) -> None:
    apis = ("chat", "completions", "responses", "anthropic", "ollama")
    assert [seen[api] for api in apis] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_new_parameter_is_in_openapi_document(seen: dict[str, Any]) -> None:
    requests = {"ChatRequest", "CompletionRequest", "ResponsesRequest", "MessagesRequest", "Options"}
    assert set(seen["schema"]) == requests


def test_new_parameter_is_refused_by_engine_without_it_and_sent_by_others(seen: dict[str, Any]) -> None:
    assert seen["refused by"] == ["genie"]
    assert (seen["upstream body"], seen["worker frame"]) == (0.5, 0.5)


def test_sampling_of_empty_request_has_defaults_of_config() -> None:
    defaults = Defaults(temperature=0.5, top_k=40)
    assert sampling_of("openai", GenerationFields(), defaults) == Sampling(temperature=0.5, top_k=40)


def test_sampling_of_off_value_overrides_configured_default() -> None:
    defaults = Defaults(top_k=40)
    assert sampling_of("openai", GenerationFields(top_k=-1), defaults) == Sampling()


def test_unsupported_names_only_changed_parameters() -> None:
    sampling = Sampling(temperature=0.2, min_p=0.1, logit_bias={3: 1.0})
    assert list(changed(sampling)) == ["temperature", "min_p", "logit_bias"]
    assert list(unsupported(sampling, "genie")) == ["min_p", "logit_bias"]
    assert not list(unsupported(sampling, "local"))


def test_every_parameter_of_upstream_engine_has_openai_name() -> None:
    assert all("openai" in param.names for _, _, param in parameters().values() if "upstream" in param.engines)


def test_defaults_that_engine_does_not_honour_do_not_apply_to_it() -> None:
    config = Config(
        defaults=Defaults(min_p=0.1, top_k=5),
        models={"l": LocalModel(path="l"), "g": GenieModel(path="g")},
    )
    assert config.defaults_for("l") == Defaults(min_p=0.1, top_k=5)
    assert config.defaults_for("g") == Defaults(top_k=5)


def test_recommended_values_apply_where_the_configuration_says_nothing() -> None:
    recommended = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.1, "unknown": 1}
    config = Config(defaults=Defaults(temperature=1.0), models={"g": GenieModel(path="g", top_k=0)})
    assert config.defaults_for("g", recommended) == Defaults(temperature=1.0, top_k=0, top_p=0.95)
    assert configured("ollama", config.defaults_for("g", recommended))["top_p"] == 0.95
    assert configured("ollama", Defaults())["temperature"] == 1.0
