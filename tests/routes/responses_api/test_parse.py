"""A request of the Responses API becomes a Generation."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest, NotFound
from gateway.generation import (
    Message,
    ToolCall,
)
from gateway.routes.responses_api.parse import response_generation
from gateway.routes.responses_api.parse_items import located_items
from gateway.routes.responses_api.store import ResponseStore
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.server.body import parse
from tests.routes.responses_api.helpers import (
    TOOL,
    chat_of,
    generation,
    messages_of,
)
from tests.support.json_values import JSON_VALUES

_decoder = msgspec.json.Decoder(ResponsesRequest)


def test_items_become_messages() -> None:
    messages = messages_of(
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "Be"}, {"type": "input_text", "text": "brief"}],
        },
        {"type": "message", "role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"at": 1}'},
        {"type": "function_call", "call_id": "b", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "Sunny."},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "Noon."}]},
        {"type": "reasoning", "id": "rs_2", "summary": []},
        {"role": "assistant", "content": "Sunny."},
        {"role": "assistant", "content": "And noon."},
        instructions="You are a clock.",
    )
    calls = (ToolCall("a", "weather", '{"at": 1}'), ToolCall("b", "clock", "{}"))
    assert messages == (
        Message(role="system", content="You are a clock."),
        Message(role="system", content="Be\nbrief"),
        Message(role="user", content="Weather?"),
        Message(role="assistant", content="Let me see.", reasoning="Hm.", tool_calls=calls),
        Message(role="tool", content="Sunny.", tool_call_id="a"),
        Message(role="tool", content="Noon.", tool_call_id="b"),
        Message(role="assistant", content="Sunny."),
        Message(role="assistant", content="And noon."),
    )


def test_tools_choice_effort_and_formats_are_read() -> None:
    chat = chat_of(tools=[TOOL], tool_choice={"type": "function", "name": "weather"}, reasoning={"effort": "low"})
    assert (chat.tools[0].name, chat.tools[0].strict, chat.reasoning_effort) == ("weather", False, "low")
    assert (chat.tool_choice.mode, chat.tool_choice.names, chat.tool_choice.parallel) == (
        "required",
        ("weather",),
        True,
    )
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    chat = chat_of(tools=[TOOL], tool_choice=allowed, parallel_tool_calls=False)
    assert (chat.tool_choice.mode, chat.tool_choice.names, chat.tool_choice.parallel) == ("auto", ("weather",), False)
    grammar = generation(text={"format": {"type": "json_object"}}).grammar
    assert grammar is not None and grammar.kind == "json_object"
    made = generation(max_output_tokens=5, temperature=0, top_p=0.5, text={"verbosity": "low"})
    sampling = made.sampling
    assert (made.max_tokens, sampling.temperature, sampling.top_p, made.grammar) == (5, 0, 0.5, None)
    assert generation().max_tokens == 64


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(ResponsesRequest.__struct_fields__), JSON_VALUES, max_size=5))
def test_any_json_gives_a_generation_or_invalid_request(fields: dict[str, Any]) -> None:
    try:
        body = msgspec.json.encode(fields)
    except Exception:
        return
    try:
        request = parse(body, _decoder)
        response_generation(request, located_items(request, ResponseStore(), ""), Defaults(), id="resp_1")
    except (InvalidRequest, NotFound) as refused:
        assert refused.message


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("call", "arguments", "output", "text"),
    [
        ({"type": "custom_tool_call", "name": "apply_patch", "input": "x"}, {"input": "x"}, "done", "done"),
        (
            {"type": "local_shell_call", "action": {"command": ["ls"]}},
            {"action": {"command": ["ls"]}},
            "a.txt",
            "a.txt",
        ),
        (
            {"type": "shell_call", "action": {"commands": ["ls"]}},
            {"action": {"commands": ["ls"]}},
            [{"stdout": "a"}],
            None,
        ),
        ({"type": "apply_patch_call", "operation": {"path": "a"}}, {"operation": {"path": "a"}}, "ok", "ok"),
        ({"type": "tool_search_call", "arguments": {"q": 1}}, {"arguments": {"q": 1}}, {"tools": []}, None),
        (
            {"type": "computer_call", "action": {"type": "screenshot"}},
            {"action": {"type": "screenshot"}},
            {"type": "computer_screenshot", "image_url": "data:"},
            "[computer_screenshot omitted: the model reads only text]",
        ),
    ],
)
def test_call_of_another_tool_that_the_client_ran_is_kept(call: Any, arguments: Any, output: Any, text: Any) -> None:
    kind = call["type"]
    result = {"type": f"{kind}_output", "call_id": "c", "output": output}
    _, made, read, _ = messages_of(USER, {**call, "call_id": "c", "id": "x", "status": "completed"}, result, USER)
    [tool_call] = made.tool_calls
    assert (tool_call.id, tool_call.name) == ("c", call.get("name", kind.removesuffix("_call")))
    assert json.loads(tool_call.arguments) == arguments
    assert (read.role, read.tool_call_id) == ("tool", "c")
    assert read.content == (json.dumps(output, separators=(",", ":")) if text is None else text)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "file_search_call", "id": "f", "queries": ["a"], "results": None},
        {"type": "code_interpreter_call", "id": "c", "code": "1", "outputs": [{"type": "logs", "logs": "1"}]},
        {"type": "image_generation_call", "id": "i", "result": "AAAA"},
        {"type": "mcp_list_tools", "id": "m", "server_label": "x", "tools": [{"name": "a", "input_schema": {}}]},
        {"type": "mcp_call", "id": "m", "name": "a", "arguments": "{}", "output": "text"},
        {"type": "mcp_approval_request", "id": "m", "name": "a", "arguments": "{}"},
        {"type": "mcp_approval_response", "approval_request_id": "m", "approve": True},
        {"type": "compaction", "id": "c", "encrypted_content": "AAAA"},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "AAAA"},
        {"type": "reasoning", "id": "r", "summary": [], "content": None, "encrypted_content": "AAAA"},
        {"type": "item_of_next_year", "content": {"a": 1}, "output": 5, "role": "alien"},
    ],
)
def test_item_of_another_server_is_left_out(item: Any) -> None:
    assert [message.content for message in messages_of(USER, item, USER)] == ["Hi", "Hi"]


def test_image_in_an_output_becomes_a_short_text() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:"}]
    messages = messages_of(USER, call, {"type": "function_call_output", "call_id": "c", "output": parts})
    assert messages[2].content == "a\n[input_image omitted: the model reads only text]"
    with pytest.raises(InvalidRequest):
        messages_of(USER, {"type": "function_call_output", "call_id": "c", "output": {"a": 1}})
