"""The schema at /schema says all that the gateway answers, and the gateway keeps to it whatever is thrown at it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis

from gateway.app import HANDLERS
from gateway.config import LocalModel, ServerConfig
from tests.support.paths import ROOT, TESTS
from tests.support.server import Running, config_of, scripted, serving

PARIS = scripted("The capital of France is Paris.")
KEYS = ServerConfig(api_keys={"anna": "sk-anna"})
#: The same handlers under a second name, see test_a_second_name_is_the_same.
ALIASES = "^/(chat/completions|completions|embeddings|health|models|openapi|responses)"
#: What a schema cannot say is refused too (fields that contradict each other, a grammar that does not compile), and
#: headers that nobody knows are ignored, as HTTP has it: these two call either a fault. That the schema and the gateway
#: agree on every body is checked in their stead, by openapi_checks.schema_and_decoder_agree.
INAPPLICABLE = "positive_data_acceptance,negative_data_rejection"
QUICK = ("--phases", "coverage,fuzzing", "--max-examples", "5", "--generation-deterministic", "--no-shrink")
LONG = ("--phases", "coverage,fuzzing,stateful", "--max-examples", "100", "--generation-database", "none")
TEXT_TOOLS = "^/(tokenize|detokenize|apply-template|v1/messages/count_tokens)"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(config_of({"paris": PARIS}, default_model="paris")) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    with server.http() as http:
        return dict(http.get("/schema").json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        yield from ((path, method, told) for method, told in item.items() if method != "parameters")


def test_it_is_a_valid_document(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()


def test_it_has_every_route_and_method(document: dict[str, Any]) -> None:
    routes = {
        (path.replace(":path}", "}").replace(":str}", "}"), method.lower())
        for handler in HANDLERS
        for path in handler.paths
        for method in handler.http_methods
    }
    assert {(path, method) for path, method, _ in operations(document)} == routes


def test_a_second_name_is_the_same(document: dict[str, Any]) -> None:
    told = {(path, method): {**told, "operationId": ""} for path, method, told in operations(document)}
    for path, method in told:
        if (first := (f"/v1{path}", method)) in told:
            assert told[path, method] == told[first]
    assert told["/health", "get"] == told["/healthz", "get"]
    assert told["/openapi.json", "get"] == told["/schema", "get"]


def test_ranges_and_required_fields_are_those_of_the_decoders(document: dict[str, Any]) -> None:
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["messages"]
    assert chat["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert document["components"]["schemas"]["MessagesRequest"]["required"] == ["model", "messages", "max_tokens"]


def test_a_reply_must_have_what_it_always_has(document: dict[str, Any]) -> None:
    reply = document["components"]["schemas"]["ChatCompletion"]
    assert set(reply["required"]) == set(reply["properties"])
    assert "tool_calls" not in document["components"]["schemas"]["ReplyMessage"]["required"]


@pytest.mark.parametrize(
    ("path", "error"),
    [("/v1/responses", "ErrorBody"), ("/api/chat", "OllamaError"), ("/v1/messages", "AnthropicError")],
)
def test_each_door_has_its_own_errors(document: dict[str, Any], path: str, error: str) -> None:
    answers = document["paths"][path]["post"]["responses"]
    assert answers.keys() >= {"400", "403", "404", "408", "413", "429", "502", "503", "504"}
    for status in answers.keys() - {"200"}:
        assert answers[status]["content"]["application/json"]["schema"]["$ref"].endswith(error)


def test_streams_are_told_beside_whole_replies(document: dict[str, Any]) -> None:
    chat, lines = (
        document["paths"][path]["post"]["responses"]["200"] for path in ("/v1/chat/completions", "/api/chat")
    )
    assert chat["content"].keys() == {"application/json", "text/event-stream"}
    assert lines["content"].keys() == {"application/json", "application/x-ndjson"}


def test_keys_are_told_where_they_are_asked_for(document: dict[str, Any]) -> None:
    assert not any("security" in told for _, _, told in operations(document))
    with serving(config_of({"paris": PARIS}, KEYS), loaded=False) as locked, locked.http() as http:
        told = http.get("/schema").json()["paths"]
        for path, item in told.items():
            if item.keys() & {"get"} and "{" not in path:
                assert (http.get(path).status_code == 401) == ("401" in item["get"]["responses"]), path
    assert told["/v1/models"]["get"]["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert "401" in told["/v1/messages"]["post"]["responses"] and "security" not in told["/healthz"]["get"]


# ---- the fuzzer


def fuzz(server: Running, folder: Path, *options: str) -> None:
    """Fails with the fuzzer's own report, which ends with how to do it again. `folder` is for what it leaves behind."""
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["--config-file", str(TESTS / "routes" / "schemathesis.toml"), "run", f"{server.url}/schema"]
    command += ["--no-color", "--checks", "all", "--exclude-checks", INAPPLICABLE, *options]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.openapi_checks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_gateway_keeps_to_its_schema(server: Running, tmp_path: Path) -> None:
    fuzz(server, tmp_path, "--exclude-path-regex", ALIASES, *QUICK)


def test_so_does_a_model_that_tokenizes(tiny: Path, tmp_path: Path) -> None:
    config = config_of({"tiny": LocalModel(path=str(tiny), threads=1)}, default_model="tiny")
    with serving(config) as running:
        fuzz(running, tmp_path, "--include-path-regex", TEXT_TOOLS, *QUICK)


@pytest.mark.slow
def test_for_a_long_time_and_with_every_path(tiny: Path, tmp_path: Path) -> None:
    config = config_of({"paris": PARIS, "tiny": LocalModel(path=str(tiny), threads=1)}, default_model="paris")
    with serving(config) as running:
        fuzz(running, tmp_path, *LONG)
