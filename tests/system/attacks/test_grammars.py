"""Attacks with schemas, regular expressions and grammars: each affects only its own request.

A real gateway with its default breaker, a real worker with a tiny model, four APIs.
"""

from __future__ import annotations

import json
import logging
import select
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.config.tables import BreakerConfig
from gateway.engines.local.process import Entry
from gateway.worker.entry import local_worker
from tests.support.log_lines import log_lines
from tests.support.server import PATIENCE_S, Running, config_of, serving, wait_until
from tests.support.workers import compiles_for_one_second
from tests.system.faults.client import engine_of, local_engine

MODEL = "m"
ASK = [{"role": "user", "content": "x"}]
WORD = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
SLOW = [{"type": "integer", "multipleOf": number} for number in range(1_000_003, 1_000_015, 2)]

#: What a client's schema can have wrong, and the path that the error names. Each was a 503, or sounds like it.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"type": "string", "format": ["date"]}, "/format"),
    ({"type": ["object", {}], "properties": {}}, "/type"),
    ({"type": "object", "required": "a"}, "/required"),
    ({"type": "object", "required": [{}], "properties": {"a": {}}}, "/required"),
    ({"type": "array", "items": {"pattern": 5}}, "/items/pattern"),
    ({"type": "array", "items": {"minProperties": {}}}, "/items/minProperties"),
    ({"type": "object", "properties": {"a": {"$ref": ["#"]}}}, "/properties/a/$ref"),
    ({"type": "object", "properties": {"a": 5}}, "/properties/a"),
    ({"type": "object", "properties": {"a": {"allOf": {"b": 1}, "format": "date", "pattern": "x"}}}, "/a/allOf"),
    ({"type": "integer", "multipleOf": "3"}, "/multipleOf"),
    ({"anyOf": [{"$ref": "#/anyOf/99999999999999999999999/x"}]}, "/anyOf/0/$ref"),
]

#: A mistake where a schema is strict; else it is not enforced.
NOT_ENFORCED: list[tuple[dict[str, Any], str]] = [({"type": "integer", "multipleOf": 1e-320}, "/multipleOf")]


def chat(schema: Any) -> tuple[str, dict[str, Any]]:
    format = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    return "/v1/chat/completions", {"messages": ASK, "max_tokens": 16, "response_format": format}


def responses(schema: Any) -> tuple[str, dict[str, Any]]:
    text = {"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True}}
    return "/v1/responses", {"input": "x", "max_output_tokens": 16, "text": text}


def anthropic(schema: Any) -> tuple[str, dict[str, Any]]:
    config = {"format": {"type": "json_schema", "schema": schema}}
    return "/v1/messages", {"messages": ASK, "max_tokens": 16, "output_config": config}


def ollama(schema: Any) -> tuple[str, dict[str, Any]]:
    return "/api/chat", {"messages": ASK, "format": schema, "stream": False, "options": {"num_predict": 16}}


def strict_tool(schema: Any) -> tuple[str, dict[str, Any]]:
    function = {"name": "f", "parameters": _object(schema), "strict": True}
    return "/v1/chat/completions", {
        "messages": ASK,
        "max_tokens": 16,
        "tools": [{"type": "function", "function": function}],
    }


def forced_tool(schema: Any) -> tuple[str, dict[str, Any]]:
    path, body = strict_tool(schema)
    del body["tools"][0]["function"]["strict"]
    return path, {**body, "tool_choice": "required"}


def responses_tool(schema: Any) -> tuple[str, dict[str, Any]]:
    tool = {"type": "function", "name": "f", "parameters": _object(schema), "strict": True}
    return "/v1/responses", {"input": "x", "max_output_tokens": 16, "tools": [tool]}


def anthropic_tool(schema: Any) -> tuple[str, dict[str, Any]]:
    tool = {"name": "f", "input_schema": _object(schema)}
    return "/v1/messages", {"messages": ASK, "max_tokens": 16, "tools": [tool], "tool_choice": {"type": "any"}}


FORMATS = [chat, responses, anthropic, ollama]
TOOLS = [strict_tool, forced_tool, responses_tool, anthropic_tool]
LOOSE = [ollama, forced_tool, anthropic_tool]


def _object(schema: Any) -> dict[str, Any]:
    """Parameters of a tool are an object."""
    return {"type": "object", "properties": {"p": schema}, "required": ["p"]}


@pytest.fixture(scope="module")
def errors() -> Iterator[list[str]]:
    """The gateway's log lines of level ERROR."""
    with log_lines(logging.ERROR) as lines:
        yield lines


@pytest.fixture(scope="module")
def bundle(long_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = Path(shutil.copytree(long_tiny, tmp_path_factory.mktemp("models") / MODEL))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ tools }}{% endif %}"
    (bundle / "chat_template.jinja").write_text(template, encoding="utf-8")
    return bundle


@pytest.fixture(scope="module")
def server(bundle: Path, errors: list[str]) -> Iterator[Running]:
    with _serving(bundle, local_worker) as running:
        yield running


@pytest.fixture(scope="module")
def hurried(bundle: Path, errors: list[str]) -> Iterator[Running]:
    """The same with a shorter limit of processor time, for grammars that exceed every limit."""
    with _serving(bundle, compiles_for_one_second) as running:
        yield running


@contextmanager
def _serving(bundle: Path, entry: Entry) -> Iterator[Running]:
    engine = local_engine(MODEL, bundle, entry, max_sequences=4, dialect="hermes")
    config = config_of({MODEL: engine._model}, breaker=BreakerConfig(latency_ms=1000.0))
    with serving(config, {MODEL: engine}) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_else_is_harmed(server: Running, errors: list[str]) -> Iterator[None]:
    yield
    _is_unharmed(server, errors)


def _is_unharmed(server: Running, errors: list[str]) -> None:
    engine = engine_of(server, MODEL)
    assert (engine["state"], engine["restarts"], errors) == ("ready", 0, [])
    with server.http() as http:
        assert _post(http, *chat(WORD)).status_code == 200  # the breaker is closed


def _post(http: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    return http.post(path, json={"model": MODEL, **body})


def _stream(server: Running, tokens: int, began: threading.Event) -> int:
    """The number of tokens that another client's stream gets."""
    body = {"model": MODEL, "prompt": "x", "max_tokens": tokens, "stream": True, "ignore_eos": True, "temperature": 0}
    usage = {"stream_options": {"include_usage": True}}
    counted = 0
    with server.http() as http, http.stream("POST", "/v1/completions", json=body | usage) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                began.set()
                event = json.loads(line[6:])
                assert "error" not in event, event
                counted = (event.get("usage") or {}).get("completion_tokens", counted)
    return counted


@pytest.mark.parametrize("request_of", [*FORMATS, *TOOLS], ids=lambda each: each.__name__)
def test_mistake_in_schema_is_400_that_names_the_path(server: Running, request_of: Any) -> None:
    with server.http() as http:
        for schema, path in MISTAKES + NOT_ENFORCED * (request_of not in LOOSE):
            for _ in range(3):  # the third failure of a device replaces its worker
                reply = _post(http, *request_of(schema))
                assert reply.status_code == 400, (schema, reply.text)
                assert "cannot be used: " in reply.text and "at '#" in reply.text, reply.text
                assert f"{path}'" in reply.text, reply.text


@pytest.mark.parametrize("request_of", [*FORMATS, *TOOLS], ids=lambda each: each.__name__)
def test_good_schema_is_answered(server: Running, request_of: Any) -> None:
    with server.http() as http:
        assert _post(http, *request_of(WORD)).status_code == 200


def test_tool_that_is_neither_strict_nor_required_has_any_schema(server: Running) -> None:
    path, body = strict_tool({"format": ["date"]})
    del body["tools"][0]["function"]["strict"]
    with server.http() as http:
        assert _post(http, path, body).status_code == 200


#: Grammars of at most 256 KB that were read with a time that grows with the square of their length, or worse.
LONG = {
    "escaped_quotes": 'start: "' + '\\"' * 125_000,
    "slashes": "start: /" + "\\/" * 120_000,
    "comments": "a ::= b\n" + "#\n" * 100_000,
    "alternatives": "start: " + " | ".join(f'"{i}"' for i in range(25_000)),
}


@pytest.mark.parametrize("grammar", LONG.values(), ids=LONG)
def test_tokens_continue_while_a_long_grammar_is_read(server: Running, grammar: str) -> None:
    _read_during_a_stream(server, {"grammar": grammar}, 200, 400)


def _read_during_a_stream(server: Running, fields: dict[str, Any], *statuses: int) -> str:
    """The body of the reply, which has one of the statuses."""
    began = threading.Event()
    with ThreadPoolExecutor(1) as pool, server.http() as http:
        other = pool.submit(_stream, server, 1500, began)
        assert began.wait(PATIENCE_S)
        reply = _post(http, "/v1/completions", {"prompt": "x", "max_tokens": 4, **fields})
        assert reply.status_code in statuses, reply.text
        assert other.result(PATIENCE_S) == 1500
    return reply.text


#: The same; none of them can be read within the limits.
ENDLESS = {
    "blank_lines": {"grammar": "\n" * 250_000 + "a ::= b"},
    "rule_chain": {"grammar": "\n".join(f"r{i} ::= r{i + 1}" for i in range(9000)) + '\nr9000 ::= "a"\nroot ::= r0'},
    "schema": {"guided_json": {"type": "integer", "multipleOf": 99_999_989}},
}


@pytest.mark.parametrize("fields", ENDLESS.values(), ids=ENDLESS)
def test_tokens_continue_while_an_endless_grammar_is_read(
    hurried: Running, errors: list[str], fields: dict[str, Any]
) -> None:
    assert "takes more than 1 seconds" in _read_during_a_stream(hurried, fields, 400)
    _is_unharmed(hurried, errors)


def test_small_schema_does_not_wait_for_slow_grammars_of_another_client(server: Running) -> None:
    """Six slow grammars are more than the model has slots. The first of them takes seconds."""
    with ExitStack() as stack:
        slow = [stack.enter_context(closing(server.connect())) for _ in SLOW]
        for connection, schema in zip(slow, SLOW, strict=True):
            connection.sendall(_raw(*chat(schema)))
        wait_until(lambda: _waiting(server) > 0, "the slow grammars have not arrived")
        with server.http(headers={"user-agent": "small"}) as http:
            small = {"type": "object", "properties": {"small": {"enum": ["x", "y"]}}, "required": ["small"]}
            assert _post(http, *chat(small)).status_code == 200
        answered, _, _ = select.select(slow, [], [], 0)
        assert len(answered) <= 1
    wait_until(lambda: _waiting(server) == 0, "requests whose clients have left still run")


def _raw(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps({"model": MODEL, **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: slow\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _waiting(server: Running) -> int:
    """Requests that run or wait."""
    queue = server.app.state.router.lanes[MODEL].queue
    return int(queue.running + queue.waiting)


def test_clients_that_leave_slow_grammars_delay_nobody(server: Running) -> None:
    for number in (1_000_039, 1_000_081, 1_000_099, 1_000_117):
        with server.http(timeout=0.3) as http, pytest.raises(httpx.TimeoutException):
            _post(http, *chat({"type": "integer", "multipleOf": number}))
    with server.http() as http:
        assert _post(http, *chat({"type": "string", "enum": ["left", "right"]})).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": 'start: /[ab]/ r\nr: s s s s s s s s s s s s s s s s\ns: t t t t t t t t t t t t t t t t\nt: "'
         + "xyxz" * 2500 + '"'},
        {"guided_json": {"prefixItems": [{"enum": [1, 2]}, *[{"$ref": "#/$defs/a"}] * 400],
                         "$defs": {"a": {"const": "xyxz" * 2500}}, "minItems": 401}},
        {"guided_regex": "[ab](xyxz){9000}(xy){9000}(zx){9000}"},
    ],
    ids=["lark", "schema", "regex"],
)  # fmt: skip
def test_megabytes_of_forced_text_stop_no_token(server: Running, fields: dict[str, Any]) -> None:
    began = threading.Event()
    before = _worker_bytes()
    with ThreadPoolExecutor(1) as pool, server.http() as http:
        other = pool.submit(_stream, server, 1500, began)
        assert began.wait(PATIENCE_S)
        reply = _post(http, "/v1/completions", {"prompt": "x", "max_tokens": 60, "n": 8, "temperature": 0} | fields)
        assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == 480, reply.text
        assert other.result(PATIENCE_S) == 1500
    assert _worker_bytes() - before < 300 << 20


def _worker_bytes() -> int:
    """Resident memory of all child processes of this one."""
    return sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
