"""A request of the Responses API becomes a Generation."""

from __future__ import annotations

from typing import Any

import msgspec
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
