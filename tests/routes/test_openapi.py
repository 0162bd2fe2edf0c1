"""The OpenAPI document at /schema is complete, and the gateway follows it for fuzzed requests."""

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
from gateway.config.tables import LimitsConfig, LocalModel, ServerConfig
from tests.support.paths import ROOT, TESTS
from tests.support.server import Running, config_of, scripted, serving

PARIS = scripted("The capital of France is Paris.")
KEYS = ServerConfig(api_keys={"anna": "sk-anna"})
#: Second paths of the same handlers, which test_alias_paths_have_the_same_operation compares, and another form of one.
ALIASES = "^/(api/embed|chat/completions|completions|embeddings|health|models|openapi|rerank|responses|v2/rerank)"
#: Two checks of the fuzzer that do not apply: the gateway also refuses what a schema cannot describe (contradicting
#: fields, a grammar that does not compile), and it ignores unknown headers. openapi_checks.schema_and_decoder_agree
#: replaces them.
INAPPLICABLE = "positive_data_acceptance,negative_data_rejection"
QUICK = ("--phases", "coverage,fuzzing", "--max-examples", "2", "--generation-deterministic", "--no-shrink")
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
        yield from ((path, method, operation) for method, operation in item.items() if method != "parameters")


def test_document_is_valid(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()


def test_document_has_every_route_and_method(document: dict[str, Any]) -> None:
    routes = {
        (operation.path or path.replace(":path}", "}").replace(":str}", "}"), method.lower())
        for handler in HANDLERS
        for path in handler.paths
        for method in handler.http_methods
        for operation in [handler.opt["openapi"][method]]
    }
    assert {(path, method) for path, method, _ in operations(document)} == routes


def test_alias_paths_have_the_same_operation(document: dict[str, Any]) -> None:
    found = {(path, method): {**each, "operationId": ""} for path, method, each in operations(document)}
    for path, method in found:
        if (first := (f"/v1{path}", method)) in found:
            assert found[path, method] == found[first]
    assert found["/health", "get"] == found["/healthz", "get"]
    assert found["/openapi.json", "get"] == found["/schema", "get"]


def test_ranges_and_required_fields_equal_the_decoders(document: dict[str, Any]) -> None:
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["messages"]
    assert chat["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert document["components"]["schemas"]["MessagesRequest"]["required"] == ["model", "messages", "max_tokens"]


def test_reply_fields_that_are_always_sent_are_required(document: dict[str, Any]) -> None:
    reply = document["components"]["schemas"]["ChatCompletion"]
    assert set(reply["required"]) == set(reply["properties"])
    assert "tool_calls" not in document["components"]["schemas"]["ReplyMessage"]["required"]


@pytest.mark.parametrize(
    ("path", "error"),
    [("/v1/responses", "ErrorBody"), ("/api/chat", "OllamaError"), ("/v1/messages", "AnthropicError")],
)
def test_each_api_has_its_own_error_body(document: dict[str, Any], path: str, error: str) -> None:
    answers = document["paths"][path]["post"]["responses"]
    assert answers.keys() >= {"400", "403", "404", "408", "413", "429", "502", "503", "504"}
    for status in answers.keys() - {"200"}:
        assert answers[status]["content"]["application/json"]["schema"]["$ref"].endswith(error)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
@pytest.mark.parametrize("tokens", [1, 1000])
def test_answers_to_a_key_with_limits_have_the_described_headers(
    document: dict[str, Any], path: str, tokens: int
) -> None:
    limits = LimitsConfig(requests_per_minute=60, tokens_per_minute=tokens)
    body = {"model": "paris", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "stream": False}
    with serving(config_of({"paris": PARIS}, limits=limits)) as limited, limited.http() as http:
        answer = http.post(path, json=body)
    status = str(answer.status_code)
    assert status == ("429" if tokens == 1 else "200")
    described = document["paths"][path]["post"]["responses"][status]["headers"]
    assert {name for name in answer.headers if "ratelimit" in name} == {
        name for name in described if "ratelimit" in name
    }


def test_streams_are_described_next_to_whole_replies(document: dict[str, Any]) -> None:
    chat, lines = (
        document["paths"][path]["post"]["responses"]["200"] for path in ("/v1/chat/completions", "/api/chat")
    )
    assert chat["content"].keys() == {"application/json", "text/event-stream"}
    assert lines["content"].keys() == {"application/json", "application/x-ndjson"}


def test_security_is_described_where_a_key_is_required(document: dict[str, Any]) -> None:
    assert not any("security" in operation for _, _, operation in operations(document))
    with serving(config_of({"paris": PARIS}, KEYS), loaded=False) as with_keys, with_keys.http() as http:
        paths = http.get("/schema").json()["paths"]
        for path, item in paths.items():
            if item.keys() & {"get"} and "{" not in path:
                assert (http.get(path).status_code == 401) == ("401" in item["get"]["responses"]), path
    assert paths["/v1/models"]["get"]["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert "401" in paths["/v1/messages"]["post"]["responses"] and "security" not in paths["/healthz"]["get"]


# ---- the fuzzer


def fuzz(server: Running, folder: Path, *options: str) -> None:
    """Run the fuzzer in `folder`. A failure shows its report, which has the command to reproduce each case."""
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["--config-file", str(TESTS / "routes" / "schemathesis.toml"), "run", f"{server.url}/schema"]
    command += ["--request-timeout", "600"]  # a busy machine is slower than its 10 s
    command += ["--no-color", "--checks", "all", "--exclude-checks", INAPPLICABLE, *options]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.openapi_checks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_fuzzed_requests_match_the_document(server: Running, tmp_path: Path) -> None:
    fuzz(server, tmp_path, "--exclude-path-regex", f"{ALIASES}|{TEXT_TOOLS}", *QUICK)


def test_fuzzed_text_tool_requests_match_the_document(tiny: Path, tmp_path: Path) -> None:
    config = config_of({"tiny": LocalModel(path=str(tiny), threads=1)}, default_model="tiny")
    with serving(config) as running:
        fuzz(running, tmp_path, "--include-path-regex", TEXT_TOOLS, *QUICK)


@pytest.mark.slow
def test_long_fuzzing_of_every_path_matches_the_document(tiny: Path, tmp_path: Path) -> None:
    config = config_of({"paris": PARIS, "tiny": LocalModel(path=str(tiny), threads=1)}, default_model="paris")
    with serving(config) as running:
        fuzz(running, tmp_path, *LONG)
