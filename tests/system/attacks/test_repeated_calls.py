"""A model that repeats its tool calls without end: every API gives each call once, and the answer ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.config.tables import Script, ScriptedModel
from tests.support.server import config_of, serving

PARIS, ROME = {"city": "Paris"}, {"city": "Rome"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def _written(city: dict[str, str]) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'weather', 'arguments': city})}\n</tool_call>\n"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    script = Script(replies=((_written(PARIS) + _written(ROME)) * 3,), repeat=True)
    model = ScriptedModel(dialect="hermes", script=script)
    with serving(config_of({"m": model})) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


QUESTION = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
FUNCTION = {"name": "weather", "parameters": SCHEMA}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
CHAT: Any = {"messages": QUESTION, "tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 2000}
RESPONSES: Any = {"input": QUESTION, "tools": [{"type": "function", **FUNCTION}], "max_output_tokens": 2000}
MESSAGES: Any = {
    "messages": QUESTION,
    "tools": [{"name": "weather", "input_schema": SCHEMA}],
    "max_tokens": 2000,
}
OLLAMA: Any = {"messages": QUESTION, "tools": CHAT["tools"], "options": {"num_predict": 2000}}

#: path, body, number of calls
REQUESTS = [
    ("/v1/chat/completions", CHAT, 2),
    ("/v1/chat/completions", CHAT | {"tool_choice": "required"}, 2),
    ("/v1/chat/completions", CHAT | {"parallel_tool_calls": False}, 1),
    ("/v1/chat/completions", CHAT | {"tool_choice": "required", "parallel_tool_calls": False}, 1),
    ("/v1/chat/completions", CHAT | {"tool_choice": NAMED}, 1),
    ("/v1/responses", RESPONSES, 2),
    ("/v1/responses", RESPONSES | {"tool_choice": "required"}, 2),
    ("/v1/responses", RESPONSES | {"parallel_tool_calls": False}, 1),
    ("/v1/responses", RESPONSES | {"tool_choice": {"type": "function", "name": "weather"}}, 1),
    ("/v1/messages", MESSAGES, 2),
    ("/v1/messages", MESSAGES | {"tool_choice": {"type": "any"}}, 2),
    ("/v1/messages", MESSAGES | {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}, 1),
    ("/v1/messages", MESSAGES | {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, 1),
    ("/v1/messages", MESSAGES | {"tool_choice": {"type": "tool", "name": "weather"}}, 1),
    ("/api/chat", OLLAMA, 2),
]


def _whole(path: str, body: Any) -> tuple[list[Any], str]:
    """The arguments of the calls, and the reason of the end."""
    match path:
        case "/v1/chat/completions":
            (choice,) = body["choices"]
            calls = [json.loads(call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]
            return calls, choice["finish_reason"]
        case "/v1/responses":
            calls = [json.loads(item["arguments"]) for item in body["output"] if item["type"] == "function_call"]
            return calls, body["status"]
        case "/v1/messages":
            return [item["input"] for item in body["content"] if item["type"] == "tool_use"], body["stop_reason"]
        case _:
            return [call["function"]["arguments"] for call in body["message"]["tool_calls"]], body["done_reason"]


def _streamed(path: str, lines: list[str]) -> tuple[list[Any], str]:
    """As `_whole`, from the lines of a stream."""
    if path == "/api/chat":
        parts = [json.loads(line) for line in lines]
        calls = [call["function"]["arguments"] for part in parts for call in part["message"].get("tool_calls", [])]
        return calls, parts[-1]["done_reason"]
    parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    if path == "/v1/responses":
        return _whole(path, parts[-1]["response"])
    pieces: dict[int, str] = {}
    reason = ""
    for part in parts:
        if path == "/v1/messages":
            if part["type"] == "content_block_delta" and part["delta"]["type"] == "input_json_delta":
                pieces[part["index"]] = pieces.get(part["index"], "") + part["delta"]["partial_json"]
            reason = part.get("delta", {}).get("stop_reason") or reason
        for choice in part.get("choices", []):
            for call in choice["delta"].get("tool_calls") or []:
                pieces[call["index"]] = pieces.get(call["index"], "") + call["function"].get("arguments", "")
            reason = choice["finish_reason"] or reason
    return [json.loads(piece) for piece in pieces.values()], reason


@pytest.mark.parametrize(("path", "body", "count"), REQUESTS)
@pytest.mark.parametrize("stream", [False, True])
def test_each_call_is_given_once_and_the_answer_ends(
    client: httpx.Client, path: str, body: Any, count: int, stream: bool
) -> None:
    answer = client.post(path, json={"model": "m", "stream": stream, **body})
    assert answer.status_code == 200, answer.text
    calls, reason = _streamed(path, answer.text.splitlines()) if stream else _whole(path, answer.json())
    assert calls == [PARIS, ROME][:count]
    assert reason in ("tool_calls", "completed", "tool_use", "stop")
